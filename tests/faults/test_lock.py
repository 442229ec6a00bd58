"""Two processes on one work directory."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

import tfbp
from tfbp import storage
from tfbp.errors import UserError

HOLDER = """
import subprocess, sys
from tfbp import storage
with storage.lock(sys.argv[1]):
    child = subprocess.Popen(["sleep", "600"], close_fds=False)
    print(child.pid, flush=True)
    sys.stdin.read()
    child.kill()
"""


@contextlib.contextmanager
def holder(folder):
    """Yields a process that holds a folder, and the number of its own child process."""
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(tfbp.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    with process:
        yield process, int(process.stdout.readline())


def in_use(folder):
    with pytest.raises(UserError) as caught, storage.lock(folder):
        pass
    return str(caught.value)


def test_the_second_process_is_told_which_one_is_at_work_and_where(tmp_path):
    with holder(tmp_path) as (process, _):
        text = in_use(tmp_path)
        process.stdin.close()
    assert text.startswith(
        f"`workdir` is in use by process {process.pid} on host {socket.gethostname()}. "
        f"Received: {str(tmp_path)!r}."
    )
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []
    with storage.lock(tmp_path):
        assert in_use(tmp_path)


def test_the_lock_of_a_process_that_was_killed_is_free_though_its_child_lives(tmp_path):
    with holder(tmp_path) as (process, child):
        process.kill()
        process.wait()
        try:
            os.kill(child, 0)  # It lives.
            with storage.lock(tmp_path):
                there = json.loads((tmp_path / ".lock").read_text())
        finally:
            os.kill(child, signal.SIGKILL)
    assert there == {"process": os.getpid(), "host": socket.gethostname()}


def test_one_process_does_not_hold_a_folder_twice(tmp_path):
    for _ in range(2):
        with storage.lock(tmp_path):
            assert f"in use by process {os.getpid()} on host" in in_use(tmp_path)
            assert "in use by" in in_use(tmp_path)  # Being refused does not give it free.
        assert list(tmp_path.iterdir()) == []


def test_an_error_gives_the_folder_free(tmp_path):
    with pytest.raises(KeyboardInterrupt), storage.lock(tmp_path):
        raise KeyboardInterrupt
    with storage.lock(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b'{"process"', b"[]", b"\xff", b'{"process": "x"}'])
def test_a_holder_that_has_not_said_who_it_is(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with open(tmp_path / ".lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert in_use(tmp_path).startswith("`workdir` is in use by another process.")
    with storage.lock(tmp_path):  # What a dead one has left is no lock.
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_a_lock_that_ends_between_opening_and_locking_is_not_taken_for_the_next(
    tmp_path, monkeypatch
):
    first, flock = contextlib.ExitStack(), fcntl.flock
    first.enter_context(storage.lock(tmp_path))

    def late(file, operation):
        first.close()  # The file that has just been opened is removed.
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with storage.lock(tmp_path):
        assert (tmp_path / ".lock").exists()
        assert "in use by" in in_use(tmp_path)


def test_a_folder_that_was_renamed_meanwhile_takes_its_lock_along(tmp_path):
    (tmp_path / "run").mkdir()
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(storage.lock(tmp_path / "run"))
        (tmp_path / "run").rename(tmp_path / "run.1")
        (tmp_path / "run").mkdir()
        second.enter_context(storage.lock(tmp_path / "run"))
        assert in_use(tmp_path / "run.1")
        first.close()
        assert in_use(tmp_path / "run")  # What the first gives free is its own.
        with storage.lock(tmp_path / "run.1"):
            pass


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with storage.lock(tmp_path):
        (record,) = caplog.records
    assert f"The file system of {tmp_path} has no locks" in record.getMessage()


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.EROFS, "the file system is read-only"), (errno.ENOSPC, "The disk is full")],
)
def test_a_folder_in_which_no_lock_can_be_made(tmp_path, monkeypatch, code, reason):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    error = pytest.raises(
        UserError, match=r"/nowhere/\.lock` cannot be written: there is no folder"
    )
    with error, storage.lock(tmp_path / "nowhere"):
        pass
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=reason), storage.lock(tmp_path):
        pass
