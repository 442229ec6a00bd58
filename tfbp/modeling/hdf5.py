"""What an HDF5 file holds, looked up in a process of its own: on some damaged files the HDF5
library crashes or runs for ever.

This file is that process's program, too, and so imports nothing of tfbp.
"""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile

import h5py

# To look up the names, links and attributes of a file takes milliseconds.
SECONDS = 60.0
# Where Keras keeps the weights inside a `.keras` file.
_INSIDE = "model.weights.h5"


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a file.

    Attributes:
        whole_model: whether it says how to build a model.
        elsewhere: name of the first part that is a link, or whose numbers lie in another place;
            None: there is no such part.
        arrays: number of arrays, without an optimizer's state and random seeds.
    """

    whole_model: bool
    elsewhere: str | None
    arrays: int


def look_up(file: str | os.PathLike[str]) -> Contents:
    """Looks up the contents of an HDF5 file, or of the one inside a `.keras` file; reads no array.

    Raises:
        ValueError: the file is damaged, or is no HDF5 file. The message says why.
    """
    command = [sys.executable, "-P", __file__, os.fspath(file)]
    try:
        reader = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError("reading it does not end") from None
    if reader.returncode < 0:
        raise ValueError(f"reading it ends with {signal.Signals(-reader.returncode).name}")
    if reader.returncode:
        raise ValueError(reader.stderr.strip().rpartition("\n")[2])
    return Contents(**json.loads(reader.stdout))


def _contents(path: str) -> Contents:
    weights: str | io.BytesIO = path
    if path.endswith(".keras"):
        with zipfile.ZipFile(path) as archive:
            weights = io.BytesIO(archive.read(_INSIDE))
    with h5py.File(weights, "r") as file:
        parts = [("", file)]
        # Neither walk follows a link that is not a hard one.
        elsewhere = file.visititems_links(_link)
        file.visititems(lambda *part: parts.append(part))
        for name, part in parts:
            for attribute in part.attrs:
                part.attrs[attribute]  # read, as Keras will
            if isinstance(part, h5py.Dataset) and (part.external or part.is_virtual):
                elsewhere = elsewhere or name
        arrays = [
            name
            for name, part in parts
            if isinstance(part, h5py.Dataset)
            and not re.match("optimizer/|(.*/)?seed_generator/", name)
        ]
        return Contents("model_config" in file.attrs, elsewhere, len(arrays))


def _link(name: str, link: object) -> str | None:
    return None if isinstance(link, h5py.HardLink) else name


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(_contents(sys.argv[1]))))
