"""Loses workers of a run of three, starts all again, and compares the ends bit for bit.

    python benchmarks/lost_workers.py --losses=6 --cuts=2

One run of three workers is left alone. Then the same command runs in another directory, and one
worker after the other, drawn at random, is killed (SIGKILL) or stopped (SIGSTOP) at a random moment
of the run; the others must end within a minute, with the exit code 75 and an error that names it.
Each time all are started again. Where network namespaces can be made (by root, with iproute2), the
three then run on addresses of their own, 10.77.0.1 to 3, and the network of one is cut: all three
must end, and the other two name the one that is cut. A run that gets to its end is compared with
the one that was left alone, and another begins, until all is done. The last line is the sum.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import kills

WORKERS = 3
MINUTE = 60.0
FLAGS = (
    *kills.SETTINGS,
    "--data=random?shape=32,32,3&classes=3&count=160",
    *("--weights=random", "--allow=random-frozen", "--last_block=1", "--hidden=16"),
    *("--dropout=0.5", "--flip", "--shift=0.2", "--cached_views=2", "--ema=0.9"),
    *("--head_epochs=8", "--tune_epochs=8"),
)


class Lost(RuntimeError):
    """The others have not ended as they must."""


class Job(kills.Job):
    """A run by three workers; always the same command, in one folder."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder, "vgg16", FLAGS)
        self._folder = folder

    def start(self, namespaces: Sequence[str] = ()) -> list[subprocess.Popen]:
        """Starts all workers, on ports of the loopback or each in a network of its own."""
        addresses = [f"10.77.0.{i + 1}:2222" for i in range(WORKERS)] if namespaces else _free()
        processes = []
        for i in range(WORKERS):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
            inside = ["ip", "netns", "exec", namespaces[i]] if namespaces else []
            with open(self._log_of(i), "wb") as log:
                processes.append(
                    subprocess.Popen(
                        [*inside, *self._command],
                        cwd=kills.ROOT,
                        env=os.environ | {"TF_CONFIG": json.dumps(task)},
                        stdout=log,
                        stderr=log,
                    )
                )
        return processes

    def finish(self, namespaces: Sequence[str] = ()) -> None:
        processes = self.start(namespaces)
        if any([process.wait() for process in processes]):
            raise Lost("\n".join(map(self.said, range(WORKERS))))

    def lose(
        self, lose: Callable[[int, int], None], seconds: float, namespaces: Sequence[str] = ()
    ) -> tuple[int, float] | None:
        """Starts the command and loses a worker; returns which, and after how long all others have
        ended; None: the run came to its end before, or in spite of it.

        Args:
            lose: does so, given the worker and its process.
            seconds: from when the chief has begun with the run.
        """
        processes, worker = self.start(namespaces), random.randrange(WORKERS)
        try:
            while not self._begun(processes[0]) and all(each.poll() is None for each in processes):
                time.sleep(0.05)
            due = time.monotonic() + seconds
            while time.monotonic() < due and all(each.poll() is None for each in processes):
                time.sleep(0.05)
            if any(each.poll() is not None for each in processes):
                return self._ended(processes)
            lose(worker, processes[worker].pid)
            began = time.monotonic()
            others = [i for i in range(WORKERS) if i != worker]
            codes = [self._wait(i, processes[i], began + MINUTE) for i in others]
            took = time.monotonic() - began
            if 0 in codes:
                return self._ended([processes[i] for i in others])
            for i, code in zip(others, codes, strict=True):
                named = re.findall(r"Failed: Worker (\d) .* does not answer", self.said(i))
                if code != os.EX_TEMPFAIL or named != [str(worker)]:
                    raise Lost(f"Worker {worker} was lost; {i}: code {code}.\n{self.said(i)}")
            if namespaces:  # The one that is cut is no longer part of it, and ends too.
                code = self._wait(worker, processes[worker], began + MINUTE)
                if code != os.EX_TEMPFAIL:
                    raise Lost(f"{worker} was cut off: code {code}.\n{self.said(worker)}")
            return worker, took
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def said(self, worker: int) -> str:
        return self._log_of(worker).read_text()

    def _begun(self, chief: subprocess.Popen) -> bool:
        try:
            return json.loads((self.run / ".lock").read_text())["process"] == chief.pid
        except (OSError, ValueError):
            return False

    def _ended(self, processes: Sequence[subprocess.Popen]) -> None:
        """Waits for all; they must have come to the run's end."""
        codes = [process.wait() for process in processes]
        if any(codes) or not (self.run / "manifest.json").exists():
            raise Lost(f"Codes {codes}.\n" + "\n".join(map(self.said, range(WORKERS))))

    def _wait(self, worker: int, process: subprocess.Popen, deadline: float) -> int:
        try:
            return process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Lost(f"Worker {worker} has not ended.\n{self.said(worker)}") from None

    def _log_of(self, worker: int) -> pathlib.Path:
        return self._folder / f"{worker}.log"


def _free() -> list[str]:
    with contextlib.ExitStack() as stack:
        taken = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(WORKERS)
        ]
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in taken]


@contextlib.contextmanager
def networks() -> Iterator[tuple[list[str], Callable[[int], None], Callable[[int], None]]]:
    """Yields a network namespace for each worker, joined by a bridge in one more, and what cuts one
    off and joins it again. Nothing outside of them is touched; at the end they are removed.

    Raises:
        OSError, subprocess.CalledProcessError: they cannot be made.
    """

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def set_link(worker: int, state: str) -> None:
        ip("-n", bridge, "link", "set", f"to{worker}", state)

    mark = f"tfbp{os.getpid()}"
    bridge, names = f"{mark}-bridge", [f"{mark}-{i}" for i in range(WORKERS)]
    with contextlib.ExitStack() as stack:
        for name in (bridge, *names):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", bridge, "link", "set", "br0", "up")
        for i, name in enumerate(names):
            ends = f"eth0 netns {name} type veth peer name to{i} netns {bridge}"
            ip("link", "add", *ends.split())
            ip("-n", bridge, "link", "set", f"to{i}", "master", "br0", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", name, "link", "set", link, "up")
        yield names, lambda i: set_link(i, "down"), lambda i: set_link(i, "up")


def lose_all(folder: pathlib.Path, alone: Job, wanted: int, life: float, lose: Callable) -> int:
    """Loses workers, as often as wanted; returns the differing bits of all ends.

    Args:
        life: seconds that a run takes.
        lose: from a job and the number of losses before to what `Job.lose` returns.
    """
    if not wanted:
        return 0
    times, ended, differing = [], 0, 0
    while True:
        job = Job(folder / str(ended))
        while len(times) < wanted:
            # A run that goes on is shorter.
            lost = lose(job, random.uniform(0, life / 2))
            if lost is None:
                break  # it has come to its end
            times.append(lost[1])
            print(f"  worker {lost[0]} lost, all others ended {lost[1]:.1f} s later", flush=True)
        else:
            if not (job.run / "manifest.json").exists():
                job.finish()
        ended += 1
        differing += kills.differing_bits(alone, job)
        shutil.rmtree(folder / str(ended - 1))
        if len(times) == wanted:
            break
    print(
        f"{folder.name}: {wanted} losses, the others ended within {max(times, default=0):.1f} s; "
        f"{ended} ends compared; differing bits: {differing}",
        flush=True,
    )
    return differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--losses", type=int, default=6, help="by SIGKILL and SIGSTOP, in turn")
    parser.add_argument("--cuts", type=int, default=2, help="of a network")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the workers")
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as top:
        alone = Job(pathlib.Path(top, "alone"))
        began = time.monotonic()
        alone.finish()
        life = time.monotonic() - began
        print(f"A run of {WORKERS} workers left alone: {life:.0f} s", flush=True)

        def stop(worker: int, process: int) -> None:
            number = (signal.SIGKILL, signal.SIGSTOP)[stop.count % 2]
            stop.count += 1
            os.kill(process, number)

        stop.count = 0
        places = pathlib.Path(top, "killed or stopped"), pathlib.Path(top, "cut off")
        differing = lose_all(
            places[0], alone, options.losses, life, lambda job, after: job.lose(stop, after)
        )
        cuts = options.cuts
        try:
            with networks() as (names, cut, join):

                def lose(job: Job, after: float) -> tuple[int, float] | None:
                    lost = job.lose(lambda worker, process: cut(worker), after, names)
                    for worker in range(WORKERS):
                        join(worker)
                    return lost

                differing += lose_all(places[1], alone, cuts, life, lose)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            print(
                f"No network is cut: network namespaces cannot be made ({said.decode().strip()})."
            )
            cuts = 0
    print(f"losses {options.losses}, cuts {cuts}, differing bits {differing}")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
