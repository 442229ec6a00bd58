"""How much of a disk the caches in a folder may take, and which of them goes first."""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

from absl import logging

from tfbp import storage
from tfbp.caching import row_file
from tfbp.storage import disk

SPARE = 2**30  # bytes of the disk that are left to checkpoints and exports


@contextlib.contextmanager
def opening(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lets one caller at a time open or remove caches in a folder; the others wait.

    Raises:
        tfbp.UserError: the folder cannot be written.
    """
    path = pathlib.Path(folder) / ".opening"
    with disk.reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        row_file.locked(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def available(folder: str | os.PathLike[str], name: str, limit: float) -> int:
    """Returns how many bytes the cache `folder/name` could have. No cache is made or removed.

    Args:
        limit: bytes that all caches in the folder may have together.

    Raises:
        tfbp.UserError: the folder is there and cannot be written.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        return _left(folder / name, (), (), limit)
    with opening(folder):
        others = _others(folder, name)
        kept = [other for other in others if row_file.in_use(other)]
        unused = [other for other in others if other not in kept]
        return _left(folder / name, kept, unused, limit)


def reserve(folder: str | os.PathLike[str], name: str, needed: int, limit: float) -> int:
    """Frees space for the cache `folder/name`, and returns how many of `needed` bytes it may have.

    Until they fit, other caches that nobody has open are removed, the least recently opened first.
    Anything in the folder that is not a cache is left alone. Call it inside `opening`.

    Args:
        limit: bytes that all caches in the folder may have together.

    Raises:
        tfbp.UserError: a cache cannot be removed.
    """
    folder = pathlib.Path(folder)
    others = _others(folder, name)
    for other in tuple(others):
        if _left(folder / name, others, (), limit) >= needed:
            break
        if not row_file.in_use(other):
            logging.info("%s is removed to free space.", other)
            storage.remove(other)
            others.remove(other)
    return min(needed, _left(folder / name, others, (), limit))


def _others(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Returns the other caches in a folder, the least recently opened first."""
    others = [path for path in folder.iterdir() if path.name != name and row_file.is_cache(path)]
    return sorted(others, key=lambda path: (path / row_file.LAYOUT).stat().st_mtime_ns)


def _left(
    cache: pathlib.Path,
    kept: Sequence[pathlib.Path],
    removed: Sequence[pathlib.Path],
    limit: float,
) -> int:
    """Returns how many bytes a cache may have beside others, including those that it has.

    Args:
        kept: caches that stay. Each counts with everything that was reserved for it.
        removed: caches that count as removed.
    """
    limit -= sum((other / row_file.ROWS).stat().st_size for other in kept)
    parent = next(folder for folder in cache.parents if folder.is_dir())
    free = shutil.disk_usage(parent).free - SPARE
    own = _on_disk(cache)
    return max(own, 0, int(min(limit, free + own + sum(map(_on_disk, removed)))))


def _on_disk(cache: pathlib.Path) -> int:
    """Returns the bytes that a cache has taken; 0 where there is none."""
    try:
        return (cache / row_file.ROWS).stat().st_blocks * 512
    except FileNotFoundError:
        return 0
