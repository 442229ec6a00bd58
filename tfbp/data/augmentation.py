"""Stateless augmentation: what happens to an image is a function of its seed."""

from collections.abc import Callable

import tensorflow as tf

from tfbp.data.examples import Transform
from tfbp.errors import mistake

# From an image, a seed and how much, to an image.
Step = Callable[[tf.Tensor, tf.Tensor, float], tf.Tensor]


def augmentation(
    *, flip: bool = False, shift: float = 0.0, crop: float = 0.0, colour: float = 0.0
) -> Transform | None:
    """Makes a transform for `Examples.augmented`; None when every setting is off.

    It takes one image, float32 [height, width, channels] from 0 to 255, and a seed, int64 [2], and
    returns an image like it.

    Args:
        flip: mirror every second image, left to right.
        shift: largest shift, as a fraction of each edge; what comes in is mirrored at the border.
        crop: largest fraction of each edge that is cut away; the rest is enlarged (bilinear).
        colour: largest change of brightness (as a fraction of 255), contrast and saturation.

    Raises:
        tfbp.UserError: a fraction is outside [0, 1).
    """
    for name, amount in (("shift", shift), ("crop", crop), ("colour", colour)):
        if not 0 <= amount < 1:
            raise mistake(name, "must be a fraction of at least 0 and under 1", amount)
    known: list[tuple[float, Step]] = [
        (flip, _flip),
        (shift, _shift),
        (crop, _crop),
        (colour, _colour),
    ]
    steps = [(amount, step) for amount, step in known if amount]
    if not steps:
        return None

    def transform(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        for number, (amount, step) in enumerate(steps):
            image = step(image, _seed(seed, number), amount)
        return image

    return transform


def _seed(seed: tf.Tensor, number: int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, number)


def _flip(image: tf.Tensor, seed: tf.Tensor, amount: float) -> tf.Tensor:
    return tf.image.stateless_random_flip_left_right(image, seed)


def _shift(image: tf.Tensor, seed: tf.Tensor, amount: float) -> tf.Tensor:
    height, width, _ = image.shape
    rows, columns = round(amount * height), round(amount * width)
    wider = tf.pad(image, [(rows, rows), (columns, columns), (0, 0)], "SYMMETRIC")
    return tf.image.stateless_random_crop(wider, image.shape, seed)


def _crop(image: tf.Tensor, seed: tf.Tensor, amount: float) -> tf.Tensor:
    height, width, _ = image.shape
    chosen = tf.random.stateless_uniform([3], seed)
    cut = amount * chosen[0]
    corner = cut * chosen[1:]
    box = tf.concat([corner, corner + 1 - cut], axis=0)
    return tf.image.crop_and_resize(image[tf.newaxis], box[tf.newaxis], [0], (height, width))[0]


def _colour(image: tf.Tensor, seed: tf.Tensor, amount: float) -> tf.Tensor:
    changes: list[Callable[[tf.Tensor], tf.Tensor]] = [
        lambda x: tf.image.stateless_random_brightness(x, 255 * amount, _seed(seed, 0)),
        lambda x: tf.image.stateless_random_contrast(x, 1 - amount, 1 + amount, _seed(seed, 1)),
    ]
    if image.shape[-1] == 3:
        changes.append(
            lambda x: tf.image.stateless_random_saturation(
                x, 1 - amount, 1 + amount, _seed(seed, 2)
            )
        )
    for change in changes:
        # Saturation is defined for colours inside the range alone.
        image = tf.clip_by_value(change(image), 0, 255)
    return image
