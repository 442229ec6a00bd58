"""The folder of an exported model, as TensorFlow Serving reads it.

    MODEL/                               its name is the model's
      1/  2/  …                          a version each: a folder whose whole name is a number
        saved_model.pb  variables/  …    the SavedModel
        assets.extra/                    what tfbp adds
          tfbp.json                      settings, fingerprints, signatures, metrics and proofs
          README.md                      the model card
          labels.txt, …                  the task's own
          tf_serving_warmup_requests     what a server tries before it serves the version

Any other name is no version: what is still being written has one that is not a number.
"""

import os
import pathlib

from tfbp.errors import mistake
from tfbp.tasks import assets

GRAPH = "saved_model.pb"
EXTRA = "assets.extra"
VARIABLES = pathlib.Path("variables", "variables")
DETAILS = pathlib.Path(EXTRA, "tfbp.json")
CARD = pathlib.Path(EXTRA, "README.md")
LABELS = pathlib.Path(EXTRA, assets.LABELS)
WARMUP = pathlib.Path(EXTRA, "tf_serving_warmup_requests")

# A version is a signed 64-bit integer to TensorFlow Serving.
_MOST = 2**63 - 1
_MOST_CHARACTERS = 255  # of a file's name


def number(name: str) -> int | None:
    """Returns the version that a name stands for, `00000123` for 123; None: it is no version's."""
    is_number = name.isascii() and name.isdecimal() and len(name) <= _MOST_CHARACTERS
    return int(name) if is_number and int(name) <= _MOST else None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder or links to one. A link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def versions(model: pathlib.Path) -> dict[int, pathlib.Path]:
    """Returns number → folder of a model's versions, the newest last; {} where that is gone.

    Raises:
        OSError: the folder of the model cannot be read.
    """
    try:
        with os.scandir(model) as entries:
            names = sorted(entry.name for entry in entries if is_folder(entry))
    except FileNotFoundError:
        return {}
    numbers = {version: name for name in names if (version := number(name)) is not None}
    return {version: model / numbers[version] for version in sorted(numbers)}


def newest(path: pathlib.Path) -> pathlib.Path:
    """Returns a SavedModel: `path` itself, or the version of the largest number in that folder.

    Raises:
        tfbp.UserError: there is none.
    """
    if (path / GRAPH).is_file():
        return path
    try:
        written = [folder for folder in versions(path).values() if (folder / GRAPH).is_file()]
    except OSError:
        written = []
    if not written:
        raise mistake("SAVED_MODEL", "must be a SavedModel, or a folder of its versions", str(path))
    return written[-1]
