"""What trains in a phase: the layers that its pattern names, and nothing else."""

import dataclasses

import keras

from tfbp.errors import mistake
from tfbp.modeling import paths


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A model's layers, as a phase divides them. Paths are those of `tfbp.modeling.paths`.

    Attributes:
        trainable: path → layer whose trainable variables learn.
        statistics: paths of those among them whose statistics move while training.
        frozen: path → layer in which nothing may change.
    """

    trainable: dict[str, keras.layers.Layer]
    statistics: tuple[str, ...]
    frozen: dict[str, keras.layers.Layer]

    @property
    def parameters(self) -> int:
        """Number of values that learn."""
        layers = self.trainable.values()
        return sum(
            int(variable.value.shape.num_elements() or 1)
            for layer in layers
            for variable in layer.trainable_variables
        )


def freeze(model: keras.Model, trainable: str, batch_norm: str = "frozen") -> Frozen:
    """Makes the layers whose path matches learn, and freezes all others.

    Keras ignores a change of `trainable` until the model is compiled again, with a new optimizer.

    Args:
        model: a built model; its layers' `trainable` is set.
        trainable: regular expression, matched against whole layer paths.
        batch_norm: "frozen" keeps matching BatchNormalization layers in inference mode, gamma and
            beta fixed; "train" lets them use batch statistics and learn.

    Raises:
        tfbp.UserError: the pattern matches no layer, or none that can learn.
    """
    matched = paths.select(model, trainable)
    if batch_norm == "frozen":
        matched = {path: layer for path, layer in matched.items() if not _normalizes(layer)}
    # A frozen model hides the trainable layers inside it: open all, then freeze layer by layer.
    model.trainable = True
    frozen = {}
    for path, layer in paths.with_weights(model).items():
        layer.trainable = path in matched
        if path not in matched:
            frozen[path] = layer
    if not model.trainable_weights:
        rule = "must match a layer that can learn (`batch_norm='frozen'` keeps BatchNormalization)"
        raise mistake("trainable", rule, trainable)
    statistics = tuple(path for path, layer in matched.items() if layer.non_trainable_weights)
    return Frozen(matched, statistics, frozen)


def _normalizes(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)
