"""Which files of a folder are of which part and class: one rule at every level.

Files and folders that are hidden, or that an operating system left, are passed over wherever they
are. Links are followed, and each folder is entered once. What is passed over is counted in one line
of the log.
"""

import collections
import os
import pathlib
from collections.abc import Mapping, Sequence

from absl import logging

from tfbp.data.labels import check_text
from tfbp.errors import UserError, mistake

# The splits, and what folders and columns call them, in any case.
PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
# What operating systems leave in folders.
_SYSTEM = frozenset(
    (
        *("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    )
)


def part_of(name: str) -> str | None:
    """The split that a name stands for: "Val" → "validation"; None if it stands for none."""
    known = (part for part, names in PARTS.items() if name.strip().casefold() in names)
    return next(known, None)


class Tree:
    """The files of a folder by part and class.

    Attributes:
        root: the folder.
        parts: part → its folder: `root` itself as "train" where there are no folders of parts.
        classes: the class names, in label order.
    """

    def __init__(self, root: pathlib.Path, classes: Sequence[str] | None):
        """Reads the names of the parts and classes.

        Args:
            classes: the class folders to use. Default: all, sorted.

        Raises:
            tfbp.UserError: there is no class folder; what takes the place of classes are the
                splits, or folders that all hold the same classes; a folder beside the parts; two
                folders for one part.
        """
        self.root = root
        self._passed_over: collections.Counter[str] = collections.Counter()
        self.parts = self._find_parts(whole=not classes)
        self.classes = tuple(classes) if classes else self._folders(self.parts["train"])
        if not self.classes:
            raise mistake("path", "must hold a folder for each class", str(root))
        check_text("classes", self.classes)
        if not classes:
            for folder in self.parts.values():
                self._check_level(folder)
        self._whole = not classes

    def files(self) -> list[tuple[str, int, str]]:
        """All files as (part, label, path); those of a class in the order of their paths.

        Raises:
            tfbp.UserError: a class folder is missing, empty, or too many.
        """
        found = []
        for part, folder in self.parts.items():
            present = self._folders(folder)
            for name in self.classes:
                if name not in present:
                    raise mistake("classes", f"must be folders in {folder}", name, present)
            for name in present if self._whole else ():
                if name not in self.classes:
                    rule = f"must be the same in {folder} as in `train`"
                    raise mistake("classes", rule, name, self.classes)
            for label, name in enumerate(self.classes):
                files = self._below(folder / name)
                if not files:
                    raise mistake("classes", "must each hold an image", str(folder / name))
                found += [(part, label, file) for file in sorted(files)]
        for folder in {self.root, *self.parts.values()}:
            self._count_files_beside(folder)
        counts = sorted(self._passed_over.items())
        if reasons := ", ".join(f"{count:,} {reason}" for reason, count in counts if count):
            logging.warning("Passed over in %s: %s.", self.root, reasons)
        return found

    def _find_parts(self, whole: bool) -> dict[str, pathlib.Path]:
        folders = self._folders(self.root)
        named = [(part, name) for name in folders if (part := part_of(name))]
        # A class may be called like a part: then it holds files, not folders.
        if not any(part == "train" and self._folders(self.root / name) for part, name in named):
            if whole and len(named) == len(folders) and len({part for part, _ in named}) > 1:
                raise UserError(
                    f"{self.root} must hold a folder for each class. Received: {_shown(folders)}, "
                    "which are names of splits. Put folders of classes into them, with `train` "
                    "among them; or name them as `classes` if that is what they are."
                )
            return {"train": self.root}
        parts: dict[str, pathlib.Path] = {}
        for name in folders:
            part = part_of(name)
            if part is None:
                known = [name for names in PARTS.values() for name in names]
                rule = "must hold no other folder beside `train`"
                raise mistake(str(self.root), rule, name, known)
            if part in parts:
                rule = f"must hold one folder for `{part}`"
                raise mistake(str(self.root), rule, [parts[part].name, name])
            parts[part] = self.root / name
        return {part: parts[part] for part in PARTS if part in parts}

    def _check_level(self, folder: pathlib.Path) -> None:
        """Refuses folders that hold the classes, taken for the classes: years, sites, splits."""
        outer = self._folders(folder)
        inner = {}
        for name in outer:
            inner[name] = self._folders(folder / name)
            if not inner[name] or self._files(folder / name):
                return
        times = collections.Counter(name for names in inner.values() for name in names)
        if len(outer) == 1 and len(times) > 1:
            raise UserError(
                f"{folder} must hold a folder for each class. Received: {outer[0]!r} alone, which "
                f"holds {_shown(sorted(times))}. Did you mean {str(folder / outer[0])!r}?"
            )
        shared = all(any(times[name] > 1 for name in names) for names in inner.values())
        if len(times) < 2 or not shared:
            return
        raise UserError(
            f"{folder} must hold a folder for each class. Its folders hold no file themselves, and "
            "equally named folders, so there are two readings:\n"
            f" - the classes are {_shown(outer)}: say so with `classes`;\n"
            f" - the classes are {_shown(sorted(times))}, in each of these: put the files of a "
            "class into one folder; a pattern for `group` can keep the files of one apart."
        )

    def _below(self, folder: pathlib.Path) -> list[str]:
        """The files below a class folder."""
        # What is above the class is no part of it: a link that leads there is a circle.
        real = folder.resolve()
        entered = {_identity(above) for above in (*real.parents, *self.root.resolve().parents)}
        entered.add(_identity(self.root))
        files: list[str] = []
        folders = [str(folder)]
        while folders:
            current = folders.pop()
            identity = _identity(current)
            if identity in entered:
                self._passed_over["links to folders that are read elsewhere"] += 1
                continue
            entered.add(identity)
            for entry in self._entries(current):
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file() or entry.is_symlink():  # A link to nothing is a bad file.
                    files.append(entry.path)
                else:
                    self._passed_over["neither files nor folders"] += 1
        return files

    def _entries(self, folder: str, count: bool = True) -> list[os.DirEntry[str]]:
        """What stands in a folder and is not passed over."""
        kept = []
        with os.scandir(folder) as entries:
            for entry in entries:
                kind = "folders" if entry.is_dir() else "files"
                if entry.name.startswith("."):
                    self._passed_over[f"hidden {kind}"] += count
                elif entry.name.casefold() in _SYSTEM:
                    self._passed_over[f"system {kind}"] += count
                else:
                    kept.append(entry)
        return kept

    def _folders(self, folder: pathlib.Path) -> tuple[str, ...]:
        entries = self._entries(str(folder), count=False)
        return tuple(sorted(entry.name for entry in entries if entry.is_dir()))

    def _files(self, folder: pathlib.Path) -> bool:
        return any(not entry.is_dir() for entry in self._entries(str(folder), count=False))

    def _count_files_beside(self, folder: pathlib.Path) -> None:
        beside = sum(not entry.is_dir() for entry in self._entries(str(folder)))
        self._passed_over["files beside the class folders"] += beside


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
