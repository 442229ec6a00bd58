"""The versions of one model: which is loaded, which answers, which is on its way out."""

import os
import pathlib
import threading
import time

from absl import logging

from tfbp.exporting import layout
from tfbp.serving.limits import Limits
from tfbp.serving.metrics import Metrics
from tfbp.serving.status import Code, StatusError
from tfbp.serving.version import Version

# What a version's folder looked like: its name (`00000123` is version 123), and of each file
# its path, size, time and inode.
Stamp = tuple[str, tuple[tuple[str, int, int, int], ...]]


class Model:
    """One model, whose newest version answers, and those that are named beside it.

    A version is loaded and warmed up before it takes the place of another. One that cannot be
    loaded takes no place; it is tried again when its files change. One whose files still change is
    left alone until they rest for one look.

    Args:
        name: of the model.
        folder: holds `<version>/saved_model.pb`.
        limits: for the signatures.
        kept: versions that stay loaded beside the newest.
        metrics: counts what is loaded.
    """

    def __init__(
        self,
        name: str,
        folder: pathlib.Path,
        limits: Limits,
        kept: set[int],
        metrics: Metrics,
    ):
        self._folder, self._limits, self._kept, self._metrics = folder, limits, kept, metrics
        self._name = f"{name!a}"[1:-1]  # for the log, in which a name ends no line
        self._lock = threading.Lock()  # guards the two dictionaries that requests read
        self._serving: dict[int, Version] = {}
        self._states: dict[int, tuple[str, StatusError | None]] = {}
        self._retired: list[Version] = []
        self._loaded: dict[int, Stamp] = {}
        self._broken: dict[int, Stamp] = {}
        self._seen: dict[int, Stamp] | None = None
        self._unreadable = ""

    def acquire(self, number: int | None) -> Version | None:
        """Returns the newest version, or the one asked for, with the caller among its users."""
        with self._lock:
            newest = max(self._serving, default=0)
            version = self._serving.get(newest if number is None else number)
            if version is not None:
                version.acquire()
            return version

    def states(self) -> dict[int, tuple[str, StatusError | None]]:
        """Returns version → state and error, also of versions that are gone."""
        with self._lock:
            return dict(self._states)

    def scan(self) -> None:
        """Looks at the folder once: loads, swaps and retires what has come and gone.

        Where it cannot be read or is gone, as a network's may be for a while, the log says so once,
        and what is loaded goes on.
        """
        try:
            os.stat(self._folder)
            found = _stamps(self._folder)
        except OSError as error:
            if str(error) != self._unreadable:
                logging.error("The folder of %s cannot be read: %s", self._name, error)
            self._unreadable = str(error)
            return
        self._unreadable = ""
        before = found if self._seen is None else self._seen
        self._seen = found
        # What is missing for the first time may be just being replaced: it is there and unrested.
        found = {number: before[number] for number in self._serving if number in before} | found
        rests = {n for n in found if n in self._seen and before.get(n) == found[n]}
        newest = self._load_newest(found, rests)
        for number in sorted(self._kept & rests - {newest}):
            self._load(number, found[number])
        for number in self._serving.keys() - (self._kept & found.keys()) - {newest}:
            self._retire(number)
        self._close_drained()

    def close(self) -> None:
        """Frees all versions, which nobody may use any more."""
        for number in list(self._serving):
            self._retire(number)
        for version in self._retired:
            self._end(version)

    def _load_newest(self, found: dict[int, Stamp], rests: set[int]) -> int | None:
        """Returns the largest version that answers, loaded now where it was not."""
        for number in sorted(found, reverse=True):
            if number in rests and self._load(number, found[number]):
                return number
            if number in self._serving:  # Its files change or broke; what is loaded goes on.
                return number
        return None

    def _load(self, number: int, stamp: Stamp) -> bool:
        """Returns whether the version with these files answers."""
        if self._loaded.get(number) == stamp:
            return True
        if self._broken.get(number) == stamp:
            return False
        replaced = number in self._serving
        if not replaced:
            self._note(number, "LOADING")
        began = time.perf_counter()
        try:
            version = Version(self._folder / stamp[0], self._limits)
        except Exception as error:  # Whatever is wrong with its files, the others go on.
            self._metrics.load(f"{self._name}/{number}", False, time.perf_counter() - began)
            logging.error("Version %d of %s cannot be loaded: %s", number, self._name, error)
            self._broken[number] = stamp
            if not replaced:
                message = f"Version {number} cannot be loaded; the server's log says why."
                self._note(number, "END", StatusError(Code.UNKNOWN, message))
            return False
        self._metrics.load(f"{self._name}/{number}", True, time.perf_counter() - began)
        with self._lock:
            old = self._serving.get(number)
            self._serving[number] = version
            self._states[number] = ("AVAILABLE", None)
        if old is not None:
            self._retired.append(old)
        self._loaded[number] = stamp
        self._broken.pop(number, None)
        logging.info("Version %d of %s is served.", number, self._name)
        return True

    def _retire(self, number: int) -> None:
        with self._lock:
            self._retired.append(self._serving.pop(number))
            self._states[number] = ("UNLOADING", None)
        self._loaded.pop(number, None)

    def _close_drained(self) -> None:
        for version in [version for version in self._retired if not version.in_use]:
            self._end(version)
            self._retired.remove(version)

    def _end(self, version: Version) -> None:
        version.close()
        if version.number not in self._serving:
            self._note(version.number, "END")
            logging.info("Version %d of %s is unloaded.", version.number, self._name)

    def _note(self, number: int, state: str, error: StatusError | None = None) -> None:
        with self._lock:
            self._states[number] = (state, error)


def _stamps(folder: pathlib.Path) -> dict[int, Stamp]:
    return {
        number: (path.name, tuple(sorted(_files(str(path), ""))))
        for number, path in layout.versions(folder).items()
    }


def _files(folder: str, prefix: str) -> list[tuple[str, int, int, int]]:
    files = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # A link is not followed down: it may lead in circles.
                if entry.is_dir(follow_symlinks=False):
                    files += _files(entry.path, f"{prefix}{entry.name}/")
                else:
                    files.append(_file(entry, prefix + entry.name))
    except OSError:  # Deleted while it was looked at, or not to be read, as loading will tell.
        pass
    return files


def _file(entry: os.DirEntry[str], name: str) -> tuple[str, int, int, int]:
    try:
        at = entry.stat()
    except OSError:  # It leads nowhere. Whether the model needs it, loading will tell.
        return name, -1, -1, -1
    return name, at.st_size, at.st_mtime_ns, at.st_ino
