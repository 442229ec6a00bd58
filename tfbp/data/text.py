"""Text as examples: windows of its tokens."""

from typing import Literal

import numpy as np
import tensorflow as tf

from tfbp.data import labels, splitting
from tfbp.data.examples import Batch, Examples
from tfbp.data.precision import raw_hashes
from tfbp.data.splits import Splits
from tfbp.data.vocabulary import Kind, Vocabulary
from tfbp.errors import UserError, mistake

Targets = Literal["all", "last"]


def windows(
    text: str,
    vocabulary: Vocabulary,
    *,
    steps: int,
    targets: Targets = "all",
    stride: int | None = None,
    name: str = "text",
) -> Examples:
    """Cuts a text into windows: x is `steps` tokens, y the tokens that follow them.

    Args:
        text: what is cut into windows; tokens after the last whole window are left out.
        vocabulary: what numbers its tokens.
        steps: tokens in a window.
        targets: "all": y is int32 [steps], the token after each; "last": int32 [], the one after
            the window.
        stride: tokens from one window's start to the next. Default: each token is predicted once,
            which is `steps` for "all" and 1 for "last".
        name: what an error calls the text.

    Raises:
        tfbp.UserError: the text is shorter than one window, or a setting is out of range.
    """
    if steps < 1:
        raise mistake("steps", "must be at least 1", steps)
    if targets not in ("all", "last"):
        raise mistake("targets", "must be a known kind", targets, ("all", "last"))
    if stride is None:
        stride = steps if targets == "all" else 1
    if stride < 1:
        raise mistake("stride", "must be at least 1", stride)
    tokens = vocabulary.encode([text]).values.numpy()
    if len(tokens) < steps + 1:
        raise UserError(
            f"The {name} is shorter than one window: it has {len(tokens)} tokens, "
            f"and {steps + 1} are needed (`steps` and one to predict)."
        )
    views = np.lib.stride_tricks.sliding_window_view(tokens, steps + 1)[::stride]
    with tf.device("CPU:0"):
        all_tokens = tf.constant(tokens)
    reach = tf.range(steps + 1, dtype=tf.int64)

    def read(indices: tf.Tensor) -> Batch:
        window = tf.gather(all_tokens, indices[:, tf.newaxis] * stride + reach)
        return window[:, :-1], window[:, 1:] if targets == "all" else window[:, -1]

    y_shape = (steps,) if targets == "all" else ()
    return Examples(
        read,
        spec=(tf.TensorSpec((steps,), tf.int32), tf.TensorSpec(y_shape, tf.int32)),
        hashes=raw_hashes(views[:, :-1]),
        targets=views[:, 1:] if targets == "all" else views[:, -1],
        name=lambda index: f"{name}, token {index * stride}",
        characters_per_token=len(text) / len(tokens),
        preparation="tokens",
    )


def cut(
    text: str,
    *,
    kind: Kind,
    vocabulary_size: int,
    steps: int,
    targets: Targets = "all",
    validation: float = 0.1,
    test: float = 0.1,
    vocabulary: Vocabulary | None = None,
) -> Splits:
    """Cuts one text contiguously into training, validation and test examples.

    Args:
        text: the whole text.
        kind, vocabulary_size: of the vocabulary, which is made of the training part alone.
        steps, targets: of the windows.
        validation, test: fractions of the characters, in [0, 1).
        vocabulary: when given, it is used instead of a new one.

    Raises:
        tfbp.UserError: a part is shorter than one window, or a setting is out of range.
    """
    splitting.check_fractions(validation, test)
    labels.check_text("text", [text])
    second = len(text) - round(len(text) * test)
    first = second - round(len(text) * validation)
    if vocabulary is None:
        vocabulary = Vocabulary.from_text(text[:first], kind, vocabulary_size)

    def part(name: str, content: str) -> Examples:
        return windows(content, vocabulary, steps=steps, targets=targets, name=f"{name} text")

    return Splits(
        part("training", text[:first]),
        part("validation", text[first:second]) if validation else None,
        part("test", text[second:]) if test else None,
        vocabulary=vocabulary,
    )
