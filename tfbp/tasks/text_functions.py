"""The graph functions of an exported language model: they answer scores, texts and states.

A text or prompt has at most 10,000 tokens and 160,000 bytes (`Limits`). It is read in pieces, so
that the memory does not grow with its length times the vocabulary, nor the work of short rows with
the length of their neighbours.

Shapes and dtypes of every input and output stand at `tfbp.tasks.language.LanguageModel.signatures`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.data.vocabulary import Vocabulary
from tfbp.tasks import sample_outputs, sampling
from tfbp.tasks.stepper import Stepper
from tfbp.tasks.task import Signature

# From hidden values, [rows, steps, units], and which of them are real, bool [rows, steps], to those
# whose logits are computed.
Select = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of one call: a server's memory and threads are not one client's.

    Attributes:
        tokens: that a text may have, and that one call may write.
        bytes: of such a text. It is refused by them before it is cut into tokens, which takes many
            times its size.
        piece: tokens, of all rows, that are read at once, and whose logits are held.
    """

    tokens: int = 10_000
    bytes: int = 160_000
    piece: int = 1024


LIMITS = Limits()


class TextFunctions:
    """The functions of a language model's signatures, over one stepper.

    Args:
        stepper: shares the weights of the model.
        vocabulary: what the tokens stand for.
        limits: checked in the graph: TensorFlow's InvalidArgumentError says which does not hold.
    """

    def __init__(self, stepper: Stepper, vocabulary: Vocabulary, limits: Limits):
        self._stepper, self._vocabulary, self._limits = stepper, vocabulary, limits

    def score(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Sums the log-likelihood of each text over all its tokens but the first."""
        tokens, mask = _dense(self._encode("text", text))
        targets, mask = tokens[:, 1:], mask[:, 1:]
        batch, steps = tf.unstack(tf.shape(targets))
        start, states = 0, self._stepper.start(batch)
        loss = tf.zeros([batch])
        while start < steps:
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            _, end, logits, states = self._advance(
                tokens[:, :-1],
                mask,
                states,
                start,
                lambda values, real: tf.boolean_mask(values, real)[tf.newaxis],
            )
            # The piece's targets in the order of its rows, as the logits are.
            positions = tf.where(mask[:, start:end])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                tf.gather_nd(targets[:, start:end], positions), logits[0]
            )
            loss += tf.math.unsorted_segment_sum(losses, positions[:, 0], batch)
            start = end
        count = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
        mean = tf.math.divide_no_nan(loss, tf.cast(count, tf.float32))
        return {"log_likelihood": -loss, "perplexity": tf.exp(mean), "tokens": count}

    def generate(
        self,
        prompt: tf.Tensor,
        length: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Continues each prompt by `length` tokens, drawn one after the other."""
        length = self._checked(length, temperature)
        tokens = self._encode("prompt", prompt)
        batch = tf.size(prompt)
        logits, states = self._read(tokens)
        unknown = tf.one_hot(0, self._vocabulary.size, on_value=float("inf"), off_value=0.0)
        written = tf.zeros([length, batch], tf.int32)
        for step in tf.range(tf.where(batch > 0, length, 0)):
            token = sampling.draw(
                logits - unknown,
                temperature=temperature,
                top_k=top_k,
                seed=tf.stack([seed, tf.cast(step, tf.int64)]),
            )
            written = tf.tensor_scatter_nd_update(written, [[step]], [token])
            logits, states = self._stepper(token[:, tf.newaxis], states)
            logits = logits[:, -1]
        texts = self._vocabulary.decode(tf.concat([tokens, tf.transpose(written)], axis=1))
        return {"text": texts}

    def init_state(self, prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        """Reads each prompt, and returns the logits of the token after it and the state."""
        logits, states = self._read(self._encode("prompt", prompt))
        return {"logits": logits, **self._stepper.unpack(states)}

    def step(self, token: tf.Tensor, **states: tf.Tensor) -> dict[str, tf.Tensor]:
        """Reads one more token of each row, and returns what `init_state` does."""
        logits, after = self._stepper(token[:, tf.newaxis], self._stepper.pack(states))
        return {"logits": logits[:, -1], **self._stepper.unpack(after)}

    @tf.autograph.experimental.do_not_convert
    def _encode(self, name: str, strings: tf.Tensor) -> tf.RaggedTensor:
        """Cuts texts into tokens, within the limits."""
        size = tf.reduce_max(tf.strings.length(strings))
        rule = f"`{name}` must have at most {self._limits.bytes} bytes. Received:"
        with tf.control_dependencies([tf.Assert(size <= self._limits.bytes, [rule, size])]):
            tokens = self._vocabulary.encode(tf.identity(strings))
        count = tf.reduce_max(tokens.row_lengths())
        rule = f"`{name}` must have at most {self._limits.tokens} tokens. Received:"
        with tf.control_dependencies([tf.Assert(count <= self._limits.tokens, [rule, count])]):
            return tokens.with_values(tf.identity(tokens.values))

    @tf.autograph.experimental.do_not_convert
    def _checked(self, length: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
        """Returns `length`, once it and the temperature are in range."""
        # NaN is not at least 0 either. Only what depends on a check is sure to run after it.
        fits = (length >= 0) & (length <= self._limits.tokens)
        warm = (temperature >= 0) & (temperature < float("inf"))
        length_rule = f"`length` must be 0 to {self._limits.tokens} tokens. Received:"
        heat_rule = "`temperature` must be at least 0 and finite. Received:"
        checks = [
            tf.Assert(fits, [length_rule, length]),
            tf.Assert(warm, [heat_rule, temperature]),
        ]
        with tf.control_dependencies(checks):
            return tf.identity(length)

    def _read(self, ragged: tf.RaggedTensor) -> tuple[tf.Tensor, Any]:
        """Returns the logits after the last token of each row, and the states."""
        tokens, mask = _dense(ragged)
        batch, steps = tf.unstack(tf.shape(tokens))
        start, states = 0, self._stepper.start(batch)
        logits = tf.zeros([batch, self._vocabulary.size])
        while start < steps:
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            rows, start, after, states = self._advance(
                tokens, mask, states, start, lambda values, _: values[:, -1:]
            )
            logits = tf.tensor_scatter_nd_update(logits, rows, after[:, 0])
        return logits, states

    @tf.autograph.experimental.do_not_convert
    def _advance(
        self, tokens: tf.Tensor, mask: tf.Tensor, states: Any, start: tf.Tensor, select: Select
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, Any]:
        """Reads the next piece of the rows that have not ended before `start`.

        Returns these rows, the piece's end, its logits where `select` says, and the states.
        """
        rows = tf.where(mask[:, start] | (start == 0))
        end = start + tf.maximum(1, self._limits.piece // tf.maximum(1, tf.shape(rows)[0]))
        piece, real = (tf.gather_nd(value[:, start:end], rows) for value in (tokens, mask))
        logits, after = self._stepper(
            piece,
            tf.nest.map_structure(lambda state: tf.gather_nd(state, rows), states),
            real,
            lambda values: select(values, real),
        )
        states = tf.nest.map_structure(
            lambda state, new: tf.tensor_scatter_nd_update(state, rows, new), states, after
        )
        return rows, end, logits, states


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests to the functions, made of held-out windows of text.

    Attributes:
        functions: give the states that `step` takes.
        vocabulary: what the tokens stand for.
        examples: the windows.
    """

    functions: TextFunctions
    vocabulary: Vocabulary
    examples: Examples

    def score(self, count: int) -> dict[str, np.ndarray]:
        """Returns whole windows."""
        return {"text": self.vocabulary.decode(self._windows(count)).numpy()}

    def init_state(self, count: int) -> dict[str, np.ndarray]:
        """Returns the first half of windows."""
        tokens = self._windows(count)
        return {"prompt": self.vocabulary.decode(tokens[:, : (tokens.shape[1] + 1) // 2]).numpy()}

    def generate(self, count: int) -> dict[str, np.ndarray]:
        """Returns the first half of windows, to be continued by 16 tokens."""
        return self.init_state(count) | {
            "length": np.array(16, np.int32),
            "temperature": np.array(0.8, np.float32),
            "top_k": np.array(10, np.int32),
            "seed": np.array(1, np.int64),
        }

    def step(self, count: int) -> dict[str, np.ndarray]:
        """Returns the last token of windows, and the state after their first half."""
        answer = self.functions.init_state(**self.init_state(count))
        states = {name: value.numpy() for name, value in answer.items()}
        del states["logits"]
        return {"token": self._windows(count)[:, -1], **states}

    def _windows(self, count: int) -> np.ndarray:
        return sample_outputs.exactly(self.examples, count)


def signatures(
    stepper: Stepper, vocabulary: Vocabulary, examples: Examples, limits: Limits = LIMITS
) -> dict[str, Signature]:
    """Makes `score`, `generate`, `init_state` and `step`, over one stepper."""
    functions = TextFunctions(stepper, vocabulary, limits)
    requests = Requests(functions, vocabulary, examples)
    strings = tf.TensorSpec([None], tf.string)
    settings = {
        "length": tf.TensorSpec([], tf.int32),
        "temperature": tf.TensorSpec([], tf.float32),
        "top_k": tf.TensorSpec([], tf.int32),
        "seed": tf.TensorSpec([], tf.int64),
    }
    states = {
        name: tf.TensorSpec([None, width], tf.float32) for name, width in stepper.names().items()
    }
    inputs = {
        "score": {"text": strings},
        "generate": {"prompt": strings} | settings,
        "init_state": {"prompt": strings},
        "step": {"token": tf.TensorSpec([None], tf.int32)} | states,
    }
    return {
        name: Signature(getattr(functions, name), specs, getattr(requests, name))
        for name, specs in inputs.items()
    }


def _dense(tokens: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns tokens and where they are real, [batch, steps]: at least one step, the last empty."""
    dense = tf.pad(tokens.to_tensor(), [[0, 0], [0, 1]])
    return dense, tf.sequence_mask(tokens.row_lengths(), tf.shape(dense)[1])
