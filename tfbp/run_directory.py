"""A run's directory: what was asked (`flags.txt`, `config.json`), and what came out (`result.json`,
`history.csv`, `model.keras`, `tensorboard/`). A run has ended when its `result.json` is there.
"""

import csv
import json
import os
import pathlib

from tfbp import storage
from tfbp.errors import UserError, mistake

CONFIG, RESULT, FLAGS = "config.json", "result.json", "flags.txt"
HISTORY, MODEL, CHECKPOINTS, TENSORBOARD = (
    "history.csv",
    "model.keras",
    "checkpoints",
    "tensorboard",
)


def next_or_unfinished(folder: str | os.PathLike, asked: dict) -> pathlib.Path:
    """Returns the newest unfinished run in `folder` that was asked the same, or the next number."""
    folder = pathlib.Path(folder)
    numbers = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    for number in sorted(numbers, reverse=True):
        candidate = folder / str(number)
        if not ended(candidate) and _asked(candidate) == asked:
            return candidate
    return folder / str(max(numbers, default=0) + 1)


def ended(path: str | os.PathLike) -> bool:
    """Tells whether the run in a directory has ended."""
    return (pathlib.Path(path) / RESULT).exists()


def check(path: str | os.PathLike, asked: dict) -> None:
    """Refuses a directory that holds something else than the run that is asked for.

    Args:
        asked: JSON value that says what the run is: recipe and settings.

    Raises:
        tfbp.UserError: it holds another run or other files, or is none.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_dir():
        raise mistake("workdir", "must be a directory", str(path))
    there = _asked(path)
    if there is None and path.is_dir() and any(path.iterdir()):
        raise mistake("workdir", "must be empty, or hold a run", str(path))
    if there is not None and there != asked:
        raise UserError(
            f"`workdir` holds another run, which differs in {_difference(there, asked)}. "
            f"Received: {str(path)!r}. Give another directory."
        )


def claim(path: str | os.PathLike, asked: dict) -> pathlib.Path:
    """Makes a run's directory, or takes the one that was asked the same, and returns it.

    Raises:
        tfbp.UserError: as `check`, or it cannot be written.
    """
    path = pathlib.Path(path)
    check(path, asked)
    if _asked(path) is None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            storage.write_text(path / CONFIG, json.dumps(asked, indent=2) + "\n")
        except OSError as error:
            raise mistake(
                "workdir", f"must be a directory that can be written ({error})", str(path)
            ) from error
    return path


def read(path: str | os.PathLike, file: str = CONFIG) -> dict:
    """Returns `config.json` or `result.json` of a run.

    Raises:
        tfbp.UserError: the directory holds no such file.
    """
    path = pathlib.Path(path)
    if not (path / file).is_file():
        rule = "must be the directory of a run" + (" that has ended" if file == RESULT else "")
        raise mistake("run", f"{rule} (it holds no {file})", str(path))
    return json.loads((path / file).read_text())


def history(path: str | os.PathLike) -> list[dict]:
    """Returns the rows of `history.csv`, numbers as numbers, without the cells that are empty."""
    with open(pathlib.Path(path) / HISTORY, newline="", encoding="utf-8") as file:
        return [
            {name: text if name == "phase" else _number(text) for name, text in row.items() if text}
            for row in csv.DictReader(file)
        ]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _asked(path: pathlib.Path) -> dict | None:
    return json.loads((path / CONFIG).read_text()) if (path / CONFIG).is_file() else None


def _difference(there: dict, asked: dict) -> str:
    flat = [_flat(value) for value in (there, asked)]
    names = [name for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name)]
    return ", ".join(
        f"`{name}` ({flat[0].get(name)!r}, not {flat[1].get(name)!r})" for name in names
    )


def _flat(value: dict) -> dict:
    """Returns {"recipe": …, "config": {"seed": 0}} as {"recipe": …, "seed": 0}."""
    flat = {}
    for name, entry in value.items():
        flat.update(entry if isinstance(entry, dict) else {name: entry})
    return flat
