"""Pretrained weights that were not loaded: layers that still hold their random start.

Keras's initializers keep the seed that they drew with: the very draw can be repeated and compared.
"""

from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfbp.finding import Finding, listed
from tfbp.modeling import keras_graph, paths
from tfbp.training.phase import Phase

# Values that are not proportional to as many others by chance.
_SOME = 8
_FEW = 1024


def findings(
    model: keras.Model, phase: Phase, backbones: Sequence[keras.Model]
) -> Iterator[Finding]:
    """Yields `weights-not-loaded` and `random-frozen`.

    Args:
        model: frozen for `phase`, the first one.
        backbones: models that are meant to be pretrained. A model nested in `model` is taken for
            one when some of its layers were loaded and others are frozen at their random start.
    """
    own = list(paths.layers(model))
    outside = [
        each for backbone in backbones for each in paths.layers(backbone, backbone.name + "/")
    ]
    names = {id(layer): path for path, layer in [*outside, *own]}
    starts = {id(layer): _starts(layer) for _, layer in [*outside, *own]}
    random = {key for key, draws in starts.items() if any(held for _, held in draws)}
    frozen = {
        id(layer)
        for _, layer in own
        if any(held and not variable.trainable for variable, held in starts[id(layer)])
    }

    reported: set[int] = set()
    for group, given in _groups(model, backbones):
        members = [id(layer) for layer in group]
        fresh = [key for key in members if key in random]
        loaded = [names[key] for key in members if starts[key] and key not in random]
        harmed = frozen & set(fresh) or (given and loaded)
        if not (fresh and harmed and (given or loaded)):
            continue
        reported.update(fresh)
        which = listed([names[key] for key in fresh])
        if loaded:
            message = (
                f"only a part of the weights was loaded: {which} hold their random start, while "
                f"{listed(loaded)} do not. Load the weights of all of these layers."
            )
        else:
            message = (
                f"no weights were loaded: {which} hold their random start, and phase "
                f"{phase.name!r} keeps them frozen. Load the pretrained weights."
            )
        yield Finding("weights-not-loaded", message)
    if left := [names[key] for key in starts if key in frozen - reported]:
        yield Finding(
            "random-frozen",
            f"phase {phase.name!r} freezes {listed(left)}, which still hold their random start. "
            "Load weights into them, or let the first phase's `trainable` match them.",
        )


def _groups(
    model: keras.Model, backbones: Sequence[keras.Model]
) -> Iterator[tuple[list[keras.layers.Layer], bool]]:
    """Yields the layers of each model whose weights belong together, and whether it was given."""
    for backbone in backbones:
        yield [layer for _, layer in paths.layers(backbone)], True
    for nested in keras_graph.nested_models(model):
        if not any(nested is given for given in backbones):
            own = [layer for layer in nested.layers if not isinstance(layer, keras.Model)]
            yield own, False


def _starts(layer: keras.layers.Layer) -> list[tuple[keras.Variable, bool]]:
    """Returns each matrix that a layer drew at random, and whether it still holds that draw."""
    starts = []
    for part in keras_graph.all_layers(layer):
        owned = vars(part).values()
        draws = [value for value in owned if isinstance(getattr(value, "seed", None), int)]
        draws = [value for value in draws if isinstance(value, keras.initializers.Initializer)]
        if draws:
            matrices = [value for value in owned if isinstance(value, keras.Variable)]
            starts += [(v, _holds(v, draws)) for v in matrices if len(v.shape) > 1]
    return starts


def _holds(variable: keras.Variable, draws: Sequence[keras.initializers.Initializer]) -> bool:
    value = np.asarray(tf.convert_to_tensor(variable.value))  # not copied
    return any(_is_draw(value, draw(variable.shape, variable.dtype)) for draw in draws)


def _is_draw(value: np.ndarray, draw: tf.Tensor) -> bool:
    draw = np.asarray(draw)
    few = value.ravel()[:_FEW].astype(np.float32), draw.ravel()[:_FEW].astype(np.float32)
    # Almost always the first few show it already.
    if not (np.array_equal(*few) or _is_multiple(*few)):
        return False
    if np.array_equal(value, draw):
        return True
    # keras.layers.EinsumDense scales what its initializer draws; one number is a multiple of any.
    if value.size < _SOME or not value.any():
        return False
    return _is_multiple(value.astype(np.float32).ravel(), draw.astype(np.float32).ravel())


def _is_multiple(value: np.ndarray, draw: np.ndarray) -> bool:
    factor = np.dot(value, draw) / np.dot(draw, draw)
    return bool(np.allclose(value, factor * draw, rtol=0, atol=1e-5 * np.abs(value).max()))
