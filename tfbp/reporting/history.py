"""The history of a run as a CSV file: one row for each epoch of every phase."""

import csv
import io
import os
import pathlib
import time

import keras

from tfbp import storage
from tfbp.storage import disk


class Rows(keras.callbacks.Callback):
    """Adds a row to the history for each epoch."""

    def __init__(self, phase: str, rows: list[dict]):
        super().__init__()
        self._phase, self._rows = phase, rows

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        seconds = round(time.perf_counter() - self._began, 3)
        row = {"phase": self._phase, "epoch": epoch + 1, "seconds": seconds}
        self._rows.append(row | (logs or {}))


class History(keras.callbacks.Callback):
    """Writes the rows of a history to a file as they come.

    When training begins the file is rewritten from the rows so far, so that a run which goes on
    from an earlier point repeats no row. Numbers are written so that they read back equal.

    Args:
        path: the CSV file. Its columns are all names in the rows, in the order in which they first
            occur; a row without a value has an empty cell.
        rows: one dict for each epoch, to which `Rows` appends before this callback's
            `on_epoch_end`.
    """

    def __init__(self, path: str | os.PathLike, rows: list[dict]):
        super().__init__()
        self._path, self._rows = pathlib.Path(path), rows
        self._columns: list[str] = []

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._rewrite()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        row = self._rows[-1]
        if not row.keys() <= set(self._columns):
            self._rewrite()
        else:
            with (
                disk.reported(self._path),
                open(self._path, "a", newline="", encoding="utf-8") as file,
            ):
                csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        if self._columns:
            writer.writeheader()
        writer.writerows(self._rows)
        storage.write_text(self._path, text.getvalue())
