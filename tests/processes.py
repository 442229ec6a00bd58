"""Python processes that tests start, without the seconds that importing TensorFlow takes.

    process = processes.start("import keras; …", "argument", cwd=folder, log=file)
    assert process.wait(300) == 0, file.read_text()

They are forked from a server, one for all tests, which has imported TensorFlow and run nothing.
"""

import atexit
import multiprocessing
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

_CONTEXT = multiprocessing.get_context("forkserver")
ROOT = str(pathlib.Path(__file__).parents[1])
_CONTEXT.set_forkserver_preload(["tensorflow", "keras"])


class Process:
    """What `subprocess.Popen` is to a process of one's own."""

    def __init__(self, process: multiprocessing.Process):
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def start(
    program: str,
    *arguments: str | os.PathLike,
    log: str | os.PathLike,
    cwd: str | os.PathLike = "/",
    env: Mapping[str, str] | None = None,
) -> Process:
    """Starts the text of a program.

    Args:
        arguments: `sys.argv[1:]`.
        log: file that receives what it says, behind what is there.
        cwd: its directory.
        env: its environment; None: that of the tests.
    """
    words = [os.fspath(each) for each in arguments]
    env = {"PYTHONPATH": ROOT} | dict(os.environ if env is None else env)
    given = program, words, os.fspath(log), os.fspath(cwd), env
    process = _CONTEXT.Process(target=_run, args=given, name="a test's process")
    process.start()
    return Process(process)


def run(program: str, *arguments: str | os.PathLike, log: pathlib.Path, **settings) -> str:
    """Runs a program to its end, which must be a good one, and returns what it has said."""
    code = start(program, *arguments, log=log, **settings).wait()
    assert code == 0, log.read_text()
    return log.read_text()


def _run(program: str, arguments: list[str], log: str, cwd: str, env: dict[str, str]) -> None:
    sys.stdout.flush()
    with open(os.devnull) as nothing, open(log, "ab") as said:
        for stream, number in ((nothing, 0), (said, 1), (said, 2)):
            os.dup2(stream.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = ["", *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["-c", *arguments]
    try:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # which `multiprocessing` leaves out


def answers(folder, requests):
    """Answers requests to an export in a process of its own: for `parity.answered_by`."""
    from tfbp.exporting import parity

    program = "import sys; from tfbp.exporting import parity; parity.answer_file(*sys.argv[1:])"

    def ask(*files: str) -> str:
        log = pathlib.Path(f"{files[-1]}.log")
        code = start(program, *files, log=log).wait(300)
        return log.read_text() if code else ""

    return parity.by_files(folder, requests, ask)
