"""A vocabulary: the tokens of a text, and the numbers that stand for them."""

import collections
import dataclasses
import json
from typing import Literal

import tensorflow as tf

from tfbp.errors import mistake

Kind = Literal["char", "word"]
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
        """Collects the `size - 1` most frequent tokens of a text (ties in alphabetical order).

        Token 0 is "[UNK]".

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
        """Turns strings [n] into tokens, int32 [n, (tokens)]. A graph function."""
        # A string is found by its 64-bit hash among the sorted ones, and then compared itself.
        known = tf.constant(self.tokens)
        hashes = _hash(known)
        by_hash = tf.argsort(hashes)
        words = split(strings, self.kind)
        position = tf.searchsorted(tf.gather(hashes, by_hash), _hash(words.values))
        token = tf.gather(by_hash, tf.minimum(position, self.size - 1))
        is_known = tf.equal(tf.gather(known, token), words.values)
        return words.with_values(tf.where(is_known, token, 0))

    def decode(self, tokens: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Turns tokens, integers [n, (tokens)], back into strings [n]. A graph function.

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
        """The vocabulary as JSON text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Reads what `to_json` wrote."""
        content = json.loads(text)
        return cls(tuple(content["tokens"]), content["kind"])


def split(strings: tf.Tensor, kind: Kind) -> tf.RaggedTensor:
    """Cuts UTF-8 strings [n] into tokens, string [n, (tokens)]. A graph function."""
    if kind == "char":
        return tf.strings.unicode_split(strings, "UTF-8")
    strings = tf.strings.regex_replace(strings, _SPACES, " ")
    strings = tf.strings.regex_replace(strings, _MARK, r" \0 ")
    pieces = tf.strings.split(strings, sep=" ")
    return tf.ragged.boolean_mask(pieces, tf.not_equal(pieces, ""))


def _hash(strings: tf.Tensor) -> tf.Tensor:
    return tf.strings.to_hash_bucket_fast(strings, 2**63 - 1)
