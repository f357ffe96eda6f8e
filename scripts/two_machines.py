"""Two network namespaces, joined by a cable of two ends, as two machines that train one model.

They train it to its end, which has to be bit the same as that of two processes of one machine. Then
they train again, and the cable is pulled in the middle: both have to say so and to end, and nobody
may be left. It prints after how many seconds each did; namespaces and cable are gone afterwards,
whatever happens. It takes Linux, root and iproute2.

    python scripts/two_machines.py -- --model=ESCM2_DR --dataset=ml-100k

torchrun waits for its store as long as the system does for an answer: a quarter of an hour by
Linux's default, here what ``--retries`` makes of it (``net.ipv4.tcp_retries2``).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kills_distributed import OTHERWISE
from phases import differing, outcome

_PORT = 29400
_PATIENCE = 600.0  # seconds of a run that is to come to its end


class Machine:
    """A network namespace with an end of the cable.

    Args:
        number: 1 or 2; the first one has torchrun's store.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"escm2-{os.getpid()}-{number}"
        self.address = f"10.77.0.{number}"
        self.cable = f"cable{number}"

    def ip(self, *words: str) -> str:
        """Have iproute2 do something in it."""
        return _ip("-n", self.name, *words)

    def processes(self) -> list[int]:
        """All that are in it."""
        return [int(word) for word in _ip("netns", "pids", self.name).split()]

    def torchrun(self, said: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start its part of a run, whose errors go into a file."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m"]
        command += ["torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=10.77.0.1:{_PORT}"]
        command += [f"--rdzv-conf=is_host={int(self.number == 1)}", f"--local-addr={self.address}"]
        with said.open("wb") as file:
            return subprocess.Popen(
                [*command, "-m", "recbole_escm2", *options],
                env={**os.environ, "GLOO_SOCKET_IFNAME": self.cable},
                stdout=subprocess.DEVNULL,
                stderr=file,
            )


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def machines(retries: int) -> Iterator[tuple[Machine, Machine]]:
    """Two that see each other, while it lasts.

    Args:
        retries: ``net.ipv4.tcp_retries2`` of both.
    """
    pair = Machine(1), Machine(2)
    with contextlib.ExitStack() as stack:
        for machine in pair:
            _ip("netns", "add", machine.name)
            stack.callback(_remove, machine)
            setting = f"net.ipv4.tcp_retries2={retries}"
            command = ["ip", "netns", "exec", machine.name, "sysctl", "-qw", setting]
            subprocess.run(command, check=True)
        first, second = pair
        peer = ("peer", "name", second.cable, "netns", second.name)
        first.ip("link", "add", first.cable, "type", "veth", *peer)
        for machine in pair:
            machine.ip("addr", "add", f"{machine.address}/24", "dev", machine.cable)
            for device in ("lo", machine.cable):
                machine.ip("link", "set", device, "up")
        yield pair


def _remove(machine: Machine) -> None:
    for process in machine.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, 9)
    _ip("netns", "del", machine.name)


def ends_alike(pair: Sequence[Machine], options: Sequence[str], folder: Path) -> list[str]:
    """What a run on two machines and one by two processes of one machine differ in."""
    wire, alone = folder / "wire", folder / "alone"
    given = [*options, "--epochs=3", f"--output_dir={wire}"]
    runs = [machine.torchrun(folder / f"{machine.number}.said", given) for machine in pair]
    for run, machine in zip(runs, pair, strict=True):
        if run.wait(_PATIENCE):
            raise RuntimeError((folder / f"{machine.number}.said").read_text())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    given[-1] = f"--output_dir={alone}"
    with (folder / "alone.said").open("wb") as file:
        command += ["-m", "recbole_escm2", *given]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=file)
    ends = [outcome(next(place.glob("*/result.json")).parent) for place in (wire, alone)]
    return [f"{d.place}: {d.what}" for d in differing(*ends) if not OTHERWISE.search(d.place)]


def pulled(
    pair: Sequence[Machine], options: Sequence[str], folder: Path, within: float
) -> Iterator[str]:
    """What each machine does once the cable is pulled.

    Raises:
        RuntimeError: one has said nothing, or somebody is left, after ``within`` seconds.
    """
    given = [
        *options,
        "--epochs=100000",
        "--stopping_step=100000",
        f"--output_dir={folder / 'cut'}",
    ]
    said = [folder / f"{machine.number}.cut" for machine in pair]
    runs = [machine.torchrun(file, given) for machine, file in zip(pair, said, strict=True)]
    started = time.perf_counter()
    while "epoch 1 valid" not in said[0].read_text():
        if time.perf_counter() - started > _PATIENCE or any(run.poll() for run in runs):
            raise RuntimeError(f"no training: {said[0].read_text()}")
        time.sleep(0.2)
    pair[0].ip("link", "set", pair[0].cable, "down")
    started, at = time.perf_counter(), dict[str, float]()
    while len(at) < 2 * len(pair) and time.perf_counter() - started < within:
        for machine, file, run in zip(pair, said, runs, strict=True):
            seconds = time.perf_counter() - started
            if "error: " in file.read_text():
                at.setdefault(f"machine {machine.number} says so", seconds)
            if run.poll() is not None:
                at.setdefault(f"machine {machine.number} has ended", seconds)
        time.sleep(0.2)
    left = sum(len(machine.processes()) for machine in pair)
    yield from (f"{what} after {seconds:.0f} s" for what, seconds in at.items())
    for file in said:
        yield from (line[:150] for line in file.read_text().splitlines() if "error: " in line)
    if left or len(at) < 2 * len(pair):
        raise RuntimeError(f"{left} processes are left after {within:.0f} s")


def main() -> int:
    """Print how both ended; 1 where they didn't as they should."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--retries", type=int, default=8, help="net.ipv4.tcp_retries2")
    parser.add_argument("--within", type=float, default=300, help="seconds for all to end")
    parser.add_argument("options", nargs="*", help="of the run, after --; it sets epochs itself")
    asked = parser.parse_args()
    if os.geteuid() or shutil.which("ip") is None:
        print("error: it takes root and iproute2 (ip netns)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name, machines(asked.retries) as pair:
        folder = Path(name)
        try:
            found = ends_alike(pair, asked.options, folder)
            print("\n".join(found) or "on two machines as by two processes of one", flush=True)
            for line in pulled(pair, asked.options, folder, asked.within):
                print(line, flush=True)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print("nobody is left")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
