"""Starts several workers on this machine, for trying it out: `launch --workers=2 -- run RECIPE …`.

Each of them runs the command after --, with TF_CONFIG set to ports of the loopback, as
`--strategy=auto` or `multiworker` expect it. Each line of their output begins with the worker's
number. If one of them fails, the others are stopped. SIGTERM and Ctrl-C go to all.
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

from tfbp.commands import flags
from tfbp.errors import mistake
from tfbp.settings import Fields, field

POLL_SECONDS = 0.1
# From the request to stop to the kill: longer than a worker waits for one that is lost.
GRACE_SECONDS = 30.0
# The request is repeated after this: TensorFlow swallows a SIGTERM while it starts its engine.
AGAIN_SECONDS = 10.0
# Once a worker has failed nothing is left to save, for which all workers would be needed.
FAILED_SECONDS = 15.0
HOST = "127.0.0.1"
_COMMAND = (
    "import sys; from tfbp import commands; sys.exit(commands.main(sys.argv[1], sys.argv[2:]))"
)
# prctl(PR_SET_PDEATHSIG): a launcher that is killed cannot stop its workers, but the kernel does.
_START = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclasses.dataclass(frozen=True)
class LaunchFlags(Fields):
    workers: int = field(2, "processes to start", low=1)
    cores_each: int = field(0, "cores of each, which no other has; 0: all have all", low=0)


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> int:
    """Returns the exit code of the first worker that failed, 75 if it was killed, 0 if none did."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    settings, rest = flags.parse(LaunchFlags, arguments[:end], about=__doc__)
    command = arguments[end + 1 :]
    if rest or command[:1] != ["run"]:
        rule = "must have a run to start after --, as in: launch --workers=2 -- run RECIPE …"
        raise mistake("launch", rule, " ".join(arguments))
    for flag in command:
        name, _, strategy = flag.partition("=")
        if name == "--strategy" and strategy in ("one", "mirrored"):
            raise mistake("--strategy", "must be auto or multiworker for several workers", strategy)
    program = [sys.executable, "-c", _COMMAND, os.fspath(recipes_folder), *command]
    return together(program, settings.workers, cores_each=settings.cores_each)


def together(
    command: Sequence[str],
    workers: int,
    *,
    cores_each: int = 0,
    again: float = AGAIN_SECONDS,
    grace_failed: float = FAILED_SECONDS,
) -> int:
    """Runs a command by several workers, and returns the exit code as `main` does.

    Args:
        command: the path of a program, and its arguments.
        cores_each: cores of each worker, which no other has; 0: all have all.
        again: seconds after which a request to stop is repeated.
        grace_failed: seconds from the failure of a worker until the others are killed.

    Raises:
        tfbp.UserError: there are too few cores.
        BrokenPipeError: nobody reads the output any more; the workers have been stopped.
    """
    own = cores(workers, cores_each) if cores_each else []
    with contextlib.ExitStack() as stack:
        requests = stack.enter_context(_requests())  # before there is anything to stop
        processes = [
            stack.enter_context(_worker(command, config, requests)) for config in configs(workers)
        ]
        for process, some in zip(processes, own, strict=False):
            os.sched_setaffinity(process.pid, some)  # before its imports start threads
        code = _watch(processes, requests, again, grace_failed)
    if signal.SIGPIPE in requests:
        raise BrokenPipeError
    return code


def cores(workers: int, each: int) -> list[set[int]]:
    """Returns the cores of each worker, `each` that no other has.

    Raises:
        tfbp.UserError: there are too few cores, or the system cannot assign them.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise mistake("cores_each", "must be 0: this system cannot assign cores", each)
    available = sorted(os.sched_getaffinity(0))
    if each * workers > len(available):
        rule = f"must not be more than the {len(available)} cores, for all workers together"
        raise mistake("cores_each", rule, each)
    return [set(available[i * each : (i + 1) * each]) for i in range(workers)]


def configs(count: int) -> list[str]:
    """Returns the TF_CONFIG of each worker, on free ports of the loopback."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        cluster = {"worker": [f"{HOST}:{each.getsockname()[1]}" for each in sockets]}
    tasks = [{"type": "worker", "index": i} for i in range(count)]
    return [json.dumps({"cluster": cluster, "task": task}) for task in tasks]


@contextlib.contextmanager
def _worker(
    command: Sequence[str], config: str, requests: list[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """Yields a process in a session of its own, whose output lines get its number; kills it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *command],
        env={**os.environ, "TF_CONFIG": config, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is passed on by this process, once
    )
    mark = f"[{json.loads(config)['task']['index']}] ".encode()
    copies = [
        threading.Thread(target=_copy, args=(own, to.buffer, mark, requests), daemon=True)
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


def _copy(lines: IO[bytes], to: IO[bytes], mark: bytes, requests: list[int]) -> None:
    is_read = True
    for line in lines:
        if not is_read:
            continue  # a worker must not wait for a full pipe
        try:
            to.write(mark + line.removesuffix(b"\n") + b"\n")
            to.flush()
        except BrokenPipeError:
            is_read = False
            requests.append(signal.SIGPIPE)


@contextlib.contextmanager
def _requests() -> Iterator[list[int]]:
    """Yields a list to which the signals that request this process to stop are added."""
    requests: list[int] = []
    stops = signal.SIGTERM, signal.SIGINT
    before = {
        each: signal.signal(each, lambda number, frame: requests.append(number)) for each in stops
    }
    try:
        yield requests
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _watch(
    processes: Sequence[subprocess.Popen[bytes]],
    requests: Sequence[int],
    again_seconds: float,
    grace_failed: float,
) -> int:
    """Waits for all workers; stops them if one fails, or if this process is requested to stop."""
    code, killed = 0, False
    began = again = force = math.inf
    while running := [i for i, each in enumerate(processes) if each.poll() is None]:
        time.sleep(POLL_SECONDS)
        failed = {i: ended for i, each in enumerate(processes) if (ended := each.poll())}
        now = time.monotonic()
        if began == math.inf and (failed or requests):
            began, again = now, now + again_seconds
            force = now + (grace_failed if failed else GRACE_SECONDS)
            if failed:
                worker, code = next(iter(failed.items()))
                how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
                logging.error("Worker %d has ended: %s. The others are stopped.", worker, how)
            _signal(processes, signal.SIGTERM)
        if now >= again:
            again = math.inf
            _signal(processes, signal.SIGTERM)
        if not killed and (now >= force or requests.count(signal.SIGINT) > 1):
            killed = True
            names = ", ".join(map(str, running))
            logging.error("Not stopped after %.0f s, and killed: %s.", now - began, names)
            _signal(processes, signal.SIGKILL)
    code = code or next((each.returncode for each in processes if each.returncode), 0)
    return os.EX_TEMPFAIL if code < 0 else code


def _signal(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        process.send_signal(number)  # does nothing once it has ended
