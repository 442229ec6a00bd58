"""A folder with what the pages read, for their blocks of code to run in."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def compared_in_process(in_process_parity):
    """Exports of the pages are compared with their model in this process."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Makes a folder with what the pages read the current one, and returns it."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


def fill(folder: pathlib.Path) -> None:
    """Writes `flowers/`, a folder of images for each of three classes, and `digit.png`."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("daisy", "rose", "tulip")):
        (folder / "flowers" / name).mkdir(parents=True)
        for number in range(8):
            image = generator.integers(0, 128, (40, 48, 3), np.uint8)
            image[..., label] += 100
            path = folder / "flowers" / name / f"{number}.jpg"
            path.write_bytes(tf.io.encode_jpeg(image).numpy())
    digit = generator.integers(0, 256, (8, 8, 1), np.uint8)
    (folder / "digit.png").write_bytes(tf.io.encode_png(digit).numpy())
