"""A folder that one process at a time may work in."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from absl import logging

from tfbp.errors import UserError
from tfbp.storage import disk

LOCK = ".lock"


@contextlib.contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps every other process out of a folder, and every other caller in this one.

    `folder/.lock` names the process and its host while the block runs. The operating system holds
    the lock itself and drops it with the process, however that ends.

    Raises:
        tfbp.UserError: another holds the folder, or nothing can be written there.
    """
    path = pathlib.Path(folder) / LOCK
    with disk.reported(path):
        file = _taken(path)
    with file:
        try:
            with disk.reported(path):
                file.truncate(0)
                holder = {"process": os.getpid(), "host": socket.gethostname()}
                file.write(json.dumps(holder).encode())
            yield
        finally:
            # Still locked here: whoever has opened it meanwhile sees that it is gone.
            with contextlib.suppress(OSError):
                if _leads_to(path, file):
                    path.unlink()


def _taken(path: pathlib.Path) -> io.FileIO:
    """Returns the lock file, open and locked; no child process inherits it."""
    while True:
        file = io.FileIO(path, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                file.seek(0)
                raise UserError(
                    f"`workdir` is in use by {_holder(file.read())}. "
                    f"Received: {str(path.parent)!r}. "
                    "Wait until that one ends, or give another directory."
                ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                file.close()
                raise
            logging.warning(
                "The file system of %s has no locks (%s): let one process at a time use it.",
                path.parent,
                error.strerror,
            )
        if _leads_to(path, file):
            return file
        file.close()  # Its last holder has removed it meanwhile.


def _leads_to(path: pathlib.Path, file: io.FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _holder(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {int(holder['process'])} on host {holder['host']}"
    except (ValueError, TypeError, KeyError):  # not written yet
        return "another process"
