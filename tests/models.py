"""The small models that tests share; `import models` finds them in every folder of tests.

model = models.classifier(models.backbone(), keras.layers.Dropout(0.5))  # body/conv_1, …, head
"""

from collections.abc import Sequence

import keras

layers = keras.layers


def chain(
    shape: Sequence[int | None],
    *parts: keras.layers.Layer,
    dtype: str | None = None,
    name: str | None = None,
) -> keras.Model:
    """Returns a functional model that applies layers, or models, one after the other.

    Args:
        shape: of one input; the batch is left out.
        parts: each is called on the answer of the one before.
        dtype: of the inputs, such as "int32" for tokens.
    """
    x = inputs = keras.Input(shape, dtype=dtype)
    for part in parts:
        x = part(x)
    return keras.Model(inputs, x, name=name)


def backbone(*between: keras.layers.Layer, size: int = 8, name: str = "body") -> keras.Model:
    """Returns images [size, size, 3] → rescaling, conv_1, norm, what is given, conv_2 → a map of 6
    channels and half the sides.
    """
    return chain(
        (size, size, 3),
        layers.Rescaling(1 / 255, name="rescaling"),
        layers.Conv2D(4, 3, strides=2, padding="same", name="conv_1"),
        layers.BatchNormalization(name="norm"),
        *between,
        layers.Conv2D(6, 3, padding="same", name="conv_2"),
        name=name,
    )


def blocks(*widths: int, size: int = 8, dropout: float = 0.0, name: str = "body") -> keras.Model:
    """Returns images [size, size, 3] → for each width a block conv_n, norm_n, relu_n and, with
    `dropout`, dropout_n, which keeps a random seed.
    """
    parts = []
    for number, width in enumerate(widths, start=1):
        parts.append(layers.Conv2D(width, 3, padding="same", name=f"conv_{number}"))
        parts.append(layers.BatchNormalization(name=f"norm_{number}"))
        parts.append(layers.ReLU(name=f"relu_{number}"))
        if dropout:
            parts.append(layers.Dropout(dropout, name=f"dropout_{number}"))
    return chain((size, size, 3), *parts, name=name)


def classifier(
    features: keras.Model, *between: keras.layers.Layer, classes: int = 3
) -> keras.Model:
    """Returns images → a nested backbone, pool, what is given, head → logits [classes]."""
    return chain(
        features.input_shape[1:],
        features,
        layers.GlobalAveragePooling2D(name="pool"),
        *between,
        layers.Dense(classes, name="head"),
    )


def dense(*between: keras.layers.Layer, width: int = 4, classes: int = 2) -> keras.Model:
    """Returns rows [width] → a nested body (first, what is given, second) and head → logits
    [classes].
    """
    body = chain(
        (width,),
        layers.Dense(6, name="first"),
        *between,
        layers.Dense(6, name="second"),
        name="body",
    )
    return chain((width,), body, layers.Dense(classes, name="head"))
