"""Rows of one size in a file that several processes may fill, in blocks that carry checksums.

    rows = Rows(folder, {"of": "9f86…"}, count=50_000, size=2_048)
    rows.fill(compute)  # what is not there yet
    rows.read(np.array([17, 4]))

A row is read with `pread`: the pages of a memory map would count as the process's own memory.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from absl import logging

from tfbp import storage
from tfbp.storage import disk

FORMAT = 1
LAYOUT, ROWS, MARKS, CLAIMS = "layout.json", "rows", "marks", "claims"
_MARK_BYTES = 8
_CLAIM_FILES = 32  # More processes than these cannot compute at the same time.
POLL_SECONDS = 0.05
# When the others have finished no block for this long, this process computes theirs too.
PATIENCE_SECONDS = 20.0

Compute = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[int, int], None]


class _Refused(Exception):
    """The file system does not take a block.

    Attributes:
        error: its own.
    """

    def __init__(self, error: OSError):
        super().__init__(error)
        self.error = error


class Rows:
    """Rows of bytes, each with an index, in a folder that is this cache's own.

    A block of rows counts as filled when its mark, written after the rows are on disk, holds their
    CRC-32, the cheapest check there is (4 GB/s here, SHA-256 1.6 GB/s). It has to find accidents:
    it finds every burst of up to 32 bits, and other damage escapes it once in 2³² times.

    Attributes:
        folder: holds `layout.json`, `rows` (its length is what may become filled; the rest is a
            hole), `marks` (one number a block) and `claims` (lock files).
        count: number of rows that the disk has space for.
        size: bytes of a row.
        block: number of rows that are computed, written and checked together.
        filled: number of first rows that can be read.
    """

    def __init__(
        self, folder: str | os.PathLike, layout: Mapping[str, object], *, count: int, size: int
    ):
        """Opens the rows in `folder`, which is made anew where it holds others or is damaged.

        Nobody else may open or remove the folder meanwhile (see `budget.opening`). As long as the
        rows are open, `in_use(folder)` is true everywhere.

        Args:
            layout: identifies the rows, as JSON.
            count, size: see the attributes.

        Raises:
            tfbp.UserError: the folder cannot be written.
        """
        self.folder, self.size, self.block = pathlib.Path(folder), size, block_rows(size)
        _make({"format": FORMAT, "size": size, "block": self.block, **layout}, self.folder)
        with disk.reported(self.folder):
            os.utime(self.folder / LAYOUT)
            self._rows = self._opened(ROWS)
            self._marks = self._opened(MARKS)
            locked(self._rows, fcntl.LOCK_SH)
        self.count = self._grown(count)
        self._whole = np.zeros(-(-self.count // self.block), bool)
        self.filled = 0

    def fill(self, compute: Compute, progress: Progress | None = None) -> None:
        """Computes the rows that are not there, or are damaged, and checks those that are.

        Several processes may do so at once. Each takes blocks that no other has taken, and in the
        end waits for those of the others. The blocks of a dead process are free again, and those
        of one that makes no progress are computed all the same. Where the file system takes no
        more, the rows from there on stay unfilled, and a warning says so.

        Args:
            compute: from indices (int64 [n], n at most `block`, rising by one) to rows
                (uint8 [n, size]).
            progress: called with the number of rows that are there, and of all, after each block.
        """
        damaged, held = 0, np.flatnonzero(~self._whole).tolist()
        done = self.count - sum(len(self._indices(block)) for block in held)
        patient, since = True, time.monotonic()
        try:
            while held:
                pending, held = held, []
                for block in pending:
                    repaired = self._settle(block, compute, patient)
                    if repaired is None:
                        held.append(block)
                        continue
                    damaged += repaired
                    self._whole[block] = True
                    done += len(self._indices(block))
                    if progress:
                        progress(done, self.count)
                    since = time.monotonic()
                if held:
                    time.sleep(POLL_SECONDS)
                    patient = time.monotonic() - since < PATIENCE_SECONDS
        except _Refused as refused:
            error = refused.error
            logging.warning(
                "%s From row %d of %d on they are computed whenever they are needed.",
                disk.refusal(error, self.folder / ROWS) or f"{self.folder}: {error}.",
                self._first_missing(),
                self.count,
            )
        finally:
            self.filled = self._first_missing()
        if damaged:
            logging.warning(
                "%d of %d blocks of the cache %s were damaged: they have been computed anew.",
                damaged,
                len(self._whole),
                self.folder,
            )

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns the rows at `indices`, uint8 [n, size]. Any number of threads may read.

        Args:
            indices: integers [n] from 0 to `filled - 1`.

        Raises:
            IndexError: a row is not filled.
            OSError: the file cannot be read, or has been closed.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.filled:
            raise IndexError(f"The rows 0 to {self.filled - 1} are filled. Received: {indices}.")
        # TensorFlow takes an array over without a copy if it begins at a multiple of 64 bytes.
        space = np.empty(len(indices) * self.size + 64, np.uint8)
        rows = space[-space.ctypes.data % 64 :][: len(indices) * self.size].reshape(-1, self.size)
        starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)  # of neighbours, read at once
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(indices)], strict=False):
            _read(self._rows, rows[start:end], int(indices[start]) * self.size)
        return rows

    def close(self) -> None:
        """Lets go of the files, so that they may be removed. Reading afterwards is an error."""
        # The numbers of the descriptors stay taken: a late reader must not meet another file.
        with open(os.devnull, "rb") as nothing:
            for descriptor in (self._rows, self._marks):
                os.dup2(nothing.fileno(), descriptor, inheritable=False)

    def _opened(self, name: str) -> int:
        descriptor = os.open(self.folder / name, os.O_RDWR)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _grown(self, count: int) -> int:
        """Reserves `count` rows; returns how many there are, fewer where the file cannot grow."""
        blocks = -(-count // self.block)
        sizes = {self._rows: count * self.size, self._marks: blocks * _MARK_BYTES}
        try:
            for descriptor, size in sizes.items():
                if os.fstat(descriptor).st_size < size:
                    os.ftruncate(descriptor, size)
        except OSError as error:
            logging.warning("%s", disk.refusal(error, self.folder / ROWS) or error)
            return 0
        return count

    def _first_missing(self) -> int:
        missing = np.flatnonzero(~self._whole)
        return int(missing[0]) * self.block if len(missing) else self.count

    def _settle(self, block: int, compute: Compute, patient: bool) -> bool | None:
        """Checks or fills a block; returns whether it was damaged, or None: another is filling it.

        Args:
            patient: whether to leave it to the other; else both write the same.
        """
        if self._is_whole(block):
            return False
        with self._claim(block) as mine:
            if not mine and patient:
                return None
            if self._is_whole(block):  # It has been filled since.
                return False
            damaged = self._mark(block) != 0
            self._write(block, compute(self._indices(block)))
        return damaged

    def _indices(self, block: int) -> np.ndarray:
        start = block * self.block
        return np.arange(start, min(start + self.block, self.count))

    def _mark(self, block: int) -> int:
        """Returns the mark of a block; 0: it is not filled; 1: the mark cannot be read."""
        try:
            mark = os.pread(self._marks, _MARK_BYTES, block * _MARK_BYTES)
        except OSError:
            return 1
        return int.from_bytes(mark, "little")

    def _is_whole(self, block: int) -> bool:
        mark = self._mark(block)
        if not mark:
            return False
        rows = np.empty((len(self._indices(block)), self.size), np.uint8)
        try:
            _read(self._rows, rows, block * self.block * self.size)
        except OSError:  # A sector that cannot be read is computed and written again.
            return False
        return mark == _mark_of(rows, block)

    @contextlib.contextmanager
    def _claim(self, block: int) -> Iterator[bool]:
        """Yields whether this process, and no other, may fill a block."""
        try:
            descriptor = os.open(
                self.folder / CLAIMS / str(block % _CLAIM_FILES), os.O_RDWR | os.O_CREAT, 0o666
            )
        except OSError as error:
            raise _Refused(error) from error
        try:
            yield locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)

    def _write(self, block: int, rows: np.ndarray) -> None:
        mark = _mark_of(rows, block).to_bytes(_MARK_BYTES, "little")
        try:
            _write(self._rows, rows, block * self.block * self.size)
            # Some file systems refuse only here; and a mark must not outlive its rows.
            _sync(self._rows)
            _write(self._marks, np.frombuffer(mark, np.uint8), block * _MARK_BYTES)
        except OSError as error:
            raise _Refused(error) from error


def block_rows(size: int) -> int:
    """Returns how many rows of `size` bytes make a block: 64, or as many as 16 MiB hold."""
    return max(1, min(64, 2**24 // size))


def is_cache(folder: pathlib.Path) -> bool:
    """Tells whether a folder was made by `Rows`, of whatever format."""
    return all(os.path.isfile(folder / name) for name in (LAYOUT, ROWS, MARKS))


def in_use(folder: pathlib.Path) -> bool:
    """Tells whether rows are open, in this process or another, or are not ours to remove."""
    try:
        descriptor = os.open(folder / ROWS, os.O_RDWR)
    except PermissionError:
        return True
    try:
        return not locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _make(layout: dict[str, object], folder: pathlib.Path) -> None:
    """Makes a folder of no rows, unless it is there with an equal layout."""
    text = json.dumps(layout, sort_keys=True)
    if is_cache(folder):
        with contextlib.suppress(OSError):
            if (folder / LAYOUT).read_bytes() == text.encode() and (folder / CLAIMS).is_dir():
                return
    if folder.exists():
        logging.warning("The cache %s is damaged, or of another version: made anew.", folder)
        storage.remove(folder)
    with storage.publish(folder) as beside:
        (beside / LAYOUT).write_text(text, encoding="utf-8")
        (beside / ROWS).touch()
        (beside / MARKS).touch()
        (beside / CLAIMS).mkdir()


def locked(descriptor: int, how: int) -> bool:
    """Locks an open file; returns False where another holds it.

    The lock is the open file's, not the process's: it excludes other threads too, and the kernel
    drops it when the process ends, however that may be.
    """
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        # Without locks two processes may do the same work; the rows are right all the same.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
    return True


def _mark_of(rows: np.ndarray, block: int) -> int:
    """Returns the mark of a filled block, never 0. The same rows as another block have another."""
    return 1 << 32 | zlib.crc32(rows.data, block)


def _read(descriptor: int, rows: np.ndarray, offset: int) -> None:
    left = rows.data.cast("B")
    while left:
        got = os.preadv(descriptor, [left], offset)
        if not got:
            raise OSError(errno.EIO, "The rows have been cut off, or closed")
        left, offset = left[got:], offset + got


def _write(descriptor: int, rows: np.ndarray, offset: int) -> None:
    left = rows.data.cast("B")
    while left:
        put = os.pwrite(descriptor, left, offset)
        left, offset = left[put:], offset + put


# The times of a file, which fsync writes too, do not matter here. Not every system has it.
_sync = getattr(os, "fdatasync", os.fsync)
