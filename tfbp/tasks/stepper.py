"""A trained recurrent model that hands its state on: it reads and writes token by token."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.errors import UserError
from tfbp.modeling import precision


class Stepper:
    """The layers of a language model, with the recurrent state as an input and an output.

    It shares the model's weights and has no cuDNN kernel in it, so that it is served on any device.

    Args:
        model: a chain of layers from int32 tokens [batch, steps] to logits; each layer is recurrent
            or works on every step alone.
    """

    def __init__(self, model: keras.Model):
        self._calls: list[tuple[keras.layers.Layer, dict[str, Any]]] = []

        def note(layer: keras.layers.Layer, *args: Any, **settings: Any) -> Any:
            stepping = layer
            if isinstance(layer, keras.layers.RNN):
                stepping = keras.layers.RNN(layer.cell, return_sequences=True, return_state=True)
            self._calls.append((stepping, settings))
            return layer(*args, **settings)

        # A walk over the calls, not the layers: a tied embedding is called twice. Over the graph
        # alone: the clone of a compiled model would make its optimizer anew.
        keras.models.clone_model(
            keras.Model(model.inputs, model.outputs),
            input_tensors=[
                keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in model.inputs
            ],
            clone_function=lambda layer: layer,
            call_function=note,
        )
        self._recurrent = len(self.start(1))

    def start(self, batch: tf.Tensor | int) -> list:
        """Returns the state of `batch` rows before their first token: zeros."""
        return [
            layer.get_initial_state(batch)
            for layer, _ in self._calls
            if isinstance(layer, keras.layers.RNN)
        ]

    def names(self) -> dict[str, int]:
        """Returns the names of the state's parts, `state_0`, …, and their widths.

        In the order of the layers: h and c of an LSTM, the one state of a GRU or plain recurrence.
        """
        parts = tf.nest.flatten(self.start(1))
        return {f"state_{number}": part.shape[-1] for number, part in enumerate(parts)}

    def pack(self, named: dict[str, tf.Tensor]) -> list:
        """Returns the state of its parts by name, float32 [batch, width] each."""
        start = self.start(1)
        parts = [
            tf.cast(named[name], part.dtype)
            for name, part in zip(self.names(), tf.nest.flatten(start), strict=True)
        ]
        return tf.nest.pack_sequence_as(start, parts)

    def unpack(self, states: list) -> dict[str, tf.Tensor]:
        """Returns the parts of the state by name, float32 [batch, width] each."""
        parts = [tf.cast(part, tf.float32) for part in tf.nest.flatten(states)]
        return dict(zip(self.names(), parts, strict=True))

    @tf.autograph.experimental.do_not_convert
    def __call__(
        self,
        tokens: tf.Tensor,
        states: list,
        mask: tf.Tensor | None = None,
        select: Callable[[tf.Tensor], tf.Tensor] = lambda values: values,
    ) -> tuple[tf.Tensor, list]:
        """Returns the logits after each token, float32 [batch, steps, vocabulary], and the states.

        Args:
            tokens: int32 [batch, steps], at least one step.
            states: as `start` or the call before returned them.
            mask: bool [batch, steps]; where it is False the token is passed over: the state stays
                and the logits are those of the step before.
            select: from the output of the last recurrent layer, [batch, steps, units], to that
                whose logits are computed, [rows, positions, units].
        """
        values, states, left = tokens, [], iter(states)
        for layer, settings in self._calls:
            if isinstance(layer, keras.layers.RNN):
                values, *state = layer(values, initial_state=next(left), mask=mask)
                states.append(state)
                if len(states) == self._recurrent:
                    values = select(values)
            else:
                values = layer(values, **settings)
        return tf.cast(values, tf.float32), states

    def prove(self, model: keras.Model, tokens: np.ndarray) -> None:
        """Refuses a model that answers otherwise than this stepper does in two parts.

        Args:
            tokens: int32 [batch, steps].

        Raises:
            tfbp.UserError: the model is no such chain: it reads backwards, or across steps.
        """
        expected = tf.cast(model(tokens, training=False), tf.float32)
        states, parts = self.start(len(tokens)), []
        middle = max(1, tokens.shape[1] // 2)
        try:
            for part in filter(lambda part: part.shape[1], np.split(tokens, [middle], axis=1)):
                logits, states = self(part, states)
                parts.append(logits)
            answer = tf.concat(parts, axis=1)
            answer = answer if expected.shape.rank == 3 else answer[:, -1]
            difference = np.abs(answer - expected).max()
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            raise UserError(_REFUSAL) from error
        # The same arithmetic on a CPU; the room is for cuDNN's own order of summation.
        if not difference <= precision.tolerance(model, 1e-4) * np.abs(expected).max():
            raise UserError(f"{_REFUSAL} Read in two parts, its logits differ by {difference:.3g}.")


_REFUSAL = (
    "`model` must be a chain of recurrent layers that read forwards and of layers that work on "
    "every step alone, so that it can write text token by token."
)
