"""Files and folders that are there whole or not at all: written beside, synced, renamed."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Replaces the file at `path` by `content`: a reader sees the old file or the new, whole."""
    path = pathlib.Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Like `write_bytes`, for text in UTF-8."""
    write_bytes(path, text.encode())


def remove(folder: str | os.PathLike) -> None:
    """Removes a folder, or a link to one: at no time is a part of it there under its name.

    One that is gone already, by another process, is no error.
    """
    folder = pathlib.Path(folder)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    _sync(folder.parent)
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside)


@contextlib.contextmanager
def publish(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields an empty folder beside `folder`, and renames it to `folder` when the block succeeds.

    Every file is synced to disk first. When the block raises, nothing is left behind.

    Raises:
        FileExistsError: `folder` exists when the block ends.
    """
    folder = pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # TensorFlow Serving takes any child whose whole name is an integer: this name never is.
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
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
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
