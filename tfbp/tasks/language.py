"""The next token of a text."""

import math

import keras
import numpy as np
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.data.vocabulary import Vocabulary
from tfbp.errors import UserError
from tfbp.tasks import sample_outputs, sampling
from tfbp.tasks.stepper import Stepper
from tfbp.tasks.task import Signature

# Tokens that a text may have, and that one call may write: a server's memory and threads are not
# one client's.
LONGEST = 10_000
# Bytes of such a text. It is refused by them before it is cut into tokens, which takes many times
# its size.
LARGEST = 16 * LONGEST
# Tokens, of all rows, that are read at once, and whose logits are held.
PIECE = 1024


class LanguageModel:
    """Prediction of each next token, or of the one after a window, by softmax cross-entropy.

    x is int32 [steps]. y is int32 [steps], each next token, with logits [steps, vocabulary]; or
    int32 [], the token after the window, with logits [vocabulary].

    Args:
        vocabulary: what the tokens stand for.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary

    def loss(self) -> keras.losses.Loss:
        """Returns the cross-entropy, in nats per token, from logits."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def class_weights_for(self, examples: Examples) -> None:
        """Returns None: all tokens count the same."""

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns none: the loss, in nats per token, says it all."""
        return []

    def check(self, model: keras.Model, examples: Examples) -> None:
        """Refuses a model that does not answer logits for the targets, or cannot write text.

        Raises:
            tfbp.UserError: says what does not fit.
        """
        target = examples.spec[1]
        if examples.characters_per_token is None:
            raise UserError("`examples` must be windows of a text for a language model.")
        answer = sample_outputs.outputs(model, examples)
        due = [*target.shape, self.vocabulary.size]
        if list(answer.shape[1:]) != due:
            raise UserError(
                f"`model` must answer logits of shape {due} for each window, one for each of the "
                f"{self.vocabulary.size} tokens. Received: {list(answer.shape[1:])}."
            )
        self._stepper(model, examples)

    def measure(self, x: tf.Tensor, y: tf.Tensor, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `loss`, the mean over the targets of each window, in nats: float32 [batch]."""
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, tf.cast(outputs, tf.float32))
        return {"loss": tf.reduce_mean(tf.reshape(losses, [tf.shape(y)[0], -1]), axis=1)}

    def evaluate(self, measured: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns `loss` (nats per token), `perplexity` (exp of it) and `bits_per_character`."""
        loss = float(measured["loss"].mean(dtype=np.float64))
        return {
            "loss": loss,
            "perplexity": float(np.exp(loss)),
            "bits_per_character": loss / math.log(2) / examples.characters_per_token,
        }

    def signatures(self, model: keras.Model, examples: Examples) -> dict[str, Signature]:
        """Returns `score`, `generate`, `init_state` and `step`.

        A text or prompt has at most 10,000 tokens and 160,000 bytes. It is read in pieces, so that
        the memory does not grow with its length times the vocabulary, nor the work of short rows
        with the length of their neighbours.

        `score` takes `text` (string [batch]) and answers, over all tokens but the first, which has
        nothing before it: `tokens` (int32 [batch], how many), `log_likelihood` (float32 [batch],
        nats) and `perplexity` (float32 [batch]; 1 when there is no token).

        `generate` takes `prompt` (string [batch]), `length` (int32 [], tokens to write, 0 to
        10,000), `temperature` (float32 [], finite, at least 0, which takes the likeliest token),
        `top_k` (int32 []; 0 draws from all tokens) and `seed` (int64 []), and answers `text`
        (string [batch]), the prompt and what follows. A row's text depends on its prompt, not on
        its neighbours, and `[UNK]` is never written.

        `init_state` takes `prompt` (string [batch]; "" for none) and answers `logits` (float32
        [batch, vocabulary]) of the token after it, and `state_0`, `state_1`, … (float32 [batch,
        units], see `Stepper.names`). `step` takes `token` (int32 [batch]) and these, and answers
        the same after that token: the client keeps the state.

        Raises:
            tfbp.UserError: the model is no chain of forward recurrent layers.
        """
        stepper = self._stepper(model, examples)
        vocabulary = self.vocabulary

        def encode(name, strings):
            size = tf.reduce_max(tf.strings.length(strings))
            rule = f"`{name}` must have at most {LARGEST} bytes. Received:"
            with tf.control_dependencies([tf.Assert(size <= LARGEST, [rule, size])]):
                tokens = vocabulary.encode(tf.identity(strings))
            count = tf.reduce_max(tokens.row_lengths())
            rule = f"`{name}` must have at most {LONGEST} tokens. Received:"
            with tf.control_dependencies([tf.Assert(count <= LONGEST, [rule, count])]):
                return tokens.with_values(tf.identity(tokens.values))

        def advance(tokens, mask, states, start, select):
            """Reads the next piece of the rows that have not ended before `start`.

            Returns these rows, the piece's end, its logits where `select` says, and the states.
            """
            rows = tf.where(mask[:, start] | (start == 0))
            end = start + tf.maximum(1, PIECE // tf.maximum(1, tf.shape(rows)[0]))
            piece, real = (tf.gather_nd(value[:, start:end], rows) for value in (tokens, mask))
            logits, after = stepper(
                piece,
                tf.nest.map_structure(lambda state: tf.gather_nd(state, rows), states),
                real,
                lambda values: select(values, real),
            )
            states = tf.nest.map_structure(
                lambda state, new: tf.tensor_scatter_nd_update(state, rows, new), states, after
            )
            return rows, end, logits, states

        def read(tokens):
            """Returns the logits after the last token of each row, and the states."""
            tokens, mask = _dense(tokens)
            batch, steps = tf.unstack(tf.shape(tokens))
            start, states = 0, stepper.start(batch)
            logits = tf.zeros([batch, vocabulary.size])
            while start < steps:
                tf.autograph.experimental.set_loop_options(parallel_iterations=1)
                rows, start, after, states = advance(
                    tokens, mask, states, start, lambda values, _: values[:, -1:]
                )
                logits = tf.tensor_scatter_nd_update(logits, rows, after[:, 0])
            return logits, states

        def score(text):
            tokens, mask = _dense(encode("text", text))
            targets, mask = tokens[:, 1:], mask[:, 1:]
            batch, steps = tf.unstack(tf.shape(targets))
            start, states = 0, stepper.start(batch)
            loss = tf.zeros([batch])
            while start < steps:
                tf.autograph.experimental.set_loop_options(parallel_iterations=1)
                _, end, logits, states = advance(
                    tokens[:, :-1],
                    mask,
                    states,
                    start,
                    lambda values, real: tf.boolean_mask(values, real)[tf.newaxis],
                )
                # The piece's targets in the order of its rows, as the logits are.
                places = tf.where(mask[:, start:end])
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    tf.gather_nd(targets[:, start:end], places), logits[0]
                )
                loss += tf.math.unsorted_segment_sum(losses, places[:, 0], batch)
                start = end
            count = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
            mean = tf.math.divide_no_nan(loss, tf.cast(count, tf.float32))
            return {"log_likelihood": -loss, "perplexity": tf.exp(mean), "tokens": count}

        def generate(prompt, length, temperature, top_k, seed):
            # NaN is not at least 0 either. Only what depends on a check is sure to run after it.
            fits = (length >= 0) & (length <= LONGEST)
            warm = (temperature >= 0) & (temperature < float("inf"))
            length_rule = f"`length` must be 0 to {LONGEST} tokens. Received:"
            heat_rule = "`temperature` must be at least 0 and finite. Received:"
            checks = [
                tf.Assert(fits, [length_rule, length]),
                tf.Assert(warm, [heat_rule, temperature]),
            ]
            with tf.control_dependencies(checks):
                length = tf.identity(length)
            tokens = encode("prompt", prompt)
            batch = tf.size(prompt)
            logits, states = read(tokens)
            unknown = tf.one_hot(0, vocabulary.size, on_value=float("inf"), off_value=0.0)
            written = tf.zeros([length, batch], tf.int32)
            for step in tf.range(tf.where(batch > 0, length, 0)):
                token = sampling.draw(
                    logits - unknown,
                    temperature=temperature,
                    top_k=top_k,
                    seed=tf.stack([seed, tf.cast(step, tf.int64)]),
                )
                written = tf.tensor_scatter_nd_update(written, [[step]], [token])
                logits, states = stepper(token[:, tf.newaxis], states)
                logits = logits[:, -1]
            return {"text": vocabulary.decode(tf.concat([tokens, tf.transpose(written)], axis=1))}

        def init_state(prompt):
            logits, states = read(encode("prompt", prompt))
            return {"logits": logits, **stepper.unpack(states)}

        def step(token, **states):
            logits, states = stepper(token[:, tf.newaxis], stepper.pack(states))
            return {"logits": logits[:, -1], **stepper.unpack(states)}

        def windows(count):
            return sample_outputs.exactly(examples, count)

        def texts(count):
            return {"text": vocabulary.decode(windows(count)).numpy()}

        def prompts(count):
            x = windows(count)
            return {"prompt": vocabulary.decode(x[:, : (x.shape[1] + 1) // 2]).numpy()}

        def generations(count):
            return prompts(count) | {
                "length": np.int32(16),
                "temperature": np.float32(0.8),
                "top_k": np.int32(10),
                "seed": np.int64(1),
            }

        def steps(count):
            states = {name: value.numpy() for name, value in init_state(**prompts(count)).items()}
            del states["logits"]
            return {"token": windows(count)[:, -1], **states}

        strings = tf.TensorSpec([None], tf.string)
        settings = {
            "length": tf.TensorSpec([], tf.int32),
            "temperature": tf.TensorSpec([], tf.float32),
            "top_k": tf.TensorSpec([], tf.int32),
            "seed": tf.TensorSpec([], tf.int64),
        }
        states = {
            name: tf.TensorSpec([None, width], tf.float32)
            for name, width in stepper.names().items()
        }
        return {
            "score": Signature(score, {"text": strings}, texts),
            "generate": Signature(generate, {"prompt": strings} | settings, generations),
            "init_state": Signature(init_state, {"prompt": strings}, prompts),
            "step": Signature(step, {"token": tf.TensorSpec([None], tf.int32)} | states, steps),
        }

    def assets(self) -> dict[str, str]:
        """Returns `vocabulary.json`, what another run needs to fine-tune on other text."""
        return {"vocabulary.json": self.vocabulary.to_json()}

    def _stepper(self, model: keras.Model, examples: Examples) -> Stepper:
        x, _ = sample_outputs.few(examples, 4)
        stepper = Stepper(model)
        stepper.prove(model, x)
        return stepper


def _dense(tokens: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns tokens and where they are real, [batch, steps]: at least one step, the last empty."""
    dense = tf.pad(tokens.to_tensor(), [[0, 0], [0, 1]])
    return dense, tf.sequence_mask(tokens.row_lengths(), tf.shape(dense)[1])
