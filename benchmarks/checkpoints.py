"""What checkpoints cost: training with and without them by turns, in one run.

    python benchmarks/checkpoints.py [--checkpoint_seconds=60] [--checkpoints=2] [--turns=3]

VGG16 on synthetic 32 × 32 images, all of it tuned by Adam: each checkpoint holds every weight and
two slots for each. A turn lasts as long as its checkpoints take to come due; the turns alternate,
and what a step takes is the median over them. Then the size of a checkpoint, in full tuning and in
a head phase, how long it holds the training up, and how long until it is on the disk.
"""

import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from tfbp.commands import flags
from tfbp.data.examples import Examples
from tfbp.modeling import freezing, heads
from tfbp.reporting.table import table
from tfbp.resuming.checkpoints import Checkpoints
from tfbp.resuming.state import Position
from tfbp.settings import Fields, field
from tfbp.tasks.classification import Classification
from tfbp.training import batches, loop, optimizer
from tfbp.training.phase import Phase

CLASSES = tuple("abcdefghij")
SAVED = 5  # of each kind, for the median
EPOCHS = 10**6  # the turns end the training


@dataclasses.dataclass(frozen=True)
class Flags(Fields):
    checkpoint_seconds: float = field(60.0, "from one checkpoint to the next", low=0.1)
    checkpoints: int = field(2, "in a turn", low=1)
    turns: int = field(3, "of each kind", low=1)
    batch_size: int = field(32, "images of a step", low=1)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a checkpoint: bytes; milliseconds until training goes on, and until it is written."""

    bytes: int
    held_up: float
    written: float


def main() -> None:
    settings, _ = flags.parse(Flags, sys.argv[1:], about=__doc__)
    seconds, costs = measure(settings, network())
    off, on = (statistics.median(seconds[kind]) for kind in ("off", "on"))
    rows = [("checkpoints", "ms a step, median", "all turns")]
    for kind in ("off", "on"):
        each = " ".join(f"{1000 * value:.1f}" for value in seconds[kind])
        rows.append((kind, f"{1000 * statistics.median(seconds[kind]):.1f}", each))
    print(f"\n{table(rows, numbers=[1])}\n\non / off: {on / off:.4f}\n")
    rows = [("checkpoint", "bytes", "held up, ms", "written, ms")]
    rows += [
        (name, f"{cost.bytes:,}", f"{cost.held_up:.1f}", f"{cost.written:.1f}")
        for name, cost in costs.items()
    ]
    print(table(rows, numbers=[1, 2, 3]))


def network() -> keras.Model:
    backbone = keras.applications.VGG16(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    return heads.swap_head(backbone, classes=CLASSES)


def measure(settings: Flags, model: keras.Model) -> tuple[dict[str, list[float]], dict]:
    """Returns the seconds of a step in each turn, "off" and "on", and the cost of a checkpoint by
    the kind of its phase.
    """
    numbers = np.random.default_rng(0)
    x = numbers.integers(0, 256, (16 * settings.batch_size, *model.input_shape[1:]), np.uint8)
    images = Examples.from_arrays(x, numbers.integers(0, len(CLASSES), len(x)))
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, pattern in (("head phase", "head.*"), ("full tuning", ".*")):
            frozen = _compile(model, images, pattern)
            with Checkpoints(pathlib.Path(folder, kind)) as checkpoints:
                checkpoints.save(model, Position())
                costs[kind] = _cost(model, frozen, checkpoints, pathlib.Path(folder, kind))
        turns = pathlib.Path(folder, "turns")
        with Checkpoints(turns, settings.checkpoint_seconds) as checkpoints:
            checkpoints.save(model, Position())
            return _by_turns(settings, model, images, checkpoints), costs


def _compile(model, images, pattern) -> freezing.Frozen:
    task = Classification(CLASSES)
    frozen = freezing.freeze(model, pattern)
    phase = Phase("fit", pattern, epochs=1, learning_rate=1e-5)
    update = optimizer.build(phase, 1, frozen)
    model.compile(update, loss=task.loss(), metrics=task.metrics(), auto_scale_loss=False)
    loop.build(model, images, tf.distribute.get_strategy())
    return frozen


def _cost(model, frozen, checkpoints, folder) -> Cost:
    held_up, written = [], []
    for step in range(1, SAVED + 1):
        checkpoints.wait()
        began = time.perf_counter()
        checkpoints.save(model, Position(step=step), fixed=frozen.fixed)
        held_up.append(1000 * (time.perf_counter() - began))
        checkpoints.wait()
        written.append(1000 * (time.perf_counter() - began))
    newest = max(folder.iterdir(), key=lambda path: int(path.name))
    size = sum(file.stat().st_size for file in newest.iterdir())
    return Cost(size, statistics.median(held_up), statistics.median(written))


def _by_turns(settings, model, images, checkpoints) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    length = settings.checkpoints * settings.checkpoint_seconds
    kind, began, first = "off", 0.0, 0

    hooks = loop.Hooks(keras.callbacks.CallbackList([], model=model))

    def after_call(step: int) -> None:
        nonlocal kind, began, first
        if not first:  # what comes before is the tracing
            began, first = time.perf_counter(), step
        if time.perf_counter() - began < length or step == first:
            if kind == "on" and checkpoints.due():
                checkpoints.save(model, Position(step=step))
            return
        checkpoints.wait()
        seconds[kind].append((time.perf_counter() - began) / (step - first))
        kind = "on" if kind == "off" else "off"
        model.stop_training = len(seconds["on"]) == settings.turns
        began, first = time.perf_counter(), step

    vars(hooks)["after_call"] = after_call
    loop.train(
        model,
        images,
        tf.distribute.get_strategy(),
        hooks,
        batches.Batching(settings.batch_size),
        epochs=EPOCHS,
    )
    return seconds


if __name__ == "__main__":
    main()
