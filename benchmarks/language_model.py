"""Training tokens a second of the recipe `lstm_lm`: tfbp, Keras's `fit`, PyTorch.

    python benchmarks/language_model.py [--epochs=10] [--turns=3]

Two LSTM layers of 256 units, embeddings of 128, 10,000 words, windows of 35, batches of 32, Adam,
the gradient clipped by its norm, on a random text. The clock runs from the call of `fit` to its
return: audit, tracing and tfbp's evaluation at the end count; a second column is the pace of the
epochs after the first. The floor is the time of the matrix products of a step and of its gradient
alone. PyTorch runs in a process of its own.
"""

import dataclasses
import functools
import time

import keras
import numpy as np
import tensorflow as tf
import torch_sides
import turns
from paced import Pace

import tfbp
from recipes import lstm_lm
from tfbp.data import text
from tfbp.data.splits import Splits
from tfbp.data.vocabulary import UNKNOWN, Vocabulary
from tfbp.settings import field
from tfbp.tasks.language import LanguageModel

RATE = "tokens a second"


@dataclasses.dataclass(frozen=True)
class Flags(turns.Flags):
    words: int = field(35_000, "of the text", low=1)
    epochs: int = field(10, "of each side", low=2)
    vocabulary: int = field(10_000, "words of it that differ, and of the logits", low=2)
    units: int = field(256, "of each LSTM layer", low=1)
    torch_python: str = field("", "the Python that has PyTorch; default: this one")

    @property
    def config(self) -> lstm_lm.Config:
        return lstm_lm.Config(
            vocabulary=self.vocabulary, units=self.units, epochs=self.epochs, schedule="constant"
        )


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    outcomes = measure(settings)
    config = settings.config
    print(
        f"lstm_lm, {config.depth} × {config.units}, vocabulary {config.vocabulary:,}, "
        f"{config.steps} steps, batch {config.batch_size}, {settings.words:,} words, "
        f"{settings.epochs} epochs\n"
    )
    print(turns.report(outcomes, goals(outcomes)))


def measure(settings: Flags) -> turns.Outcomes:
    splits = random_text(settings)
    x, y = (part.numpy() for part in splits.train.read(tf.range(splits.train.size)))
    sides = {
        "tfbp": lambda: _ours(settings, splits),
        "Keras fit": lambda: _plain(settings, splits, x, y),
        "PyTorch": lambda: _torch(settings, x, y),
        "matrix products": lambda: _floor(settings),
    }
    return turns.by_turns(sides, settings.turns)


def goals(outcomes: turns.Outcomes) -> list[turns.Goal]:
    def ratio(under, **bound):
        found = turns.ratio(outcomes, "tfbp", under, RATE)
        return turns.Goal(f"tfbp / {under}", found, **bound)

    return [
        ratio("Keras fit", least=1),
        ratio("PyTorch", least=1.1),
        turns.Goal("share of the matrix products' floor", ratio("matrix products").value),
    ]


def random_text(settings: Flags) -> Splits:
    """Returns windows of a text in which each word stands once, and then any by Zipf's law."""
    size = settings.vocabulary - 1  # and one for all others
    numbers = np.random.default_rng(0)
    often = 1 / np.arange(1, size + 1)
    drawn = numbers.choice(size, max(settings.words - size, 0), p=often / often.sum())
    each = numbers.permutation(size)[: settings.words]
    words = ["w" + np.base_repr(number, 36).lower() for number in (*each, *drawn)]
    config = settings.config
    known = Vocabulary((UNKNOWN, *sorted(set(words))), "word")
    return Splits(text.windows(" ".join(words), known, steps=config.steps), vocabulary=known)


def _outcome(settings: Flags, tokens: int, seconds: float, pace: Pace | None) -> turns.Outcome:
    found = {RATE: settings.epochs * tokens / seconds, "whole call, s": seconds}
    return found | ({"of later epochs": tokens / pace.seconds} if pace else {})


def _model(settings: Flags, splits: Splits) -> keras.Model:
    keras.utils.set_random_seed(0)
    return lstm_lm.model(settings.config, splits)


def _ours(settings: Flags, splits: Splits) -> turns.Outcome:
    model, pace, task = _model(settings, splits), Pace(), LanguageModel(splits.vocabulary)
    phases = lstm_lm.phases(settings.config)
    batch_size = tfbp.Settings(batch_size=settings.config.batch_size)
    run = functools.partial(tfbp.fit, model, splits, task, phases, batch_size, callbacks=[pace])
    whole = turns.seconds(run)
    return _outcome(settings, splits.train.targets.size, whole, pace)


def _plain(settings: Flags, splits: Splits, x, y) -> turns.Outcome:
    model, pace, task = _model(settings, splits), Pace(), LanguageModel(splits.vocabulary)
    config = settings.config
    adam = keras.optimizers.Adam(config.learning_rate, global_clipnorm=config.clip_norm)
    model.compile(adam, loss=task.loss())
    options = {"batch_size": config.batch_size, "epochs": settings.epochs, "verbose": 0}
    whole = turns.seconds(lambda: model.fit(x, y, callbacks=[pace], **options))
    return _outcome(settings, y.size, whole, pace)


def _torch(settings: Flags, x, y) -> turns.Outcome:
    config = settings.config
    found = torch_sides.run(
        "language_model",
        settings.torch_python,
        x=x,
        y=y,
        vocabulary=config.vocabulary,
        embedding=config.embedding,
        units=config.units,
        epochs=config.epochs,
        batch_size=config.batch_size,
        rate=config.learning_rate,
        clip_norm=config.clip_norm,
    )
    return found and _outcome(settings, y.size, found["seconds"], None)


def _floor(settings: Flags) -> turns.Outcome:
    config = settings.config
    rows = config.batch_size * config.steps
    seconds = 0.0
    for inputs in (config.embedding, config.units):  # of the two layers, all steps together
        seconds += _with_gradients(rows, inputs, 4 * config.units)
    # The recurrence goes step by step; only the gradient of its kernel can wait for all of them.
    step = config.batch_size, config.units, 4 * config.units
    back = config.batch_size, 4 * config.units, config.units
    kernel = config.units, rows, 4 * config.units
    times = config.steps
    seconds += config.depth * (times * (_product(*step) + _product(*back)) + _product(*kernel))
    seconds += _with_gradients(rows, config.units, config.vocabulary)
    return {RATE: rows / seconds}


def _with_gradients(rows: int, inputs: int, outputs: int) -> float:
    """Returns the seconds of a product and of those for the gradients of its two factors."""
    shapes = (rows, inputs, outputs), (rows, outputs, inputs), (inputs, rows, outputs)
    return sum(_product(*shape) for shape in shapes)


def _product(rows: int, inner: int, columns: int, times: int = 20) -> float:
    """Returns the seconds of a product of float32 matrices, the best of three rounds."""

    @tf.function
    def run(left, right):
        last = tf.zeros([rows, columns])
        # A loop in the graph: products in a row would be found to be the same, and made once.
        for _ in tf.range(times):
            last = tf.matmul(left, right)
        return last[0, 0]

    left, right = tf.random.normal([rows, inner]), tf.random.normal([inner, columns])
    run(left, right)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        run(left, right).numpy()
        best = min(best, time.perf_counter() - began)
    return best / times


if __name__ == "__main__":
    main()
