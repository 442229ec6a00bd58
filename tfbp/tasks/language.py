"""The next token of a text."""

import math

import keras
import numpy as np
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.data.vocabulary import Vocabulary
from tfbp.errors import UserError
from tfbp.tasks import assets, measures, sample_outputs, text_functions
from tfbp.tasks.stepper import Stepper
from tfbp.tasks.task import Signature


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

    def per_example(self, x: tf.Tensor, y: tf.Tensor, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes `loss`, the mean over the targets of each window: float32 [batch]; and `nats`,
        the cross-entropy, where a subclass has another loss.
        """
        loss, nats = self.loss(), LanguageModel.loss(self)
        values = {"loss": measures.each(loss, y, outputs)}
        if measures.made_of(loss) != measures.made_of(nats):
            values["nats"] = measures.each(nats, y, outputs)
        if type(self).metrics is not LanguageModel.metrics:
            values |= measures.kept(y, outputs)
        return values

    def evaluate(self, per_example: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns `loss` (nats per token), `perplexity` (exp of these) and `bits_per_character`."""
        assert examples.characters_per_token is not None  # as `check` has seen
        nats = per_example.get("nats", per_example["loss"]).mean(dtype=np.float64)
        return {
            "loss": float(per_example["loss"].mean(dtype=np.float64)),
            "perplexity": float(np.exp(nats)),
            "bits_per_character": float(nats) / math.log(2) / examples.characters_per_token,
            **measures.values(self.metrics(), per_example),
        }

    def signatures(self, model: keras.Model, examples: Examples) -> dict[str, Signature]:
        """Returns `score`, `generate`, `init_state` and `step`.

        A text or prompt has at most 10,000 tokens and 160,000 bytes.

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
        return text_functions.signatures(stepper, self.vocabulary, examples)

    def assets(self) -> dict[str, str]:
        """Returns `vocabulary.json`, which another run needs to fine-tune on other text."""
        return {assets.VOCABULARY: self.vocabulary.to_json()}

    def _stepper(self, model: keras.Model, examples: Examples) -> Stepper:
        x, _ = sample_outputs.few(examples, 4)
        stepper = Stepper(model)
        stepper.prove(model, x)
        return stepper
