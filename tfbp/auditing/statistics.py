"""Statistics of a frozen backbone that would move away from those that it was trained with."""

from collections.abc import Iterator

import keras

from tfbp.auditing.one_batch import Effect
from tfbp.finding import Finding, listed
from tfbp.modeling import keras_graph
from tfbp.modeling.freezing import Frozen
from tfbp.training.phase import Phase


def findings(model: keras.Model, phase: Phase, frozen: Frozen) -> Iterator[Finding]:
    """Yields `statistics-move` for BatchNormalization that a phase trains in a frozen model.

    An error where nothing else of that nested model trains, a warning where some of it does.
    """
    for nested in keras_graph.nested_models(model):
        inside = {id(layer) for layer in keras_graph.all_layers(nested)}
        moving = [path for path in frozen.statistics if id(frozen.trainable[path]) in inside]
        learning = [
            path
            for path, layer in frozen.trainable.items()
            if id(layer) in inside and path not in moving
        ]
        fixed = [path for path, layer in frozen.frozen.items() if id(layer) in inside]
        if moving and fixed:
            yield Finding(
                "statistics-move",
                f"phase {phase.name!r} freezes {listed(fixed)}, and moves the statistics of "
                f"{listed(moving)} in the same model {nested.name!r}. Set `batch_norm` to "
                "'frozen' or 'affine', or leave these layers out of `trainable`.",
                warning=bool(learning),
            )


def of_batch(phase: Phase, effect: Effect) -> Iterator[Finding]:
    """Yields `statistics-move` for frozen layers that a training batch changes all the same."""
    if effect.moved:
        yield Finding(
            "statistics-move",
            f"phase {phase.name!r} freezes {listed(effect.moved)}, and a batch in training mode "
            "changes their variables. Let these layers keep them fixed while their `trainable` is "
            "False, or call them with `training=False`.",
        )
