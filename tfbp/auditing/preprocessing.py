"""The inputs of a backbone of `keras.applications`, compared with those it was trained on, and
images that are scaled before a model and in it.

Each preprocessing of `keras.applications` is an affine map of colours and can be undone: what
reaches the backbone must come from images of 0 to 255. Where the examples are such images, and the
model does not resize them, they are compared pixel by pixel, so that a dark set is no suspect.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import structures
from tfbp.data.splits import Splits
from tfbp.errors import UserError
from tfbp.finding import Finding
from tfbp.modeling import heads, paths
from tfbp.tasks import sample_outputs

# In grey values, of 255. Two roundings to bfloat16 make a difference of up to 2.
_EQUAL = 3
# What a bicubic resizing may overshoot by. Preprocessing left out or done twice is off by over 100.
_OVERSHOOT = 64
# Less contrast has no batch of photographs; images scaled to -1 to 1 or to deviations have it.
_CONTRAST = 10
# The scale of a layer for images of 0 to 255: 1 / 127.5 and 1 / 255 are usual.
_SHRINKING = 1 / 100


def findings(
    model: keras.Model, splits: Splits, backbones: Sequence[keras.Model]
) -> Iterator[Finding]:
    """Yields `preprocessing` for each backbone that is known by its name, or else for a model that
    begins with a Rescaling of images that are scaled already.

    Looked at are the models inside `model`, `model` itself, and `backbones` whose layers it uses.

    Raises:
        tfbp.UserError: the model does not take the examples.
    """
    known, rescaling = _known([*_models(model), *backbones]), _rescaling(model)
    if not any(map(_is_image, structures.leaves(splits.train.spec[0]).values())):
        return
    if not known and rescaling is None:
        return
    x, _ = sample_outputs.few(splits.train, sample_outputs.EXAMPLES)
    images = [each for each in structures.leaves(x).values() if each.ndim == 4]
    if not known:
        if all(0 < np.abs(each).max() <= 1 for each in images):
            yield _rescaled_twice(rescaling, images)
        return
    with contextlib.ExitStack() as stack:
        reached = [(backbone, stack.enter_context(_inputs(first))) for backbone, first in known]
        sample_outputs.compute(model, splits.train)
    for backbone, seen in reached:
        # None where the model does not use the backbone.
        if seen and seen[0].ndim == 4 and seen[0].shape[-1] == 3:
            # Of several images one is the backbone's: the one that it fits best.
            yield from min((list(_judge(backbone, x, seen[0])) for x in images), key=len)


def _rescaling(model: keras.Model) -> keras.layers.Rescaling | None:
    """Returns the layer that a model begins with, if it scales images of 0 to 255 down."""
    inner = (
        layer for _, layer in paths.layers(model) if not isinstance(layer, keras.layers.InputLayer)
    )
    first = next(inner, None)
    if isinstance(first, keras.layers.Rescaling) and np.abs(first.scale).max() <= _SHRINKING:
        return first
    return None


def _rescaled_twice(layer: keras.layers.Rescaling, images: Sequence[np.ndarray]) -> Finding:
    low, high = min(each.min() for each in images), max(each.max() for each in images)
    factor = 1 / np.abs(layer.scale).max()
    return Finding(
        "preprocessing",
        f"{layer.name!r} scales images of 0 to 255 down by {factor:.4g}, and "
        f"the examples are {low:.4g} to {high:.4g}: they are scaled already. Give images from 0 to "
        "255, or leave the layer out.",
    )


def _is_image(spec: tf.TensorSpec) -> bool:
    return spec.shape.rank == 3


def _models(model: keras.Model) -> Iterator[keras.Model]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _models(layer)
    yield model


def _known(models: Sequence[keras.Model]) -> list[tuple[keras.Model, keras.layers.Layer]]:
    """Returns each known backbone with the layer that begins its preprocessing, or comes after."""
    known: dict[int, tuple[keras.Model, keras.layers.Layer]] = {}
    for model in models:
        with contextlib.suppress(UserError):
            outside = heads.preprocessing_of(model) is not None
            for _, layer in paths.layers(model):
                padding = isinstance(layer, keras.layers.ZeroPadding2D)
                inside = isinstance(layer, heads.PREPROCESSING_LAYERS)
                if (padding or hasattr(layer, "kernel")) if outside else inside:
                    known.setdefault(id(layer), (model, layer))
                    break
    return list(known.values())


@contextlib.contextmanager
def _inputs(layer: keras.layers.Layer) -> Iterator[list[np.ndarray]]:
    """Collects what a layer is called with. This needs no graph: subclassed models have none."""
    seen: list[np.ndarray] = []
    call = layer.call

    def note(x: Any, *args: Any, **settings: Any) -> Any:
        if tf.executing_eagerly():  # Keras may trace the layer, for the shape of its answer.
            seen.append(np.asarray(keras.ops.cast(x, "float32")))
        return call(x, *args, **settings)

    layer.call = note
    try:
        yield seen
    finally:
        del layer.call


class _Kind:
    """A preprocessing as an affine map of colours, and its inverse."""

    def __init__(self, function: Callable | None):
        def of(colours: np.ndarray) -> np.ndarray:
            image = np.array([[colours]], np.float64)
            return np.asarray(function(image) if function else image)[0, 0]

        self.black, self.white = of(np.zeros((1, 3))), of(np.full((1, 3), 255))
        self._matrix = (of(255 * np.eye(3)) - self.black) / 255

    def undo(self, z: np.ndarray) -> np.ndarray:
        """Returns the images that become z, [..., 3]; 0 to 255 if z is of this kind."""
        return (z - self.black) @ np.linalg.inv(self._matrix)


def _judge(backbone: keras.Model, x: np.ndarray, z: np.ndarray) -> Iterator[Finding]:
    """Judges what reaches a backbone, z, of the examples x: float32 [batch, …, 3]."""
    function = heads.preprocessing_of(backbone)
    expected = _Kind(function)
    images, undone = _images(x), expected.undo(z)
    if _equal(undone, images):
        return
    outside = undone.min() < -_OVERSHOOT or undone.max() > 255 + _OVERSHOOT
    conflict = outside or 0 < np.ptp(undone, axis=(0, 1, 2)).max() < _CONTRAST
    other = next((name for name, kind in _others() if _equal(kind.undo(z), images)), "")
    warning = False
    if function and _equal(z, images):
        fault = "is left out"
    elif _equal(expected.undo(undone), images) or (other and not function):
        fault = "is applied twice"
    elif other:
        fault, warning = f"is of the wrong kind ({other})", not conflict
    elif conflict and _equal(undone, x):
        fault = "is applied to what is no image of 0 to 255, or no longer one"
    elif conflict:
        fault = "does not fit"
    else:
        return
    remedy = (
        "Apply its `preprocess_input` of keras.applications once, to images of 0 to 255, as "
        "`tfbp.swap_head` does."
        if function
        else "It preprocesses inside: it takes images of 0 to 255 as they are."
    )
    low, high = np.min([expected.black, expected.white]), np.max([expected.black, expected.white])
    yield Finding(
        "preprocessing",
        f"The preprocessing for {backbone.name!r} {fault}: examples of {x.min():.4g} to "
        f"{x.max():.4g} reach it as {z.min():.4g} to {z.max():.4g} with a mean of {z.mean():.4g}, "
        f"and it was trained on {low:.4g} to {high:.4g}. {remedy}",
        warning,
    )


def _others() -> Iterator[tuple[str, _Kind]]:
    applications = keras.applications
    yield "-1 to 1, as for ResNet50V2", _Kind(applications.resnet_v2.preprocess_input)
    yield "mean colour subtracted, as for VGG16", _Kind(applications.vgg16.preprocess_input)
    yield "mean and deviation, as for DenseNet", _Kind(applications.densenet.preprocess_input)
    yield "0 to 1", _Kind(lambda image: image / 255)


def _images(x: np.ndarray) -> np.ndarray | None:
    """Returns examples as images of 0 to 255, if that is what they are or 0 to 1; else None."""
    low, high = x.min(), x.max()
    if low < 0 or high > 255:
        return None
    if high <= 1:
        return 255 * x
    # Under 5 only whole numbers are grey values for certain: normalised colours reach 2.6.
    return x if high > 5 or (x == np.round(x)).all() else None


def _equal(a: np.ndarray, b: np.ndarray | None) -> bool:
    return b is not None and a.shape == b.shape and bool(np.abs(a - b).max() <= _EQUAL)
