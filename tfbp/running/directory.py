"""A run's directory: what it is (`flags.txt`, `config.json`), and what came out (`result.json`,
`history.csv`, `model.keras`, `tensorboard/`). A run has ended when its `manifest.json` is there.
"""

import contextlib
import csv
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

from absl import logging

from tfbp import storage
from tfbp.errors import UserError, mistake
from tfbp.storage import disk

CONFIG, RESULT, FLAGS = "config.json", "result.json", "flags.txt"
HISTORY, MODEL, CHECKPOINTS, TENSORBOARD = (
    "history.csv",
    "model.keras",
    "checkpoints",
    "tensorboard",
)
# Characters of a value that a message shows.
LONGEST = 60
# What is read of a run that has ended.
FILES = (CONFIG, RESULT, HISTORY, MODEL)


def next_or_unfinished(folder: str | os.PathLike, identity: dict) -> pathlib.Path:
    """Returns the newest unfinished run of this identity in `folder`, or the next number."""
    folder = pathlib.Path(folder)
    for number in reversed(_numbers(folder)):
        candidate = folder / str(number)
        try:
            if not ended(candidate) and _begun(candidate)[0] == identity:
                return candidate
        except UserError as error:
            logging.warning("%s It is passed over.", error)
    return next_number(folder)


def next_number(folder: str | os.PathLike) -> pathlib.Path:
    """Returns the directory after the last one in `folder` whose name is a number."""
    folder = pathlib.Path(folder)
    return folder / str(max(_numbers(folder), default=0) + 1)


def ended(path: str | os.PathLike) -> bool:
    """Tells whether the run in a directory has ended."""
    return (pathlib.Path(path) / storage.MANIFEST).exists()


def check(path: str | os.PathLike, identity: dict) -> None:
    """Refuses a directory that holds something else than this run.

    Args:
        identity: JSON value that says what the run is, see `same_run.identity`.

    Raises:
        tfbp.UserError: it holds another run or other files, or is none.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_dir():
        raise mistake("workdir", "must be a directory", str(path))
    there, _ = _begun(path)
    if (
        there is None
        and path.is_dir()
        and any(not file.name.startswith(".") for file in path.iterdir())
    ):
        raise mistake("workdir", "must be empty, or hold a run", str(path))
    same_recipe = there is not None and there.get("recipe") == identity.get("recipe")
    if there is not None and same_recipe and there.keys() != identity.keys():
        raise UserError(
            "`workdir` holds a run that another version of tfbp began. "
            f"Received: {str(path)!r}. Give another directory, or `restart` (`--restart`) to begin "
            "anew and keep the old run beside."
        )
    if there is not None and there != identity:
        raise UserError(
            f"`workdir` holds another run, which differs in {_difference(there, identity)}. "
            f"Received: {str(path)!r}. Give another directory, or `restart` (`--restart`) to begin "
            "anew and keep the old run beside."
        )


def absolute(path: str) -> str:
    """Returns the absolute path of a run's directory.

    Raises:
        tfbp.UserError: no path can be like that: it is too long, or has a character that is none.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.stat(path)
    except (OSError, ValueError) as error:
        raise mistake("workdir", f"must be a path that a directory can have ({error})", path) from (
            error
        )
    return os.path.abspath(path)


def set_aside(path: str | os.PathLike) -> None:
    """Renames a run's directory, if there is one, to the first of `<path>.1`, `<path>.2`, … that is
    free, so that another run can begin there.

    Raises:
        tfbp.UserError: it holds no run, or a process is at work in it.
    """
    path = pathlib.Path(path)
    if not (path / CONFIG).is_file():
        return
    with storage.lock(path):
        beside = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
        kept = next(place for place in beside if not place.exists())
        with disk.reported(kept):
            os.rename(path, kept)
    logging.info("The run that was in %s is kept in %s.", path, kept)


@contextlib.contextmanager
def claim(
    path: str | os.PathLike, identity: dict, code: dict, *, restart: bool = False
) -> Iterator[pathlib.Path]:
    """Makes a run's directory, or takes the one of the same identity, for this process alone.

    Args:
        identity: see `check`.
        code: JSON value that says what code runs; where it is another than when the run began,
            there is a warning.
        restart: see `set_aside`.

    Raises:
        tfbp.UserError: as `check`, it cannot be written, or another process is at work in it.
    """
    path = pathlib.Path(path)
    if restart:
        set_aside(path)
    check(path, identity)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        rule = f"must be a directory that can be written ({error})"
        raise mistake("workdir", rule, str(path)) from error
    with storage.lock(path):
        check(path, identity)
        storage.sweep(path)
        there, began_with = _begun(path)
        if there is None:
            text = json.dumps({**identity, "source": code}, indent=2) + "\n"
            storage.write_text(path / CONFIG, text)
        elif began_with != code:
            logging.warning(
                "%s goes on with other code than it began with: %s.",
                path,
                _difference(began_with, code),
            )
        yield path


def read(path: str | os.PathLike, file: str = CONFIG) -> dict:
    """Returns `config.json` or `result.json` of a run.

    Raises:
        tfbp.UserError: the directory holds no such file, or a damaged one.
    """
    path = pathlib.Path(path)
    if not (path / file).is_file():
        rule = "must be the directory of a run" + (" that has ended" if file == RESULT else "")
        raise mistake("run", f"{rule} (it holds no {file})", str(path))
    try:
        return json.loads((path / file).read_text())
    except ValueError as error:
        raise UserError(f"{path / file} is damaged: {error}.") from error


def end(path: str | os.PathLike, result: dict, files: Sequence[str]) -> None:
    """Writes `result.json` and, last, the manifest by which the run has ended.

    Args:
        result: JSON value.
        files: the other files of the run that are there to be read, all in the manifest.
    """
    path = pathlib.Path(path)
    storage.write_text(path / RESULT, json.dumps(result, indent=2) + "\n")
    storage.write_manifest(path, [*FILES, *files])


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


def _numbers(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def _begun(path: pathlib.Path) -> tuple[dict | None, dict]:
    """Returns the identity of the run in a directory, None where there is none, and its code."""
    if not (path / CONFIG).is_file():
        return None, {}
    identity = read(path)
    return identity, identity.pop("source", {})


def _difference(there: dict, identity: dict) -> str:
    flat = [_flat(value) for value in (there, identity)]
    names = [name for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name)]
    return ", ".join(
        f"`{name}` ({_shown(flat[0].get(name))}, not {_shown(flat[1].get(name))})" for name in names
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _flat(value: dict) -> dict:
    """Returns {"recipe": …, "config": {"seed": 0}} as {"recipe": …, "seed": 0}."""
    flat = {}
    for name, entry in value.items():
        flat.update(entry if isinstance(entry, dict) else {name: entry})
    return flat
