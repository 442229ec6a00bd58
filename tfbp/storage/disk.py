"""What a disk refuses, in words that help: full, no inodes left, read-only, gone."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from tfbp.errors import CheckFailed, UserError

# Errors that only a file system raises.
_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not be that large (`ulimit -f`, or the file system's own limit)",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk, or the way to it, fails (input/output error)",
}


def require_space(path: str | os.PathLike, needed: int) -> None:
    """Refuses a path whose file system lacks the space for what is to be written.

    Args:
        path: file or folder; need not exist, nor the folders above it.
        needed: bytes that will be written.

    Raises:
        tfbp.UserError: fewer bytes are free, or no inodes are left.
    """
    with reported(path):
        status = _status(pathlib.Path(path))
    if _without_inodes(status) or _free(status) < needed:
        raise UserError(_full(path, status, needed, 0))


@contextlib.contextmanager
def reported(path: str | os.PathLike, action: str = "written") -> Iterator[None]:
    """Turns what the file system refuses inside the block into an error that names `path`.

    Args:
        action: what cannot be done, as a participle.

    Raises:
        tfbp.UserError: the disk is full, read-only or failing, or the folder of `path` is gone.
    """
    try:
        yield
    except Exception as error:
        refused = refusal(error, path, action=action)
        if refused is None:
            raise
        raise refused from error


def refusal(
    error: BaseException,
    path: str | os.PathLike,
    *,
    action: str = "written",
    needed: int = 0,
    written: int = 0,
) -> UserError | None:
    """Translates an error raised while `path` was written into one for the user.

    Args:
        action: see `reported`.
        needed: bytes of all that is to be written; 0: not known.
        written: bytes on the disk that a partial file has taken, and will give back.

    Returns:
        None: the error is not about `path`, or does not come from the file system.
    """
    target = pathlib.Path(path)
    code = _code(error, target)
    if code is None:
        return None
    if code == errno.ENOSPC:
        return UserError(_full(path, _status(target), needed, written))
    if code in _DISK:
        reason = _DISK[code]
    elif not target.parent.is_dir():
        folder = f"`{target.parent}`"
        reason = (
            f"{folder} is no folder" if target.parent.exists() else f"there is no folder {folder}"
        )
    else:
        reason = f"{os.strerror(code)} ({getattr(error, 'filename', path)})"
    size = f" It needs {needed:,} bytes." if needed and code in (errno.EDQUOT, errno.EFBIG) else ""
    return UserError(f"`{path}` cannot be {action}: {reason}.{size}")


def _code(error: BaseException, path: pathlib.Path) -> int | None:
    """Returns the number of the system's error if it is about `path`."""
    if isinstance(error, UserError | CheckFailed):
        return None
    if isinstance(error, FileExistsError) and path.parent.is_dir():
        return None  # What that means is for the caller to say.
    if isinstance(error, OSError) and error.errno is not None:
        if isinstance(error.filename, str | bytes | os.PathLike):
            return error.errno if _near(os.fsdecode(error.filename), path) else None
        return error.errno if error.errno in _DISK or not path.parent.is_dir() else None
    if isinstance(error, Exception):
        # TensorFlow passes on the text of the system's error, not its number.
        return next((code for code in _DISK if os.strerror(code) in str(error)), None)
    return None


def _near(name: str, path: pathlib.Path) -> bool:
    """Whether a file is in the folder of `path`, or is a folder above it."""
    named = pathlib.Path(name)
    return path.parent in (named, *named.parents) or named in path.parents


def _status(path: pathlib.Path) -> os.statvfs_result:
    """Returns the state of a path's file system; where it does not exist, of the folder above."""
    for existing in (path, *path.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.statvfs(existing)
    return os.statvfs("/")  # Somebody has removed the working directory.


def _free(status: os.statvfs_result) -> int:
    return status.f_bavail * status.f_frsize


def _without_inodes(status: os.statvfs_result) -> bool:
    """Some file systems make inodes as they need them, and count none."""
    return status.f_files > 0 and status.f_favail == 0


def _full(path: str | os.PathLike, status: os.statvfs_result, needed: int, written: int) -> str:
    free = _free(status) + written
    if _without_inodes(status):
        need = "an inode for each file, none is free"
    elif needed:
        need = f"{needed:,} bytes more, {free:,} are free"
    else:
        need = f"more than the {free:,} bytes that are free"
    return f"The disk is full: `{path}` needs {need}."
