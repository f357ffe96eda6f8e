"""Several processes that train one model, as torchrun starts them; else there is one.

``torchrun --nproc_per_node=2 run_recbole_escm2.py …`` starts two of the same program, the ranks.
:func:`process_group` joins them by what torchrun puts into their environment: gloo for tensors of a
CPU, NCCL for those of GPUs. Outside it, and with one process, every function here is an identity
that neither copies nor waits.

What a rank computes of its rows is a part; what :func:`all_rows` makes of the parts is the same on
all ranks, and so is a loss of it. The engine is PyTorch's DistributedDataParallel, which gives each
rank the *mean* of the ranks' gradients: of a loss that is the same on all ranks that is its
gradient, because :func:`all_rows` gives each rank's rows the ranks' number times theirs.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import socket
import stat
import time
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from recbole_escm2.errors import UsageError

# The ranks wait for the first one while it makes a store of the data or computes metrics. That a
# process has ended is known at once, whatever this is: by its connections, and to torchrun.
_PATIENCE = timedelta(hours=12)
# Keys of a store: what the first failure is said by, what a start is called, whose answers to it
# were heard.
_FAILED, _START, _HEARD = "failed", "start", "heard"
_BETWEEN_ANSWERS = 0.1  # seconds
# Seconds in which a machine that can't be reached is noticed: no packet tells of a lost link.
_SILENCE = 60
_TO_BE_ENDED = 20.0  # seconds in which torchrun ends who isn't to say anything


def is_launched() -> bool:
    """Whether torchrun, or what sets the same environment, has started several processes."""
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    several = os.environ.get("WORLD_SIZE", "").strip() not in ("", "0", "1")
    return several and all(os.environ.get(name) for name in needed)


def world_size() -> int:
    """How many processes there are: 1 outside a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the one process that writes, logs and prints."""
    return rank() == 0


def local_rank() -> int:
    """Which of those on this machine it is, hence the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def local_world_size() -> int:
    """How many processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun has started, while it lasts; nothing where there is one.

    An error on one rank ends all: the first to fail says it, and the others end without a word, as
    torchrun ends what is left. Within another group it does nothing.

    Raises:
        UsageError: the others can't be reached, at the beginning or later.
    """
    if not is_launched() or dist.is_initialized():
        yield
        return
    try:
        store, own, size = next(dist.rendezvous("env://", timeout=_PATIENCE))
        store = _of_this_start(store, own, size)
        # A GPU has to be there for NCCL; asking torch.cuda would choose the devices for good.
        gpus = dist.is_nccl_available() and torch.cuda.device_count() > 0
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=_PATIENCE)
        barrier()  # all connections are there
        _bound_silence()
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(f"the processes of torchrun can't join: {error}") from error
    try:
        with _said_once():
            yield
    except BaseException as error:
        if not _is_first_to_fail(store, own):
            time.sleep(_TO_BE_ENDED)
            os._exit(1)  # without a word, and without waiting for the others
        lost = error.__cause__ if isinstance(error, UsageError) else error
        if isinstance(lost, RuntimeError) and _is_connection(lost):
            raise UsageError(
                f"another process of this run has ended, or can't be reached any more: {lost}"
            ) from error
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _of_this_start(store: dist.Store, own: int, size: int) -> dist.Store:
    """A part of torchrun's store into which nobody has written before these processes were started.

    torchrun has one store for all its restarts, in which addresses of processes that are gone
    stand, and its machines needn't agree on how often they have restarted. So the first process
    names the start, and the others answer by a name of their own, until it has heard these.

    Args:
        store: of all starts.
        own: rank of this process.
        size: how many there are.
    """
    name = uuid4().hex
    if own == 0:
        store.set(_START, name)
        answers = [store.get(f"{name} {other}").decode() for other in range(1, size)]
        store.set(f"{name} {_HEARD}", " ".join(answers))
        return dist.PrefixStore(name, store)
    while True:
        start = store.get(_START).decode()  # waits for the first one; later it may be an old one
        store.set(f"{start} {own}", name)
        heard = f"{start} {_HEARD}"
        if store.check([heard]) and name in store.get(heard).decode().split():
            return dist.PrefixStore(start, store)
        time.sleep(_BETWEEN_ANSWERS)


def _bound_silence() -> None:
    """Have the system end those of the process's connections whose other side is silent."""
    options = {
        "TCP_KEEPIDLE": _SILENCE // 3,
        "TCP_KEEPINTVL": _SILENCE // 6,
        "TCP_KEEPCNT": 4,
        "TCP_USER_TIMEOUT": _SILENCE * 1000,  # of what was sent and hasn't arrived
    }
    with contextlib.suppress(OSError):  # no such folder: this is Linux's
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError), _connection(int(name)) as own:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in options.items():
                    own.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _connection(number: int) -> socket.socket:
    """A descriptor as a socket.

    Raises:
        OSError: it isn't one.
    """
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    return socket.socket(fileno=os.dup(number))


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Have the first process alone log and warn."""
    handler = logging.NullHandler()  # without any, warnings are printed
    with warnings.catch_warnings():
        # A layer of one logit has gradients whose strides, of length 1, are other numbers.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        if not is_main():
            warnings.simplefilter("ignore")
            logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)


def _is_first_to_fail(store: dist.Store, own: int) -> bool:
    try:
        return store.compare_set(_FAILED, "", str(own)) == str(own).encode()
    except RuntimeError:  # whoever has held the store can't be reached: one says so on each machine
        return local_rank() == 0


def _is_connection(error: RuntimeError) -> bool:
    words = ("Connection", "connection", "Socket", "socket", "gloo", "NCCL", "Timed out")
    return any(word in str(error) for word in words)


def barrier() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        # A sum on a CPU: dist.barrier would take the GPUs where there are some.
        dist.all_reduce(torch.zeros(1))


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Do something on the first process, and then on the others, which find it done."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def from_main(value: Any = None) -> Any:
    """What the first process gives here, on all of them.

    Args:
        value: that can be pickled; that of the other processes isn't looked at.
    """
    if world_size() == 1:
        return value
    content = [value]
    dist.broadcast_object_list(content, device=torch.device("cpu"))
    return content[0]


def seed_of(*numbers: int) -> int:
    """A seed of this rank for a step: as good as drawn, and the same wherever one goes on.

    Args:
        numbers: what tells the step from others, none negative.
    """
    return int(np.random.SeedSequence([*numbers, rank()]).generate_state(1)[0])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Σ over the processes of a tensor of one shape, the same on all of them.

    Differentiable: the gradient of each addend is the sum of those that the sum has on all
    processes. Where all of them make the same loss of it, DistributedDataParallel's mean over the
    processes is then that loss's gradient.
    """
    if world_size() == 1:
        return tensor
    summed: Tensor = _Sum.apply(tensor)
    return summed


class Share(NamedTuple):
    """Which rows of a batch a rank has: ``begin`` up to before ``end``, of ``rows``.

    Attributes:
        begin: its first.
        end: behind its last; ``begin`` where it has none.
        rows: of the whole batch.
        ranks: among which the batch is shared.
    """

    begin: int
    end: int
    rows: int
    ranks: int

    @property
    def own(self) -> int:
        """How many rows this rank has."""
        return self.end - self.begin

    @property
    def weight(self) -> float:
        """What the mean over a rank's rows counts in the ranks' mean: own·ranks/rows."""
        return self.own * self.ranks / self.rows


def bounds(count: int, ranks: int) -> list[int]:
    """Where the parts of ``count`` things begin that ``ranks`` have, and where the last ends."""
    return [count * number // ranks for number in range(ranks + 1)]


def share_of(rows: int) -> Share | None:
    """This rank's part of a batch: parts in the order of ranks, as even as can be.

    None where there is one process.
    """
    ranks, own = world_size(), rank()
    if ranks == 1:
        return None
    begin, end = bounds(rows, ranks)[own : own + 2]
    return Share(begin, end, rows, ranks)


class _Whole(torch.autograd.Function):
    """A column of a whole batch as a function of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, whole: Tensor, share: Share) -> Tensor:
        ctx.share, ctx.shape = share, own.shape
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        share, own = ctx.share, grad.new_zeros(ctx.shape)
        own[: share.own] = grad[share.begin : share.end] * share.ranks
        return own, None, None


def _gathered(own: Tensor, share: Share) -> Tensor:
    """Every rank's ``[columns, own]`` side by side, ``[columns, rows]``, without gradient."""
    counts = [end - begin for begin, end in itertools.pairwise(bounds(share.rows, share.ranks))]
    padded = own.new_zeros(len(own), max(counts))
    padded[:, : share.own] = own
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([p[:, :count] for p, count in zip(parts, counts, strict=True)], dim=1)


def all_rows(columns: Sequence[Tensor], share: Share) -> list[Tensor]:
    """Columns of a whole batch, ``[rows]`` each, on every rank.

    Every rank has to make the same loss of them: their gradient isn't exchanged, but taken from
    this rank's own loss, times the ranks, which DistributedDataParallel's mean takes away again.

    Args:
        columns: of this rank's rows, ``[own]`` each, or longer where it has none of its own.
        share: which rows those are.
    """
    dtype = torch.float64 if any(c.dtype == torch.float64 for c in columns) else torch.float32
    own = torch.stack([column.detach()[: share.own].to(dtype) for column in columns])
    gathered = []
    for column, values in zip(columns, _gathered(own, share), strict=True):
        whole = values.to(column.dtype)
        # Each for itself: a loss of one column has no gradient, rather than 0, of the others.
        gathered.append(_Whole.apply(column, whole, share) if column.requires_grad else whole)
    return gathered


def gather_to_main(part: Tensor, edges: Sequence[int]) -> None:
    """Have the first process get the others' parts of a vector, on a CPU.

    Nothing is held beside: what the others send comes into its place.

    Args:
        part: of the first process all of the vector, ``[edges[-1]]``, with its own part in it; of
            the others theirs.
        edges: where each rank's part begins, and where the last ends.
    """
    for other, (begin, end) in enumerate(itertools.pairwise(edges)):
        if not other or begin == end:
            continue
        if is_main():
            dist.recv(part[begin:end], other)
        elif rank() == other:
            dist.send(part.contiguous(), 0)
