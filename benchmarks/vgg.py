"""VGG16 on 32 × 32 images: what the benchmarks of frozen work have in common."""

import dataclasses
import math
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf
import turns

import tfbp
from tfbp.data import catalog
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import mistake
from tfbp.modeling import backbones, heads
from tfbp.settings import field
from tfbp.tasks.classification import Classification
from tfbp.training.phase import Phase

SIZE = 32
CLASSES = tuple("abcdefghij")
# Of one forward pass of everything: the fastest counts.
FORWARD_BATCHES = (32, 128, 512)


@dataclasses.dataclass(frozen=True)
class Flags(turns.Flags):
    data: str = field("random", "images of ten classes: random, or folder:PATH")
    weights: str = field("random", "of the backbone: random, or a file")
    images: int = field(1400, "that are trained on", low=10)
    held_out: int = field(1000, "images that the accuracy is of", low=10)
    batch_size: int = field(32, "images of a step", low=1)


@dataclasses.dataclass(frozen=True)
class Images:
    """uint8 [n, 32, 32, 3] and labels, int64 [n]: to train on, and held out."""

    x: np.ndarray
    y: np.ndarray
    held_out_x: np.ndarray
    held_out_y: np.ndarray

    def splits(self) -> Splits:
        """Returns the training images; what is held out is judged outside of the clock."""
        return Splits(Examples.from_arrays(self.x, self.y), classes=CLASSES)

    def accuracy(self, model: keras.Model) -> float:
        answers = model.predict(self.held_out_x.astype(np.float32), batch_size=128, verbose=0)
        return float(np.mean(answers.argmax(1) == self.held_out_y))


def load(settings: Flags) -> Images:
    """Returns the images of a benchmark, drawn without their order.

    Raises:
        tfbp.UserError: there are not enough, or not of ten classes.
    """
    spec = settings.data
    if spec == "random":
        count = 2 * (settings.images + settings.held_out)
        shape = f"shape={SIZE},{SIZE},3&classes={len(CLASSES)}"
        spec = f"random?{shape}&count={count}&validation=0&test=0.5"
    whole = catalog.load_data(spec, seed=0, size=SIZE)
    if len(whole.classes or ()) != len(CLASSES):
        raise mistake("data", f"must be images of {len(CLASSES)} classes", settings.data)
    return Images(*_draw(whole.train, settings.images), *_draw(whole.test, settings.held_out))


def shown(spec: str) -> str:
    """Returns a data spec, or the path of a file, without the folders around what it names."""
    name, colon, path = spec.rpartition(":")
    return f"{name}{colon}{pathlib.Path(path).name}"


def about(settings: Flags, trained: str) -> str:
    """Returns a line that says what all sides of a benchmark train."""
    return (
        f"VGG16, 32 × 32, {settings.images:,} images ({shown(settings.data)}), "
        f"weights {shown(settings.weights)}, batch {settings.batch_size}, {trained}\n"
    )


def _draw(examples: Examples | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    size = examples.size if examples else 0
    if size < count:
        raise mistake("data", f"must hold {count} images in each part that is used", size)
    rows = np.random.default_rng(0).permutation(size)[:count]
    x, y = examples.read(tf.constant(rows))
    return np.rint(x.numpy()).astype(np.uint8), y.numpy()


def network(settings: Flags) -> keras.Model:
    """Returns the same model, with the same weights, at each call."""
    keras.utils.set_random_seed(0)
    backbone = backbones.load_backbone(
        keras.applications.VGG16, (SIZE, SIZE, 3), settings.weights, seed=0
    )
    return heads.swap_head(backbone, classes=CLASSES)


def ours(settings: Flags, images: Images, phases: list[Phase], folder: str) -> turns.Outcome:
    """Trains with tfbp, whose feature cache is in `folder`."""
    model, splits = network(settings), images.splits()

    def fit():
        tfbp.fit(
            model,
            splits,
            Classification(CLASSES),
            phases,
            tfbp.Settings(
                batch_size=settings.batch_size, cache_dir=folder, allow=("random-frozen",)
            ),
        )

    return {"seconds": turns.seconds(fit), "accuracy": images.accuracy(model)}


def compiled(model: keras.Model, rate: float) -> keras.Model:
    """Compiles a model for plain Keras, as tfbp's phases train it, and returns it."""
    task = Classification(CLASSES)
    model.compile(keras.optimizers.Adam(rate), loss=task.loss(), metrics=task.metrics())
    return model


def forward(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns what a model answers to x, and the seconds of the pass in its best batch size."""

    @tf.function(input_signature=[tf.TensorSpec([None, *x.shape[1:]], tf.float32)])
    def answer(batch):
        return model(batch, training=False)

    answer(tf.constant(x[:1], tf.float32))  # traced before the clock runs
    best = math.inf
    for size in FORWARD_BATCHES:
        began = time.perf_counter()
        parts = [
            answer(tf.constant(x[start : start + size], tf.float32)).numpy()
            for start in range(0, len(x), size)
        ]
        best = min(best, time.perf_counter() - began)
    return np.concatenate(parts), best


def equal_accuracy(outcomes: turns.Outcomes, first: str, second: str, images: Images) -> turns.Goal:
    """Returns the difference of two accuracies, and the bound that chance sets it: two standard
    errors of the difference of two shares of as many images.
    """
    ours, theirs = (turns.median(outcomes, side, "accuracy") for side in (first, second))
    share = (ours + theirs) / 2
    bound = 2 * math.sqrt(2 * max(share * (1 - share), 1e-4) / len(images.held_out_y))
    return turns.Goal(f"accuracy, {first} against {second}", abs(ours - theirs), most=bound)
