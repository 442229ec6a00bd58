"""Files and folders that are there whole or not at all: written beside, synced, renamed."""

import contextlib
import fcntl
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence

from tfbp.storage import disk, manifest

# The names that `_hidden` gives, and those of older versions, without the second number.
_LEFTOVER = re.compile(r"\..+\.\d+\.(tmp|old)")


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Replaces the file at `path` by `content`: a reader sees the whole old file or the whole new.

    Raises:
        tfbp.UserError: the disk is full, read-only or fails, or the folder is gone.
    """
    path = pathlib.Path(path)
    with _beside(path, len(content)) as beside:
        beside.write_bytes(content)
        _sync(beside)
        os.replace(beside, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Like `write_bytes`, for text in UTF-8."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Like `write_bytes`, for a file that the block writes: yields the path to write to, which has
    the same name in a folder of its own.

    Raises:
        tfbp.UserError: as `write_bytes`, also for what the disk refuses in the block.
    """
    path = pathlib.Path(path)
    with _beside(path) as beside:
        beside.mkdir()
        yield beside / path.name
        _sync(beside / path.name)
        os.replace(beside / path.name, path)
        beside.rmdir()


@contextlib.contextmanager
def publish(
    folder: str | os.PathLike, *, manifest: bool = False, needed: int = 0
) -> Iterator[pathlib.Path]:
    """Yields an empty folder beside `folder`, and renames it to `folder` when the block succeeds.

    Every file is synced to disk first. When the block raises, nothing is left behind.

    Args:
        manifest: whether to add `manifest.json`, which `verify` reads.
        needed: bytes that will be written; 0: not known. If fewer are free, the block does not
            begin.

    Raises:
        FileExistsError: `folder` exists when the block ends.
        tfbp.UserError: the disk is full, read-only or fails, or the folder above is gone, also
            while the block runs.
    """
    folder = pathlib.Path(folder)
    with disk.reported(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if needed:
        disk.require_space(folder, needed)
    with _beside(folder, needed) as beside:
        beside.mkdir()
        yield beside
        if manifest:
            _add_manifest(beside)
        for path in sorted(beside.rglob("*"), reverse=True):
            _sync(path)
        _sync(beside)
        if folder.exists():  # Renaming replaces an empty folder without a word.
            raise FileExistsError(f"{folder} exists already")
        try:
            os.rename(beside, folder)
        except OSError as error:
            if folder.exists():
                raise FileExistsError(f"{folder} exists already") from error
            raise


def write_manifest(folder: str | os.PathLike, files: Sequence[str]) -> None:
    """Replaces `folder/manifest.json` by one that names `files`, which are there already.

    Args:
        files: paths in the folder; they are synced to disk before the manifest is.

    Raises:
        tfbp.UserError: as `write_bytes`, or one of the files is not there.
    """
    folder = pathlib.Path(folder)
    paths = [folder / name for name in files]
    with disk.reported(folder / manifest.MANIFEST):
        for path in paths:
            _sync(path)
        text = manifest.text(folder, paths)
    write_text(folder / manifest.MANIFEST, text)


def remove(folder: str | os.PathLike) -> None:
    """Removes a folder, or a link to one, under whose name no partial folder is ever seen.

    One that another process has removed already is no error.

    Raises:
        tfbp.UserError: the disk is read-only or fails.
    """
    folder = pathlib.Path(folder)
    aside = _hidden(folder, "old")
    with disk.reported(folder, "removed"), contextlib.ExitStack() as stack:
        try:
            parent = stack.enter_context(_in_use(folder.parent))
            os.rename(folder, aside)
        except FileNotFoundError:
            return
        os.fsync(parent)
        if aside.is_symlink():
            aside.unlink()
        else:
            shutil.rmtree(aside)


def sweep(folder: str | os.PathLike) -> None:
    """Removes what processes left in a folder when they died while writing.

    Nothing is removed while anybody writes there. What cannot be removed stays.
    """
    folder = pathlib.Path(folder)
    with contextlib.suppress(OSError), _open(folder) as descriptor:
        # Writers hold a shared lock, which the kernel drops with the process. Unlike a process id
        # this is right across containers and hosts.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in os.listdir(descriptor):
            if _LEFTOVER.fullmatch(name):
                _discard(folder / name)


@contextlib.contextmanager
def _beside(path: pathlib.Path, needed: int = 0) -> Iterator[pathlib.Path]:
    """Yields a new name beside `path`. The block makes it and, at its end, renames it to `path`;
    when it raises, what it has made is removed, and a refusal of the disk becomes a user's error.
    """
    beside = _hidden(path, "tmp")
    try:
        with _in_use(path.parent) as parent:
            yield beside
            os.fsync(parent)
    except BaseException as error:
        try:  # before the space is free again
            refused = disk.refusal(error, path, needed=needed, written=_size(beside))
        finally:
            _discard(beside)
        if refused is None:
            raise
        raise refused from error


def _add_manifest(folder: pathlib.Path) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    (folder / manifest.MANIFEST).write_text(manifest.text(folder, files), encoding="utf-8")


def _hidden(path: pathlib.Path, ending: str) -> pathlib.Path:
    # TensorFlow Serving takes any child whose whole name is an integer: this name never is.
    # The process id is for people: in two containers both may be 1.
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.randbits(32)}.{ending}")


def _size(path: pathlib.Path) -> int:
    """Returns the bytes on the disk that a file or a folder takes."""
    sizes = []
    with contextlib.suppress(OSError):
        sizes += [each.lstat().st_blocks * 512 for each in (path, *path.rglob("*"))]
    return sum(sizes)


def _discard(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _in_use(folder: pathlib.Path) -> Iterator[int]:
    """Yields a descriptor of a folder, in which `sweep` removes nothing meanwhile."""
    with _open(folder) as descriptor:
        with contextlib.suppress(OSError):  # Without locks `sweep` gets none either.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield descriptor


def _sync(path: pathlib.Path) -> None:
    with _open(path) as descriptor:
        os.fsync(descriptor)
