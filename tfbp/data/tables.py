"""Tables of numbers: CSV files, and the points of two textbook lines."""

import csv
import math
import os
import pathlib

import numpy as np

from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError, mistake


def read_csv(
    path: str | os.PathLike, target: str, *, labels: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns the numbers of a CSV file with a header row, its target column and its other columns.

    Args:
        path: the file: UTF-8, cells separated by commas.
        target: name of the column to predict.
        labels: take the target for class names even where it looks like numbers.

    Returns:
        float32 [rows, columns - 1]; the targets: class names [rows] when the first is not a number,
        else float32 [rows]; the names of the columns but for the target.

    Raises:
        tfbp.UserError: no such file or column, no rows, a row of another length, or a cell that is
            not a finite number (named by row, the header not counted, and column).
    """
    try:
        with pathlib.Path(path).expanduser().open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise mistake("data", f"must name a CSV file that can be read ({error})", path) from error
    header, *rows = rows or [[]]
    if header.count(target) != 1:
        raise mistake("target", f"must name one column of {path}", target, header)
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"The columns of {path} must have different names: {twice[0]!r} has two.")
    if not rows:
        raise UserError(f"{path} must hold at least one row below its header.")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(
                f"Row {number} of {path} must have {len(header)} cells. Received: {len(row)}."
            )

    def numbers(column: int) -> list[float]:
        return [
            _number(row[column], f"row {number}, column {header[column]!r} of {path}")
            for number, row in enumerate(rows, 1)
        ]

    position = header.index(target)
    columns = [name for name in header if name != target]
    features = [numbers(column) for column in range(len(header)) if column != position]
    if not features:
        raise UserError(f"{path} must have a column beside its target {target!r}.")
    x = np.array(features, np.float32).T
    if labels or not _is_number(rows[0][position]):
        return x, np.array([row[position].strip() for row in rows]), columns
    return x, np.array(numbers(position), np.float32), columns


def line(*, seed: int = 0) -> Splits:
    """100 points of y = 3x + 2 with normal noise of 0.1, x in [-1, 1], all to train on."""
    x = np.linspace(-1, 1, 100)
    y = 3 * x + 2 + np.random.default_rng(seed).normal(0, 0.1, 100)
    return Splits(Examples.from_arrays(x, y, columns=["x"], values=["y"]))


def proportional() -> Splits:
    """The points x = y = 1, 2, 3, all to train on."""
    x = np.array([1.0, 2.0, 3.0])
    return Splits(Examples.from_arrays(x, x, columns=["x"], values=["y"]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, place: str) -> float:
    if not _is_number(cell) or not math.isfinite(float(cell)):
        raise UserError(f"Every cell must be a finite number ({place}). Received: {cell!r}.")
    return float(cell)
