"""Starts several workers on this machine, for trying it out: `launch --workers=2 -- run RECIPE …`.

What stands behind -- is run by each of them, as `--strategy=auto` or `multiworker` expect it: with
TF_CONFIG set, on ports of the loopback. Each line that they write begins with the worker's number.
Where one of them ends with an error, the others are stopped. SIGTERM and Ctrl-C go to all.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

from absl import logging

from tfbp import recipe
from tfbp.commands import flags
from tfbp.errors import mistake

POLL_SECONDS = 0.1
# From the request to stop to the end by force: longer than a worker waits for one that is lost.
GRACE_SECONDS = 30.0
# After so long it is asked again: TensorFlow takes a SIGTERM for itself while it starts its engine.
AGAIN_SECONDS = 10.0
# Where one has failed there is nothing left to save, which would take all.
FAILED_SECONDS = 15.0
HOST = "127.0.0.1"
# prctl(PR_SET_PDEATHSIG): a launcher that is killed cannot stop its workers, the kernel does.
_PROGRAM = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
from tfbp import commands
sys.exit(commands.main(sys.argv[1], sys.argv[2:]))
"""


@dataclasses.dataclass(frozen=True)
class Settings(flags.Settings):
    workers: int = recipe.field(2, "processes to start", low=1)
    cores_each: int = recipe.field(0, "cores of each, which no other has; 0: all have all", low=0)


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> int:
    """Returns the exit code of the first worker that failed, 75 where it was killed; 0: none."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    settings, rest = flags.parse(Settings, arguments[:end], about=__doc__)
    command = arguments[end + 1 :]
    if rest or command[:1] != ["run"]:
        rule = "must have a run to start behind --, as in: launch --workers=2 -- run RECIPE …"
        raise mistake("launch", rule, " ".join(arguments))
    for flag in command:
        name, _, strategy = flag.partition("=")
        if name == "--strategy" and strategy in ("one", "mirrored"):
            raise mistake("--strategy", "must be auto or multiworker for several workers", strategy)
    own = cores(settings.workers, settings.cores_each) if settings.cores_each else []
    started = [sys.executable, "-c", _PROGRAM, os.fspath(recipes_folder), *command]
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(_requests())  # before there is anything to stop
        processes = [
            stack.enter_context(_worker(started, config)) for config in configs(settings.workers)
        ]
        for process, some in zip(processes, own, strict=False):
            os.sched_setaffinity(process.pid, some)  # before it imports what starts threads
        return _watch(processes, asked)


def cores(workers: int, each: int) -> list[set[int]]:
    """Returns the cores of each worker, `each` that no other has.

    Raises:
        tfbp.UserError: there are not as many, or the system does not deal them out.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise mistake("cores_each", "must be 0: this system does not deal out cores", each)
    there = sorted(os.sched_getaffinity(0))
    if each * workers > len(there):
        rule = f"must not be more than the {len(there)} cores there are, for all workers together"
        raise mistake("cores_each", rule, each)
    return [set(there[i * each : (i + 1) * each]) for i in range(workers)]


def configs(count: int) -> list[str]:
    """Returns TF_CONFIG for each of some workers, on free ports of the loopback."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        cluster = {"worker": [f"{HOST}:{each.getsockname()[1]}" for each in sockets]}
    tasks = [{"type": "worker", "index": i} for i in range(count)]
    return [json.dumps({"cluster": cluster, "task": task}) for task in tasks]


@contextlib.contextmanager
def _worker(command: Sequence[str], config: str) -> Iterator[subprocess.Popen]:
    """Yields a process of its own session, whose lines come out behind its number; ends it."""
    process = subprocess.Popen(
        command,
        env={**os.environ, "TF_CONFIG": config, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is handed on by this process, once
    )
    mark = f"[{json.loads(config)['task']['index']}] ".encode()
    copies = [
        threading.Thread(target=_copy, args=(own, to.buffer, mark), daemon=True)
        for own, to in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    ]
    for copy in copies:
        copy.start()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for copy in copies:
            copy.join()


def _copy(lines: IO[bytes], to: IO[bytes], mark: bytes) -> None:
    for line in lines:
        to.write(mark + line.removesuffix(b"\n") + b"\n")
        to.flush()


@contextlib.contextmanager
def _requests() -> Iterator[list[int]]:
    """Yields a list to which the signals that ask this process to stop are added."""
    asked: list[int] = []
    stops = signal.SIGTERM, signal.SIGINT
    before = {
        each: signal.signal(each, lambda number, frame: asked.append(number)) for each in stops
    }
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _watch(processes: Sequence[subprocess.Popen], asked: list[int]) -> int:
    """Waits for all workers; stops them where one fails, or where this process is asked to."""
    code, began, again, force = 0, math.inf, math.inf, math.inf
    while left := [i for i, each in enumerate(processes) if each.poll() is None]:
        time.sleep(POLL_SECONDS)
        failed = [(i, each.poll()) for i, each in enumerate(processes) if each.poll()]
        now = time.monotonic()
        if began == math.inf and (failed or asked):
            began, again = now, now + AGAIN_SECONDS
            force = now + (FAILED_SECONDS if failed else GRACE_SECONDS)
            for worker, code in failed[:1]:
                how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
                logging.error("Worker %d has ended: %s. The others are stopped.", worker, how)
            _signal(processes, signal.SIGTERM)
        if now >= again:
            again = math.inf
            _signal(processes, signal.SIGTERM)
        if now >= force or asked.count(signal.SIGINT) > 1:
            force = math.inf
            asked.clear()
            names = ", ".join(map(str, left))
            logging.error("Not stopped after %.0f s, and killed: %s.", now - began, names)
            _signal(processes, signal.SIGKILL)
    code = code or next((each.returncode for each in processes if each.returncode), 0)
    return os.EX_TEMPFAIL if code < 0 else code


def _signal(processes: Sequence[subprocess.Popen], number: signal.Signals) -> None:
    for process in processes:
        process.send_signal(number)  # does nothing where it has ended
