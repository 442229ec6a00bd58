"""Tables of numbers: CSV files, and the points of two textbook lines."""

import csv
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from absl import logging

from tfbp.data import grouping, labels, missing, tags
from tfbp.data.class_folders import PARTS, part_of
from tfbp.data.examples import Examples
from tfbp.data.image_files import OnBad, check_on_bad
from tfbp.data.splits import Splits
from tfbp.errors import UserError, mistake

# Rows that a message names.
_NAMED = 20
# What pandas calls an index that it reads as a column, once or more often.
_INDEX = re.compile(r"Unnamed: 0(\.\d+)*")


@dataclasses.dataclass(frozen=True)
class Table:
    """The cells of a CSV file.

    Attributes:
        path: the file.
        columns: the name of each column → its cells, without spaces around them.
        rows: the number of each row in the file, from 1, the header not counted.
    """

    path: str
    columns: dict[str, list[str]]
    rows: list[int]

    def column(self, argument: str, name: str) -> list[str]:
        """The cells of a column.

        Raises:
            tfbp.UserError: there is none of that name; the error is about `argument`.
        """
        if name not in self.columns:
            raise mistake(argument, f"must name one column of {self.path}", name, self.columns)
        return self.columns[name]

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Some columns as numbers: int64 [rows, columns] if all are whole, else float64.

        Raises:
            tfbp.UserError: a cell is no finite number, or has more digits than can be held.
        """
        columns = [
            [self._number(cell, row, name) for row, cell in self._cells(name)] for name in names
        ]
        whole = all(isinstance(number, int) for column in columns for number in column)
        for name, column in zip(names, columns, strict=True):
            for (row, cell), number in zip(self._cells(name), column, strict=True):
                if not (-(2**63) <= number < 2**63 if whole else float(number) == number):
                    where = f"row {row}, column {name!r} of {self.path}"
                    rule = f"must have numbers of no more digits than can be held ({where})"
                    raise mistake("data", rule, cell)
        return np.array(columns, np.int64 if whole else np.float64).T

    def _cells(self, name: str) -> Iterator[tuple[int, str]]:
        return zip(self.rows, self.columns[name], strict=True)

    def _number(self, cell: str, row: int, name: str) -> int | float:
        number = float(cell) if is_number(cell) else math.nan
        if not math.isfinite(number):
            where = f"row {row}, column {name!r} of {self.path}"
            raise UserError(f"Every cell must be a finite number ({where}). Received: {cell!r}.")
        return int(cell) if re.fullmatch(r"[+-]?\d+", cell) else number

    def complete(self, on_bad: OnBad, names: Collection[str]) -> "Table":
        """The table without rows in which a cell is missing: see `missing.TEXT`.

        Args:
            on_bad: "fail": such rows are an error, which lists them; "skip": they are left out, and
                a warning lists them.
            names: cells of these are no missing ones: a class may be called "NA".

        Raises:
            tfbp.UserError: rows lack cells, or no row is left.
        """
        check_on_bad(on_bad)
        gaps = [
            (position, name, cells[position])
            for position in range(len(self.rows))
            for name, cells in self.columns.items()
            if cells[position] in missing.TEXT and cells[position] not in names
        ]
        if not gaps:
            return self
        lacking = {position for position, *_ in gaps}
        lines = [
            f" - row {self.rows[position]}, column {name!r}: {cell!r}"
            for position, name, cell in gaps[:_NAMED]
        ]
        if len(gaps) > _NAMED:
            lines.append(f"   … and {len(gaps) - _NAMED:,} more cells")
        head = f"Rows of {self.path} with missing cells, {len(lacking):,} of {len(self.rows):,}:"
        report = "\n".join([head, *lines])
        if on_bad == "fail":
            raise UserError(
                f"{report}\nFill them, or leave such rows out with `on_bad_example=skip`. A class "
                "that is called so is named in `classes`."
            )
        if len(lacking) == len(self.rows):
            raise UserError(f"{report}\nNo row is left.")
        logging.warning("%s\nThey are left out.", report)
        kept = [position for position in range(len(self.rows)) if position not in lacking]
        columns = {
            name: [cells[position] for position in kept] for name, cells in self.columns.items()
        }
        return Table(self.path, columns, [self.rows[position] for position in kept])


def read_csv(path: str | os.PathLike) -> Table:
    """Reads a CSV file with a header row: UTF-8, cells separated by commas.

    A first column without a name, as pandas writes its index, is left out with a word, and so are
    those that pandas has read and named for it, "Unnamed: 0".

    Raises:
        tfbp.UserError: no such file, no rows, a row of another length, or columns that have no name
            or the same.
    """
    try:
        with pathlib.Path(path).expanduser().open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise mistake("data", f"must name a CSV file that can be read ({error})", path) from error
    header, *rows = rows or [[]]
    header = [name.strip() for name in header]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(
                f"Row {number} of {path} must have {len(header)} cells. Received: {len(row)}."
            )
    columns = [[cell.strip() for cell in cells] for cells in zip(*rows, strict=True)]
    if header and not header[0]:
        logging.warning(
            "The first column of %s has no name: it is taken for an index, and left out. "
            "To use it, give it a name in the header.",
            path,
        )
        header, columns = header[1:], columns[1:]
    while header and _INDEX.fullmatch(header[0]):
        logging.warning(
            "The first column of %s, %r, is what pandas calls an index that it has read: it is "
            "left out. To use it, give it another name in the header.",
            path,
            header[0],
        )
        header, columns = header[1:], columns[1:]
    if "" in header:
        number = header.index("") + 1
        raise UserError(f"The columns of {path} must have names: number {number} has none.")
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"The columns of {path} must have different names: {twice[0]!r} has two.")
    if not rows:
        raise UserError(f"{path} must hold at least one row below its header.")
    return Table(str(path), dict(zip(header, columns, strict=True)), [*range(1, len(rows) + 1)])


def load(
    path: str | os.PathLike,
    *,
    target: str,
    classes: Sequence[str] | None = None,
    weight: str | None = None,
    group: str | None = None,
    split: str | None = None,
    order: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    on_bad_example: OnBad = "fail",
) -> Splits:
    """Loads a CSV file: a column or more are targets, the others numbers to predict them from.

    Args:
        path: see `read_csv`.
        target: the column to predict: class names when its first cell is not a number or there are
            `classes`, and else numbers. Or several, between commas: where all their cells are 0 or
            1, one label for each row, or several (see `labels.separate`), called as the columns.
        classes: the classes to use, in the order of their labels. Default: all, sorted.
        weight: a column of weights: see `Splits.from_arrays`.
        group: a column that says what each row belongs to: see `Splits.from_arrays`.
        split: a column that says which split each row is of; what is missing is cut from `train`.
        order: a column of numbers or dates: the last rows are held out.
        validation, test: fractions held out, in [0, 1).
        seed: which rows are held out.
        on_bad_example: of rows with missing cells: "fail", or "skip" to leave them out.

    Raises:
        tfbp.UserError: the table cannot be read or lacks a column, a row or a cell, or what
            `Splits.from_arrays` raises.
    """
    table = read_csv(path)
    targets = [target] if target in table.columns else [name.strip() for name in target.split(",")]
    others = {"weight": weight, "group": group, "split": split, "order": order}
    roles = [("target", name) for name in targets]
    roles += [(role, name) for role, name in others.items() if name is not None]
    used = [name for _, name in roles]
    for role, name in roles:
        table.column(role, name)
        if used.count(name) > 1:
            raise mistake(role, "must name a column that is used for nothing else", name)
    table = table.complete(on_bad_example, classes or ())
    features = [name for name in table.columns if name not in used]
    if not features:
        raise UserError(f"{path} must have a column beside {', '.join(map(repr, used))}.")
    x = table.numbers(features)
    kept, y, names = _targets(table, targets, classes)
    examples = Examples.from_arrays(
        x[kept],
        y,
        name=lambda index: f"row {table.rows[kept[index]]}",
        columns=features,
        values=None if names else targets,
        weights=None if weight is None else table.numbers([weight])[kept, 0],
    )

    def of(name: str | None) -> np.ndarray | None:
        return None if name is None else np.array(table.columns[name])[kept]

    groups, parts = of(group), _parts(table, split, kept)
    if groups is not None:
        grouping.check_apart(groups, parts if len(parts) > 1 else {})
    times = of(order)
    rows = parts["train"]
    return Splits.cut(
        examples.take(rows),
        classes=names,
        validation=examples.take(parts["validation"]) if "validation" in parts else validation,
        test=examples.take(parts["test"]) if "test" in parts else test,
        seed=seed,
        groups=None if groups is None else groups[rows],
        order=None if times is None else times[rows],
    )


def _targets(
    table: Table, targets: Sequence[str], classes: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...] | None]:
    """The positions of the rows that are used, their labels or values, and the class names."""
    cells = table.columns[targets[0]]
    every = np.arange(len(cells))
    if len(targets) > 1:
        if classes is not None:
            raise mistake("classes", "must be left out where several targets have names", classes)
        y = table.numbers(targets)
        if tags.are_rows(y):
            return every, *labels.separate(y, targets)
        return every, y.astype(np.float64), None
    if classes is None and is_number(cells[0]):
        for row, cell in zip(table.rows, cells, strict=True):
            if not is_number(cell):
                raise UserError(
                    "The target must hold numbers in all rows, as in the first "
                    f"(row {row}, column {targets[0]!r} of {table.path}). Received: {cell!r}. "
                    "If they are classes, name them in `classes`."
                )
        return every, table.numbers(targets)[:, 0].astype(np.float64), None
    for name in classes or ():
        if name not in cells:
            raise mistake("classes", "must be names of this data's classes", name, set(cells))
    kept = every if classes is None else np.flatnonzero(np.isin(cells, classes))
    y, names = labels.separate(
        [cells[position] for position in kept], classes or sorted(set(cells))
    )
    return kept, y, names


def _parts(table: Table, split: str | None, kept: np.ndarray) -> dict[str, np.ndarray]:
    """The positions, among those that are used, of the rows of each split."""
    if split is None:
        return {"train": np.arange(len(kept))}
    cells = [table.columns[split][position] for position in kept]
    for cell in cells:
        if part_of(cell) is None:
            known = [name for names in PARTS.values() for name in names]
            raise mistake("split", f"must be a column of splits, and {split!r} holds", cell, known)
    of = np.array([part_of(cell) for cell in cells])
    parts = {part: np.flatnonzero(of == part) for part in PARTS if (of == part).any()}
    if "train" not in parts:
        raise mistake("split", "must be a column with rows of `train`", sorted(set(cells)))
    return parts


def line(*, seed: int = 0) -> Splits:
    """100 points of y = 3x + 2 with normal noise of 0.1, x in [-1, 1], all to train on."""
    x = np.linspace(-1, 1, 100)
    y = 3 * x + 2 + np.random.default_rng(seed).normal(0, 0.1, 100)
    return Splits(Examples.from_arrays(x, y, columns=["x"], values=["y"]))


def proportional() -> Splits:
    """The points x = y = 1, 2, 3, all to train on."""
    x = np.array([1.0, 2.0, 3.0])
    return Splits(Examples.from_arrays(x, x, columns=["x"], values=["y"]))


def is_number(cell: str) -> bool:
    """Whether a cell is a number, finite or not. Python's `1_000` is none to a table."""
    if "_" in cell:
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True
