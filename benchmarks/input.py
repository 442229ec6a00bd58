"""From a folder of JPEG files to batches: tfbp, and Keras's `image_dataset_from_directory`.

    python benchmarks/input.py [--data=folder:PATH] [--images=10000] [--turns=3]

Each side yields all images once, in batches, shuffled; the clock runs from the first batch that is
asked for to the last one that has come, the files in the page cache. The list of the files is made
before that, and at tfbp each of them is hashed and decoded once to be checked: that time stands
beside. The labels of tfbp's batches are compared with the order that (seed, epoch) gives.
"""

import dataclasses
import os
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
import turns

import tfbp
from tfbp.data.examples import Examples
from tfbp.errors import mistake
from tfbp.settings import field
from tfbp.training import batches

RATE = "images a second"
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Flags(turns.Flags):
    data: str = field("random", "JPEG files: random, or folder:PATH, with train/CLASS in it")
    images: int = field(10_000, "that are read", low=CLASSES)
    size: int = field(32, "height and width, pixels", low=1)
    batch_size: int = field(32, "images of a batch", low=1)
    epoch: int = field(3, "whose order is read", low=0)


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        count = _fill(settings, pathlib.Path(folder))
        outcomes = measure(settings, folder)
    size = f"{settings.size} × {settings.size}"
    print(f"{count:,} JPEG files to {size}, batch {settings.batch_size}\n")
    print(turns.report(outcomes, goals(outcomes)))


def measure(settings: Flags, folder: str) -> turns.Outcomes:
    sides = {"tfbp": lambda: _ours(settings, folder), "Keras": lambda: _plain(settings, folder)}
    return turns.by_turns(sides, settings.turns)


def goals(outcomes: turns.Outcomes) -> list[turns.Goal]:
    agree = min(outcome["labels as ordered"] for outcome in outcomes["tfbp"])
    return [
        turns.Goal("tfbp / Keras", turns.ratio(outcomes, "tfbp", "Keras", RATE), least=1.3),
        turns.Goal("tfbp's labels that stand where the order puts them", agree, least=1),
    ]


def _fill(settings: Flags, folder: pathlib.Path) -> int:
    """Makes the folder of class folders that both sides read, and returns the number of files."""
    each = settings.images // CLASSES
    name, _, path = settings.data.partition(":")
    if settings.data == "random":
        numbers = np.random.default_rng(0)
        for label in range(CLASSES):
            (folder / str(label)).mkdir()
            for number in range(each):
                pixels = numbers.integers(0, 256, (settings.size, settings.size, 3), np.uint8)
                content = tf.io.encode_jpeg(pixels).numpy()
                (folder / str(label) / f"{number}.jpg").write_bytes(content)
        return each * CLASSES
    train = pathlib.Path(path, "train")
    if name != "folder" or not train.is_dir():
        raise mistake("data", "must be random, or folder:PATH with train/CLASS", settings.data)
    count = 0
    for label in sorted(entry for entry in train.iterdir() if entry.is_dir()):
        (folder / label.name).mkdir()
        for file in sorted(label.iterdir())[:each]:
            os.symlink(file.resolve(), folder / label.name / file.name)
            count += 1
    return count


def _ours(settings: Flags, folder: str) -> turns.Outcome:
    found: list[Examples] = []
    options = {"size": settings.size, "validation": 0, "test": 0}
    listed = turns.seconds(lambda: found.append(tfbp.image_folder(folder, **options).train))
    train, size = found[0], settings.batch_size
    in_epoch = batches.steps_per_epoch(train.size, size)
    steps = range(settings.epoch * in_epoch, (settings.epoch + 1) * in_epoch)
    batching = batches.Batching(size)
    every = batches.training(train, tf.distribute.get_strategy(), batching, steps)
    labels: list[np.ndarray] = []
    read = turns.seconds(lambda: labels.extend(y.numpy() for _, y, *_ in every))
    due = train.targets[batches.indices(train.size, batching, steps)]
    return {
        RATE: train.size / read,
        "made in, s": listed,
        "labels as ordered": float(np.mean(np.concatenate(labels) == due)),
    }


def _plain(settings: Flags, folder: str) -> turns.Outcome:
    found: list[tf.data.Dataset] = []
    size = settings.size, settings.size
    options = {"image_size": size, "batch_size": settings.batch_size, "seed": 0}
    make = keras.utils.image_dataset_from_directory
    listed = turns.seconds(lambda: found.append(make(folder, **options)))
    labels: list[np.ndarray] = []
    read = turns.seconds(lambda: labels.extend(y.numpy() for _, y in found[0]))
    return {RATE: sum(map(len, labels)) / read, "made in, s": listed}


if __name__ == "__main__":
    main()
