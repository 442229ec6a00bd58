"""Text as examples: its tokens, the vocabulary that numbers them, and windows of it."""

import collections
import dataclasses
import json
from typing import Literal

import numpy as np
import tensorflow as tf

from tfbp.data import splitting
from tfbp.data.examples import Batch, Examples, content_hashes
from tfbp.data.splits import Splits
from tfbp.errors import UserError, mistake

Kind = Literal["char", "word"]
Targets = Literal["all", "last"]
UNKNOWN = "[UNK]"

# What `word` tokens are made of, as RE2 patterns: a word is a run of these, and every other
# character that is not a space is a token of its own, the newline too.
_WORD = r"\pL\pM\pN_"
_SPACES = r"[\t\r\f\v\pZ]+"
_MARK = rf"[^ {_WORD}]"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the tokens of a text stand for. Token 0 stands for everything that is not in it.

    `encode` and `decode` are graph functions without tables or other state, so that an exported
    function that calls them has nothing to track.

    Attributes:
        tokens: the strings, by token; the first is "[UNK]".
        kind: "char", or "word" (words, punctuation marks and newlines).
    """

    tokens: tuple[str, ...]
    kind: Kind

    @classmethod
    def from_text(cls, text: str, kind: Kind, size: int) -> "Vocabulary":
        """Returns the `size - 1` most frequent tokens of a text (equals by alphabet) and "[UNK]".

        Raises:
            tfbp.UserError: `kind` is unknown, or `size` is under 2.
        """
        if kind not in ("char", "word"):
            raise mistake("kind", "must be a known one", kind, ("char", "word"))
        if size < 2:
            raise mistake("vocabulary_size", "must be at least 2", size)
        counts = collections.Counter(split([text], kind).values.numpy().tolist())
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        return cls((UNKNOWN, *(token.decode() for token in ranked[: size - 1])), kind)

    @property
    def size(self) -> int:
        """Number of tokens, "[UNK]" included."""
        return len(self.tokens)

    def encode(self, strings: tf.Tensor) -> tf.RaggedTensor:
        """Returns the tokens, int32 [n, (tokens)], of strings [n]. A graph function."""
        # A string is found by its 64-bit hash among the sorted ones, and then compared itself.
        known = tf.constant(self.tokens)
        hashes = _hash(known)
        by_hash = tf.argsort(hashes)
        words = split(strings, self.kind)
        place = tf.searchsorted(tf.gather(hashes, by_hash), _hash(words.values))
        token = tf.gather(by_hash, tf.minimum(place, self.size - 1))
        found = tf.equal(tf.gather(known, token), words.values)
        return words.with_values(tf.where(found, token, 0))

    def decode(self, tokens: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Returns the strings [n] that tokens, integers [n, (tokens)], stand for. A graph function.

        Characters are joined as they are. Words are joined by spaces, apart from those around
        newlines and before punctuation; `encode` gives the same tokens again.
        """
        strings = tf.gather(tf.constant(self.tokens), tokens)
        if self.kind == "char":
            return tf.strings.reduce_join(strings, axis=-1)
        text = tf.strings.reduce_join(strings, axis=-1, separator=" ")
        text = tf.strings.regex_replace(text, r" ?\n ?", "\n")
        text = tf.strings.regex_replace(text, r"(\pL) ' (\pL)", r"\1'\2")
        return tf.strings.regex_replace(text, r" ([.,;:!?)\]])", r"\1")

    def to_json(self) -> str:
        """Returns the vocabulary as JSON text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Returns the vocabulary that `to_json` wrote."""
        content = json.loads(text)
        return cls(tuple(content["tokens"]), content["kind"])


def split(strings: tf.Tensor, kind: Kind) -> tf.RaggedTensor:
    """Returns the pieces, [n, (pieces)], of UTF-8 strings [n]: its tokens. A graph function."""
    if kind == "char":
        return tf.strings.unicode_split(strings, "UTF-8")
    strings = tf.strings.regex_replace(strings, _SPACES, " ")
    strings = tf.strings.regex_replace(strings, _MARK, r" \0 ")
    pieces = tf.strings.split(strings, sep=" ")
    return tf.ragged.boolean_mask(pieces, tf.not_equal(pieces, ""))


def windows(
    text: str,
    vocabulary: Vocabulary,
    *,
    steps: int,
    targets: Targets = "all",
    stride: int | None = None,
    name: str = "text",
) -> Examples:
    """Returns windows of a text: x is `steps` tokens, y the tokens that follow them.

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
        hashes=content_hashes(views[:, :-1]),
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
    """Returns the splits of one text, cut contiguously: training, validation, test.

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


def _hash(strings: tf.Tensor) -> tf.Tensor:
    return tf.strings.to_hash_bucket_fast(strings, 2**63 - 1)
