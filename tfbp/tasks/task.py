"""The contract of a task: its loss, its metrics, and the signatures of its exports."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tfbp.data.examples import Examples


@dataclasses.dataclass(frozen=True)
class Signature:
    """One function of a SavedModel.

    Attributes:
        function: takes the named tensors as keyword arguments and returns a dict of named tensors.
        inputs: what each keyword takes; the batch dimension is None.
        request: from a number of rows to arrays, by keyword, made of so many examples.
    """

    function: Callable[..., dict[str, tf.Tensor]]
    inputs: dict[str, tf.TensorSpec]
    request: Callable[[int], dict[str, np.ndarray]]

    def answer(self, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Calls the function with arrays, and returns its outputs as arrays."""
        return self._call(self.function, request)

    @functools.cached_property
    def traced(self) -> Any:
        """The function as a `tf.function` that is traced once, for its inputs.

        They are its parameters, in their order and by their names.
        """
        names = list(self.inputs)

        def endpoint(*values: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.function(**dict(zip(names, values, strict=True)))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in names]
        endpoint.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        specs = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in self.inputs.items()]
        function = tf.function(endpoint, input_signature=specs)
        function.get_concrete_function()
        return function

    def compiled(self, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Calls the traced function, like `answer`."""
        return self._call(self.traced.get_concrete_function(), request)

    def _call(
        self, function: Callable[..., dict[str, tf.Tensor]], request: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        tensors = {
            name: tf.constant(request[name], spec.dtype) for name, spec in self.inputs.items()
        }
        return {name: value.numpy() for name, value in function(**tensors).items()}


class Task(Protocol):
    """The methods that every task has: `tfbp.Classification`, `tfbp.MultiLabel`, `tfbp.Ordinal`,
    `tfbp.Regression`, `tfbp.LanguageModel`.
    """

    def loss(self) -> keras.losses.Loss:
        """Returns the loss to train with; it takes the model's outputs as they are."""

    def class_weights_for(self, examples: Examples) -> np.ndarray | None:
        """Returns the weight of an example of each class in the loss, float32 [classes].

        None: all weigh the same. `examples` are those that are trained on.
        """

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns new running metrics to show while training, beside the loss."""

    def check(self, model: keras.Model, examples: Examples) -> None:
        """Refuses, before any training, a model and examples that do not fit together.

        Raises:
            tfbp.UserError: says which part does not fit.
        """

    def per_example(self, x: tf.Tensor, y: tf.Tensor, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes for a batch what `evaluate` needs of each example: tensors [batch, …].

        Args:
            x: what the model was given or, where a phase learns from cached features, these.
        """

    def evaluate(self, per_example: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns the results for a JSON file, "loss" first, from `per_example` of them all."""

    def signatures(self, model: keras.Model, examples: Examples) -> dict[str, Signature]:
        """Returns name → function of the export; the first one is the default of a server.

        Args:
            examples: what the requests of the signatures are made of.
        """

    def assets(self) -> dict[str, str]:
        """Returns file name → text that an export carries in `assets.extra/`."""
