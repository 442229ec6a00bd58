"""A new head on a backbone, with the backbone's own preprocessing inside the model."""

import numbers
import re
from collections.abc import Callable, Sequence, Sized

import keras

from tfbp.errors import UserError, mistake
from tfbp.modeling import tops

_CAFFE = keras.applications.vgg16.preprocess_input  # BGR, minus the mean colour of ImageNet
_TF = keras.applications.resnet_v2.preprocess_input  # -1 to 1
_TORCH = keras.applications.densenet.preprocess_input  # mean and deviation of ImageNet's colours

# By the names that keras.applications gives its models.
_PREPROCESSING = (
    (r"vgg(16|19)|resnet\d+", _CAFFE),
    (r"resnet\d+v2|inception_v3|inception_resnet_v2|xception|nasnet(_mobile|_large)?", _TF),
    (r"mobilenet(v2)?_[\d.]+_(\d+|none)", _TF),
    (r"densenet\d+", _TORCH),
    (r"efficientnetb\d", None),
)
# Those that preprocess inside, unless they were built with `include_preprocessing=False`.
_INSIDE = (
    (r"efficientnetv2-b\d|convnext_(tiny|small|base|large|xlarge)", _TORCH),
    (r"efficientnetv2-[sml]|mobilenetv3(small|large)", _TF),
)

PREPROCESSING_LAYERS = (keras.layers.Rescaling, keras.layers.Normalization)

Preprocessing = Callable[[keras.KerasTensor], keras.KerasTensor] | None


def swap_head(
    backbone: keras.Model,
    classes: int | Sequence[str] | None,
    *,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    preprocess: str | Preprocessing = "auto",
) -> keras.Model:
    """Returns images → preprocessing → backbone → average pooling → hidden layers → logits.

    Layers of the head are named `head_1`, …, `head`, so that `trainable="head.*"` names it; those
    of the backbone have the paths `<backbone>/<layer>`.

    Args:
        backbone: images [batch, height, width, channels] → features [batch, height', width', c],
            which are averaged over space, or [batch, c].
        classes: the number of classes, or their names; None, of data without labels, is refused.
        hidden: units of dense ReLU layers before the last one.
        dropout: rate of the dropout before each dense layer, 0 to below 1.
        preprocess: maps float32 images of 0 to 255 to what the backbone was trained on: a function
            of Keras tensors, None where the backbone does it itself, or "auto": by the backbone's
            name.

    Returns:
        float32 [batch, height, width, channels] of 0 to 255 → float32 logits [batch, classes].

    Raises:
        tfbp.UserError: fewer than two classes, a size or rate out of range, a backbone that "auto"
            does not know, that still has its classifier, or whose output is neither features nor a
            feature map.
    """
    if isinstance(classes, numbers.Integral):
        width = int(classes)
    else:
        width = len(classes) if isinstance(classes, Sized) else 0
    if width < 2:
        raise mistake("classes", "must be at least 2", classes)
    if not 0 <= dropout < 1:
        raise mistake("dropout", "must be at least 0 and below 1", dropout)
    if any(units < 1 for units in hidden):
        raise mistake("hidden", "must be sizes of at least 1", tuple(hidden))
    if not (preprocess in ("auto", None) or callable(preprocess)):
        raise mistake("preprocess", "must be 'auto', a function or None", preprocess)
    if (top := tops.top_of(backbone)) is not None:
        raise UserError(
            f"`backbone` must end before its classifier, and {backbone.name!r} ends with "
            f"{top.name!r}. Cut it before its top: build it with `include_top=False`, or take "
            f"`keras.Model(backbone.input, backbone.get_layer({_below(backbone, top)}).output)`."
        )
    rank = len(backbone.output_shape)
    if rank not in (2, 4):
        raise mistake(
            "backbone",
            "must return features [batch, c] or a feature map [batch, height, width, c]",
            backbone.output_shape,
        )
    preprocessing = preprocessing_of(backbone) if isinstance(preprocess, str) else preprocess

    images = keras.Input(backbone.input_shape[1:], name="image")
    x = preprocessing(images) if preprocessing else images
    x = backbone(x)
    if rank == 4:
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    for number, units in enumerate(hidden, start=1):
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"head_dropout_{number}")(x)
        x = keras.layers.Dense(
            units, activation="relu", kernel_initializer="he_normal", name=f"head_{number}"
        )(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="head_dropout")(x)
    # A start near zero: on features as large as some backbones' the usual start begins with logits
    # of tens, and with few labels much of that noise stays in the answer.
    # float32 whatever the policy: a softmax of float16 logits loses digits.
    start = keras.initializers.RandomNormal(stddev=1e-3)
    logits = keras.layers.Dense(width, kernel_initializer=start, name="head", dtype="float32")(x)
    return keras.Model(images, logits, name=f"{backbone.name}_swapped")


def _below(backbone: keras.Model, top: keras.layers.Layer) -> str:
    """The name of the layer that a backbone's top reads, as code; "…" if it is not on its level."""
    names = [layer.name for layer in backbone.layers]
    position = names.index(top.name) if top.name in names else 0
    return repr(names[position - 1]) if position else "…"


def preprocessing_of(backbone: keras.Model) -> Preprocessing:
    """Returns the function from images of 0 to 255 to what a model of `keras.applications` takes.

    It is found by the model's name. None: the model takes the images as they are.

    Raises:
        tfbp.UserError: the name is not that of a model of `keras.applications`.
    """
    name = backbone.name.lower()
    for pattern, function in _PREPROCESSING:
        if re.fullmatch(pattern, name):
            return function
    for pattern, function in _INSIDE:
        if re.fullmatch(pattern, name):
            inside = any(isinstance(layer, PREPROCESSING_LAYERS) for layer in backbone.layers)
            return None if inside else function
    raise mistake(
        "preprocess",
        "must be given (a function, or None) for a backbone whose name is not that of a model of "
        "keras.applications",
        backbone.name,
    )
