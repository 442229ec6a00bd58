"""What a folder holds, listed in a file of it: each file's size and SHA-256."""

import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Iterable, Sequence

from tfbp.errors import UserError

MANIFEST = "manifest.json"


class Damaged(UserError):
    """A folder does not hold what its manifest says, or has none."""


def text(folder: pathlib.Path, files: Iterable[pathlib.Path]) -> str:
    """Reads files of a folder and returns their manifest, as JSON:
    {"files": {"relative/path": {"sha256": "0a…", "bytes": 12}}}.
    """
    entries = {
        path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in files
    }
    return json.dumps({"files": entries}, indent=2) + "\n"


def verify(folder: str | os.PathLike, files: Sequence[str] = ()) -> None:
    """Compares a folder with its manifest. Files that the manifest does not name are ignored.

    Args:
        files: paths in the folder that the manifest must name, because they will be read.

    Raises:
        Damaged: the manifest is missing, malformed or does not name one of `files`; or a file that
            it names is missing, has another size or SHA-256, or lies outside the folder: an
            absolute path, one with "..", a link that leads out.
    """
    folder = pathlib.Path(folder)
    entries = _entries(folder)
    for name in files:
        if name not in entries:
            raise _damaged(folder, name, f"is not in {MANIFEST}")
    for name, entry in entries.items():
        reason = _difference(folder, name, entry)
        if reason:
            raise _damaged(folder, name, reason)


def _entries(folder: pathlib.Path) -> dict[str, dict]:
    reason = _difference(folder, MANIFEST, {})
    if reason:
        raise _damaged(folder, MANIFEST, reason)
    try:
        entries = json.loads((folder / MANIFEST).read_bytes())["files"]
        for entry in entries.values():
            if type(entry["sha256"]) is not str or type(entry["bytes"]) is not int:
                raise TypeError
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(folder, MANIFEST, "is no manifest") from error
    return entries


def _difference(folder: pathlib.Path, name: str, entry: dict) -> str | None:
    """Returns how a file differs from its `entry` in the manifest, or None."""
    if os.path.isabs(name) or ".." in pathlib.PurePath(name).parts:
        return "leads out of the folder"
    try:
        path = (folder / name).resolve(strict=True)
        if not path.is_relative_to(folder.resolve()):
            return "leads out of the folder"
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # Reading a pipe would wait for ever.
            return "is no file"
        if entry.get("bytes", status.st_size) != status.st_size:
            return f"has {status.st_size:,} bytes, not {entry['bytes']:,}"
        if "sha256" in entry and entry["sha256"] != _sha256(path):
            return "has changed: its SHA-256 is another"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a zero byte
        return f"cannot be read ({error})"
    return None


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(folder: pathlib.Path, name: str, reason: str) -> Damaged:
    return Damaged(f"`{folder}` is damaged: {name!r} {reason}.")
