"""Checkpoints: plain data and tensors, sealed with a checksum, read without running code.

A file is what ``torch.save`` writes, followed by a line with the format and the digest of all that
precedes it::

    recbole_escm2 checkpoint 3 0123456789abcdef0123456789abcdef

What doesn't match its seal is never given to ``torch.load``. A checkpoint says what it was trained
on (:mod:`recbole_escm2.identity`) and how rows become batches (:mod:`recbole_escm2.data.encoding`),
so that it scores new rows without its data, and holds no path that anything would be read from or
written to. docs/predict.md lists its entries.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from recbole_escm2.distributed import is_main
from recbole_escm2.errors import UsageError, lacks_memory
from recbole_escm2.identity import digest_of, is_identity
from recbole_escm2.limits import check_extent
from recbole_escm2.output import replacing

_SEAL = b"\nrecbole_escm2 checkpoint 3 %s\n"
_SEAL_BYTES = len(_SEAL % digest_of().hexdigest().encode())
_ZIP = b"PK\x03\x04"  # what torch.save writes; older kinds of file aren't safe to load
# What told earlier formats: the first in the pickle, the second in its seal.
_EARLIER = (b"recbole_escm2 checkpoint 1", b"\nrecbole_escm2 checkpoint 2 ")
_PIECE = 1 << 20
#: Steps between the quantiles of train's clicks.
SUPPORT_STEPS = 1000
_CLICKS, _CLICKS_AT_ONCE = 50_000, 4096  # whose pCTR is looked at

# What a checkpoint holds.
_ENTRIES: Mapping[str, type] = {
    "model": str,
    "dataset": str,
    "settings": dict,  # of model and data; see keys.PLACE_KEYS for what isn't among them
    "places": dict,  # what the user had set of the rest: said to people, never used
    "data": dict,  # see identity.Identity
    "epoch": int,
    "training_ended": bool,
    "cur_step": int,
    "best_valid_score": float,
    "state_dict": dict,
    "optimizer": dict,
    "fields": dict,  # this and the next three: see data.encoding.encoding_state
    "vocabularies": list,
    "train_ids": dict,
    "deciles": dict,
    "versions": dict,
}
# What it may hold.
_OPTIONAL: Mapping[str, type] = {
    "support": Tensor,  # quantiles of the pCTR of train's clicks, in equal steps from 0 to 1
    "calibration": dict,  # plain data of what is done to probabilities last
}


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; a run that is killed meanwhile leaves the one before.

    Args:
        path: where to.
        state: what :func:`load_checkpoint` gives.
    """
    with replacing(path) as file:
        written = _Digested(file)
        try:
            torch.save(dict(state), cast(BinaryIO, written))
        except RuntimeError as error:  # which doesn't say what the system has refused
            raise written.error or error from None
        file.write(_SEAL % written.digest.hexdigest().encode())


def finish_checkpoint(
    path: Path,
    further: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> None:
    """Note in a checkpoint that its training has come to its end; the first process writes it.

    Args:
        path: of the file.
        further: gives entries to add, from what it holds.
    """
    state = load_checkpoint(path, mapped=True)
    if not state["training_ended"]:
        added = further(state) if further else {}
        if is_main():
            save_checkpoint(path, {**state, **added, "training_ended": True})


def add_calibration(path: Path, calibration: Mapping[str, Any]) -> None:
    """Keep in a checkpoint what calibrates its predictions, under its entry ``calibration``.

    Args:
        path: of a checkpoint.
        calibration: its state: text, numbers and tensors.
    """
    save_checkpoint(path, {**load_checkpoint(path, mapped=True), "calibration": dict(calibration)})


class _Digested(io.BufferedIOBase):
    """Takes what ``torch.save`` writes, and digests it on its way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = digest_of()
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        self.digest.update(content)
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise


@torch.no_grad()
def support_of(pctr: Callable[[Any], Tensor], train: Any) -> Tensor:
    """Quantiles of the pCTR of train's clicks, in 1,000 equal steps, float64 ``[1001]``.

    Of many clicks those are looked at that lie evenly spaced in train.

    Args:
        pctr: of a batch, ``[batch]``.
        train: the training part.
    """
    clicks = np.flatnonzero(train.inter_feat.columnar(train.click_field))
    rows = torch.from_numpy(clicks[:: -(-len(clicks) // _CLICKS)])
    scores = torch.cat([pctr(train[block]) for block in rows.split(_CLICKS_AT_ONCE)])
    shares = np.linspace(0, 1, SUPPORT_STEPS + 1)
    return torch.from_numpy(np.quantile(scores.double().numpy(), shares))


def load_checkpoint(path: str | Path, device: Any = "cpu", mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: of the file.
        device: where its tensors go.
        mapped: see :func:`load_sealed`.

    Raises:
        UsageError: as :func:`load_sealed`, or it lacks something that a checkpoint has.
    """
    state = load_sealed(Path(path), device, mapped)
    for name, kind in _ENTRIES.items():
        if not isinstance(state.get(name), kind):
            raise UsageError(f"checkpoint {path}: its {name} isn't as this program writes it")
    for name, kind in _OPTIONAL.items():
        if name not in state or not isinstance(state[name], kind | None):
            raise UsageError(f"checkpoint {path}: its {name} isn't as this program writes it")
    if not is_identity(state["data"]):
        raise UsageError(f"checkpoint {path}: its data isn't as this program writes it")
    return state


def load_sealed(path: Path, device: Any = "cpu", mapped: bool = False) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` has written.

    Args:
        path: of the file.
        device: where its tensors go.
        mapped: leave them in the file where the system can, for who only reads them, or copies
            what is kept: they may be larger than memory, and are on a CPU, whatever ``device`` is.
            Whoever can write to the file can change them meanwhile, and they it.

    Raises:
        UsageError: there is no such file, it isn't a checkpoint of ours, or not as it was written.
            A pickle, such as RecBole's checkpoints, is refused: loading one can run any code that
            is in it.
        MemoryError, RuntimeError: memory doesn't hold them (:func:`~errors.lacks_memory`).
    """
    if path.is_dir():
        raise UsageError(f"checkpoint {path} is a folder: name the file, checkpoint.pth of a run's")
    if not path.is_file():
        raise UsageError(f"checkpoint {path}: there is no such file")
    try:
        with open(path, "rb") as file:  # once: what is checked is what is loaded
            _check_seal(path, file)
            _check_archive(file)
            file.seek(0)
            state = _mapped(file) if mapped else None
            if state is None:
                state = torch.load(file, map_location=device, weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # torch raises nearly anything on a file that isn't its own
        if lacks_memory(error):  # which says nothing of the file
            raise
        raise UsageError(
            f"checkpoint {path} can't be read as plain data ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict):
        raise UsageError(f"checkpoint {path} wasn't written by this program")
    try:
        check_extent(state, _check_tensor)
    except ValueError as error:
        raise UsageError(f"checkpoint {path} isn't as this program writes it: {error}") from error
    return state


def _check_tensor(value: Any) -> None:
    """Refuse a tensor that is larger than what the file holds of it: one without values, or whose
    rows are all the same one."""
    if not isinstance(value, Tensor):
        return
    size = value.numel() * value.element_size()
    if value.layout != torch.strided or value.is_meta or size > value.untyped_storage().nbytes():
        raise ValueError(f"a tensor {list(value.shape)} without values of its own")


def _check_archive(file: BinaryIO) -> None:
    """Refuse what would become larger than the file."""
    with zipfile.ZipFile(file) as archive:
        if any(own.compress_type != zipfile.ZIP_STORED for own in archive.infolist()):
            raise ValueError("it is compressed")


def _mapped(file: BinaryIO) -> Any:
    """What is in a file, whose tensors stay there; None where the system can't do so."""
    # By its descriptor: what is checked is what is loaded. What a private mapping could change
    # counts as the process's own memory; a shared one doesn't.
    shared = torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)
    with contextlib.suppress(OSError, RuntimeError), shared:
        name = f"/proc/self/fd/{file.fileno()}"
        return torch.load(name, map_location="cpu", weights_only=True, mmap=True)
    return None


def is_sealed(path: str | Path) -> bool:
    """Whether a file ends as this package's checkpoints do, whole or not."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _SEAL_BYTES))
        return file.read().startswith(_SEAL.partition(b"%")[0])


def _check_seal(path: Path, file: BinaryIO) -> None:
    size = os.fstat(file.fileno()).st_size
    kind = file.read(len(_ZIP))
    file.seek(max(0, size - _SEAL_BYTES))
    seal = file.read()
    sealed = seal.startswith(_SEAL.partition(b"%")[0])
    if kind != _ZIP or not sealed:
        if seal.startswith(_EARLIER[1]) or _EARLIER[0] in _pickled_in(path):
            raise UsageError(
                f"checkpoint {path} was written by an earlier version of this program, whose "
                "checkpoints don't hold all that this one reads: train the model again"
            )
        raise UsageError(
            f"checkpoint {path} wasn't written by this program, or isn't whole. Checkpoints of "
            "RecBole itself and other pickles are refused, because loading one can run any code "
            "that is in it: train the model again with this program"
        )
    file.seek(0)
    digest, left = digest_of(), size - _SEAL_BYTES
    while piece := file.read(min(_PIECE, left)):
        digest.update(piece)
        left -= len(piece)
    if seal != _SEAL % digest.hexdigest().encode():
        raise UsageError(
            f"checkpoint {path} is damaged: it isn't what was written, by its checksum. Copy it "
            "again from where it came, or train the model again"
        )


def _pickled_in(path: Path) -> bytes:
    """What a file of ``torch.save`` holds besides tensors, as bytes that nobody interprets."""
    broken = contextlib.suppress(OSError, ValueError, RuntimeError, zipfile.BadZipFile)
    with broken, zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith("/data.pkl") and entry.file_size < _PIECE:
                return archive.read(entry)
    return b""


def load_weights(model: torch.nn.Module, weights: Mapping[str, Any]) -> None:
    """Put a checkpoint's weights into a model, if they are its own in names, shapes and types.

    Raises:
        UsageError: they aren't, or one isn't finite; the message says which.
    """
    tables = getattr(model, "sharded", None)
    shapes: Mapping[str, torch.Size] = {} if tables is None else tables.shapes()
    own = {name: _kind(value) for name, value in model.state_dict().items()}
    own |= {name: f"float32 {list(shape)}" for name, shape in shapes.items()}
    for word, names in (("lacks", own.keys() - weights), ("has", weights.keys() - own.keys())):
        if names:
            named = ", ".join(sorted(map(str, names)))
            raise UsageError(f"the checkpoint doesn't fit the model: it {word} {named}")
    parameters = {name for name, _ in model.named_parameters()} | set(shapes)
    for name, wanted in own.items():
        value = weights[name]
        if not isinstance(value, Tensor) or _kind(value) != wanted:
            kind = _kind(value) if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"the checkpoint doesn't fit the model: {name} is {kind} there, and "
                f"{wanted} in the model"
            )
        if name in parameters and not _is_finite(value):
            raise UsageError(
                f"the checkpoint's {name} holds values that aren't finite: its training diverged. "
                "A smaller learning_rate or a clip_grad_norm may help"
            )
    model.load_state_dict({name: weights[name] for name in own if name not in shapes})
    if tables is not None:
        tables.put_weights(weights)


def _is_finite(values: Tensor) -> bool:
    """Of a table as large as memory, a part after the other."""
    return all(bool(torch.isfinite(part).all()) for part in values.reshape(-1).split(_PIECE))


def _kind(tensor: Tensor) -> str:
    layout = "" if tensor.layout == torch.strided and not tensor.is_meta else " without values"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}{layout}"
