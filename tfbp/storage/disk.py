"""What a disk refuses, said so that it can be mended: full, no inodes, read-only, gone."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from tfbp.errors import CheckFailed, UserError

# The errors that nothing but a file system gives.
_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not be that large (`ulimit -f`, or the file system's own limit)",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk, or the way to it, fails (input/output error)",
}


def require_space(path: str | os.PathLike, needed: int) -> None:
    """Refuses a path whose file system has not the space for what is to be written.

    Args:
        path: file or folder; need not exist, nor the folders above it.
        needed: bytes that will be written.

    Raises:
        tfbp.UserError: fewer bytes are free, or no inodes are left.
    """
    with reported(path):
        there = _status(pathlib.Path(path))
    if _without_inodes(there) or _free(there) < needed:
        raise UserError(_full(path, there, needed, 0))


@contextlib.contextmanager
def reported(path: str | os.PathLike, deed: str = "written") -> Iterator[None]:
    """Turns what the file system refuses inside the block into an error that names `path`.

    Args:
        deed: what cannot be done, as a participle.

    Raises:
        tfbp.UserError: the disk is full, read-only or failing, or the folder of `path` is gone.
    """
    try:
        yield
    except Exception as error:
        told = refusal(error, path, deed=deed)
        if told is None:
            raise
        raise told from error


def refusal(
    error: BaseException,
    path: str | os.PathLike,
    *,
    deed: str = "written",
    needed: int = 0,
    written: int = 0,
) -> UserError | None:
    """Returns what to tell a user about an error while `path` was written.

    Args:
        deed: see `reported`.
        needed: bytes of all that is to be written; 0: not known.
        written: bytes on the disk that a part of it has taken, and will give back.

    Returns:
        None: it is not about `path`, or is none of the file system's.
    """
    place = pathlib.Path(path)
    code = _code(error, place)
    if code is None:
        return None
    if code == errno.ENOSPC:
        return UserError(_full(path, _status(place), needed, written))
    if code in _DISK:
        reason = _DISK[code]
    elif not place.parent.is_dir():
        is_one = place.parent.exists()
        reason = (
            f"`{place.parent}` is no folder" if is_one else f"there is no folder `{place.parent}`"
        )
    else:
        reason = f"{os.strerror(code)} ({error.filename})"
    size = f" It needs {needed:,} bytes." if needed and code in (errno.EDQUOT, errno.EFBIG) else ""
    return UserError(f"`{path}` cannot be {deed}: {reason}.{size}")


def _code(error: BaseException, path: pathlib.Path) -> int | None:
    """Returns the number of the system's error, where it is about `path`."""
    if isinstance(error, UserError | CheckFailed):
        return None
    if isinstance(error, FileExistsError) and path.parent.is_dir():
        return None  # It is for whoever writes there to say what that means.
    if isinstance(error, OSError) and error.errno is not None:
        if isinstance(error.filename, str | bytes | os.PathLike):
            return error.errno if _near(os.fsdecode(error.filename), path) else None
        return error.errno if error.errno in _DISK or not path.parent.is_dir() else None
    if isinstance(error, Exception):
        # TensorFlow hands on the words of the system's error, not its number.
        return next((code for code in _DISK if os.strerror(code) in str(error)), None)
    return None


def _near(name: str, path: pathlib.Path) -> bool:
    """Tells whether a file is in the folder of `path`, or is a folder above it."""
    named = pathlib.Path(name)
    return path.parent in (named, *named.parents) or named in path.parents


def _status(path: pathlib.Path) -> os.statvfs_result:
    """Returns the state of the file system of a path, or of the nearest folder above that is."""
    for place in (path, *path.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.statvfs(place)
    return os.statvfs("/")  # Somebody has removed the working directory.


def _free(there: os.statvfs_result) -> int:
    return there.f_bavail * there.f_frsize


def _without_inodes(there: os.statvfs_result) -> bool:
    """Some file systems make inodes as they need them, and count none."""
    return there.f_files > 0 and there.f_favail == 0


def _full(path: str | os.PathLike, there: os.statvfs_result, needed: int, written: int) -> str:
    free = _free(there) + written
    if _without_inodes(there):
        need = "an inode for each file, none is free"
    elif needed:
        need = f"{needed:,} bytes more, {free:,} are free"
    else:
        need = f"more than the {free:,} bytes that are free"
    return f"The disk is full: `{path}` needs {need}."
