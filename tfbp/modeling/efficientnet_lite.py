"""EfficientNet-Lite0, an EfficientNet for small devices (Tan 2020): ReLU6, and no
squeeze-and-excitation.

keras.applications does not have it. It is called as the models there are; layers are named as those
of its EfficientNet.
"""

import string

import keras

from tfbp.errors import mistake

# Of each stage: blocks, edge of the kernel, stride of the first block, expansion, channels out.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _TOP = 32, 1280  # channels


def preprocess_input(images: keras.KerasTensor) -> keras.KerasTensor:
    """Returns images of 0 to 255 as the model was trained on them, about -1 to 1."""
    return (images - 127.0) / 128.0


def efficientnet_lite0(
    include_top: bool = True,
    weights: str | None = None,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
) -> keras.Model:
    """Returns EfficientNet-Lite0 with random weights, 4,694,024 of them with its top.

    It takes what `preprocess_input` returns, float32 [batch, height, width, 3], and answers
    probabilities [batch, classes], or without its top features [batch, h, w, 1280], where h and w
    are height and width divided by 32, rounded up.

    Args:
        weights: None. Weights are loaded from a file, by `load_weights`.

    Raises:
        tfbp.UserError: other weights.
    """
    if weights is not None:
        rule = (
            "must be a file for efficientnet_lite0: Keras brings no weights of it. It takes a "
            ".weights.h5 file with or without the top of 1,000 classes"
        )
        raise mistake("weights", rule, weights)
    images = keras.Input(input_shape)
    x = _activated(_convolution(images, _STEM, 3, 2, "stem_conv"), "stem_bn", "stem_activation")
    for stage, (blocks, kernel, stride, expansion, channels) in enumerate(_STAGES, start=1):
        for letter in string.ascii_lowercase[:blocks]:
            first = letter == "a"
            name = f"block{stage}{letter}_"
            x = _block(x, kernel, stride if first else 1, expansion, channels, name)
    x = _activated(_convolution(x, _TOP, 1, 1, "top_conv"), "top_bn", "top_activation")
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = keras.layers.Dense(classes, activation="softmax", name="predictions")(x)
    return keras.Model(images, x, name="efficientnet_lite0")


def _block(
    x: keras.KerasTensor, kernel: int, stride: int, expansion: int, channels: int, name: str
) -> keras.KerasTensor:
    """An inverted residual block (Sandler et al. 2018, "MobileNetV2", fig. 3)."""
    start = x
    if expansion > 1:
        x = _convolution(x, expansion * x.shape[-1], 1, 1, f"{name}expand_conv")
        x = _activated(x, f"{name}expand_bn", f"{name}expand_activation")
    x = keras.layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}dwconv")(
        x
    )
    x = _activated(x, f"{name}bn", f"{name}activation")
    x = _normalized(_convolution(x, channels, 1, 1, f"{name}project_conv"), f"{name}project_bn")
    if stride == 1 and start.shape[-1] == channels:
        x = keras.layers.Add(name=f"{name}add")([start, x])
    return x


def _convolution(
    x: keras.KerasTensor, channels: int, kernel: int, stride: int, name: str
) -> keras.KerasTensor:
    return keras.layers.Conv2D(channels, kernel, stride, "same", use_bias=False, name=name)(x)


def _normalized(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.layers.BatchNormalization(epsilon=1e-3, name=name)(x)


def _activated(x: keras.KerasTensor, normalization: str, activation: str) -> keras.KerasTensor:
    return keras.layers.ReLU(6.0, name=activation)(_normalized(x, normalization))
