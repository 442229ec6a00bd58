"""The optimizer of a phase: Keras's own rule, at a rate for each layer, inside an `Update`."""

import re
from collections.abc import Mapping, MutableMapping

import keras
import numpy as np
import tensorflow as tf

from tfbp.errors import mistake
from tfbp.modeling import keras_graph
from tfbp.modeling.freezing import Frozen
from tfbp.modeling.paths import check_alternatives
from tfbp.training import rules, schedules
from tfbp.training.phase import Phase
from tfbp.training.update import Update


def rates(phase: Phase, frozen: Frozen) -> dict[str, float]:
    """Returns the (peak) rate of each layer that learns, by its path, in the graph's order.

    Raises:
        tfbp.UserError: the phase's `learning_rate` has none for a layer, or for no layer.
    """
    paths = [path for path, variables in frozen.learning.items() if variables]
    by_path: dict[str, float] = {}
    if not isinstance(phase.learning_rate, Mapping):
        by_path = dict.fromkeys(paths, float(phase.learning_rate))
    else:
        used = set()
        for path in paths:
            names = frozen.division.names[path]
            matching = (p for p in phase.learning_rate if any(re.fullmatch(p, n) for n in names))
            pattern = next(matching, None)
            if pattern is None:
                rule = f"must have a rate for each layer that learns; none matches {path!r}"
                raise mistake("learning_rate", rule, list(phase.learning_rate))
            used.add(pattern)
            by_path[path] = float(phase.learning_rate[pattern])
        for pattern in phase.learning_rate:
            if pattern not in used:
                rule = "must not name layers that do not learn, or that have another rate already"
                raise mistake("learning_rate", rule, pattern, paths)
            known = [name for path in paths for name in frozen.division.names[path]]
            check_alternatives("learning_rate", re.compile(pattern), known)
    decay = 1.0 if phase.layer_decay is None else phase.layer_decay
    return {path: by_path[path] * decay ** (len(paths) - 1 - i) for i, path in enumerate(paths)}


def build(phase: Phase, updates: int, frozen: Frozen | None = None) -> Update:
    """Returns the optimizer of a phase.

    Args:
        phase: its settings.
        updates: in the whole phase, the length of its schedule.
        frozen: how the phase divides the model: needed if layers have rates of their own, or
            compute in float16, for which the loss is scaled.

    Raises:
        tfbp.UserError: rates and layers do not fit together.
    """
    factors: dict[int, float] = {}
    half = False
    peak = _peak(phase)
    if frozen:
        by_path = rates(phase, frozen)
        peak = max(by_path.values())
        for path, rate in by_path.items():
            factors |= {id(variable): rate / peak for variable in frozen.learning[path]}
        layers = [*frozen.trainable.values(), *frozen.frozen.values()]
        half = any(layer.compute_dtype == "float16" for layer in layers)
    rule = rules.make(phase.optimizer, schedules.of(phase, peak, updates), mixin=_Rates)
    rule.decay = phase.weight_decay  # by `_Rates`: Keras's own uses one rate for all layers
    return Update(rule, phase, factors, scale_loss=half)


def plain(phase: Phase) -> keras.optimizers.Optimizer:
    """Returns a plain Keras optimizer of the phase's kind, at its (highest) rate."""
    return rules.make(phase.optimizer, _peak(phase), weight_decay=phase.weight_decay)


def _peak(phase: Phase) -> float:
    rate = phase.learning_rate
    return float(max(rate.values()) if isinstance(rate, Mapping) else rate)


class _Rates(keras_graph.GradientsAreSums):
    """A mixin before a Keras optimizer: a rate for each variable, which scales its decay too.

    Attributes:
        factors: of the optimizer's rate, one for each variable that it was built with.
        decay: of the weights, per update, times their rate.
    """

    factors: tuple[float, ...]
    decay: float

    def save_own_variables(self, store: MutableMapping[str, np.ndarray]) -> None:
        """Saves nothing: `Update`, which holds this optimizer, does."""

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        factor = self.factors[keras_graph.variable_index(self, variable)]
        rate = tf.cast(learning_rate, variable.dtype) * factor
        if self.decay:
            variable.assign_sub(variable * self.decay * rate)
        super().update_step(gradient, variable, rate)  # type: ignore[misc]  # that optimizer's
