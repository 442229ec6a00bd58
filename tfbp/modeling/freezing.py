"""What trains in a phase: the layers that its pattern names, and nothing else."""

import dataclasses
import itertools
import math

import keras

from tfbp.errors import mistake
from tfbp.modeling import adapters, keras_graph, paths


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A model's layers, as a phase divides them. Paths are those of `tfbp.modeling.paths`.

    Attributes:
        trainable: path → layer in which something may change.
        learning: path of each of these → its variables that learn: not all of them where the layer
            has adapters, or normalizes in inference mode.
        statistics: path → variables of a trainable layer that move without a gradient, such as
            BatchNormalization's moving averages. Layers without any are not there.
        frozen: path → layer in which nothing may change.
        division: all layers, in the order of the graph, and the names that patterns know them by.
    """

    trainable: dict[str, keras.layers.Layer]
    learning: dict[str, list[keras.Variable]]
    statistics: dict[str, list[keras.Variable]]
    frozen: dict[str, keras.layers.Layer]
    division: paths.Division

    @property
    def parameters(self) -> int:
        """Number of values that learn."""
        return sum(math.prod(each.shape) for each in itertools.chain(*self.learning.values()))

    @property
    def fixed(self) -> list[keras.Variable]:
        """The weights that stay as they are: all of the frozen layers, and some of the others."""
        changing = itertools.chain(*self.learning.values(), *self.statistics.values())
        numbers = {id(variable) for variable in changing}
        layers = (*self.frozen.values(), *self.trainable.values())
        weights = [variable for layer in layers for variable in layer.weights]
        return [variable for variable in weights if id(variable) not in numbers]


def freeze(model: keras.Model, trainable: str, batch_norm: str = "frozen") -> Frozen:
    """Makes the layers whose path matches learn, and freezes all others.

    Of matching layers that have adapters (`tfbp.add_lora`) the adapters alone learn. Keras ignores
    a change of `trainable` until the model is compiled again, with a new optimizer.

    Args:
        model: a built model; `trainable` of its layers and variables is set.
        trainable: regular expression, matched against whole layer paths.
        batch_norm: "frozen" keeps matching BatchNormalization layers, and those inside matching
            layers, in inference mode, gamma and beta fixed; "affine" keeps them in inference mode
            and lets gamma and beta learn; "train" lets them use batch statistics, move their
            averages and learn.

    Raises:
        tfbp.UserError: the pattern matches no layer, or none that can learn.
    """
    matched = paths.select(model, trainable)
    division = paths.divide(model)
    # A frozen model hides the trainable layers inside it: open all, then freeze layer by layer.
    model.trainable = True
    for path, layer in division.opened.items():
        layer.trainable = any(path in division.names[each] for each in matched)
    divided = Frozen({}, {}, {}, {}, division)
    for path, layer in division.layers.items():
        for part in keras_graph.all_layers(layer):
            # Keras ignores an assignment that changes nothing, and with it the variables, which an
            # earlier phase may have set apart from their layer.
            part.trainable = path not in matched
            part.trainable = path in matched
        fixed = _fix(layer, batch_norm) if path in matched else layer.weights
        fixed = {id(variable) for variable in fixed}
        free = [variable for variable in layer.weights if id(variable) not in fixed]
        if not free:
            divided.frozen[path] = layer
            continue
        divided.trainable[path] = layer
        divided.learning[path] = [variable for variable in free if variable.trainable]
        if moving := [variable for variable in free if not variable.trainable]:
            divided.statistics[path] = moving
    if not model.trainable_weights:
        rule = "must match a layer that can learn (`batch_norm='frozen'` keeps BatchNormalization)"
        raise mistake("trainable", rule, trainable)
    return divided


def _fix(layer: keras.layers.Layer, batch_norm: str) -> list[keras.Variable]:
    """Freezes the variables of a matching layer that may not change, and returns them."""
    fixed = []
    for part in keras_graph.all_layers(layer):
        if isinstance(part, keras.layers.BatchNormalization) and batch_norm != "train":
            part.trainable = False  # inference mode
            learning = [part.gamma, part.beta] if batch_norm == "affine" else []
        elif adapters.adapted(part):
            learning = adapters.learning(part)
        else:
            continue
        for variable in part.weights:
            variable.trainable = any(variable is each for each in learning)
            if not variable.trainable:
                fixed.append(variable)
    return fixed
