import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.data.augmentation import augmentation
from tfbp.errors import UserError

IMAGE = tf.constant(np.random.default_rng(0).uniform(0, 255, (8, 10, 3)), tf.float32)
SEEDS = [tf.constant([0, number], tf.int64) for number in range(20)]


def test_nothing_asked_for_is_no_transform():
    assert augmentation() is None


@given(st.booleans(), *[st.sampled_from([0.0, 0.1, 0.9])] * 3, st.integers(0, 2**60))
@settings(max_examples=30, deadline=None)
def test_images_keep_shape_and_range_and_equal_seeds_give_equal_images(
    flip, shift, crop, colour, seed
):
    transform = augmentation(flip=flip, shift=shift, crop=crop, colour=colour)
    if transform is not None:
        image = transform(IMAGE, tf.constant([seed, 1], tf.int64)).numpy()
        assert image.shape == IMAGE.shape
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 255.001
        assert np.array_equal(image, transform(IMAGE, tf.constant([seed, 1], tf.int64)))


def test_a_flip_is_the_image_or_its_mirror():
    transform = augmentation(flip=True)
    images = [transform(IMAGE, seed).numpy() for seed in SEEDS]
    mirrored = [np.array_equal(image, IMAGE[:, ::-1]) for image in images]
    assert 0 < sum(mirrored) < len(SEEDS)
    assert all(
        was or np.array_equal(image, IMAGE) for was, image in zip(mirrored, images, strict=True)
    )


def test_a_shift_moves_the_image_by_whole_pixels_within_its_bound():
    wider = np.pad(IMAGE, [(2, 2), (2, 2), (0, 0)], mode="symmetric")
    places = {
        (row, column): wider[row : row + 8, column : column + 10]
        for row in range(5)
        for column in range(5)
    }
    transform = augmentation(shift=0.2)
    found = set()
    for seed in SEEDS:
        image = transform(IMAGE, seed).numpy()
        found |= {place for place, shifted in places.items() if np.array_equal(image, shifted)}
    assert len(found) > 5


def test_a_crop_shows_part_of_the_image_enlarged():
    ramp = tf.tile(tf.reshape(tf.range(10.0), (1, 10, 1)), (8, 1, 1))
    transform = augmentation(crop=0.5)
    for seed in SEEDS:
        row = transform(ramp, seed).numpy()[0, :, 0]
        steps = np.diff(row)
        assert row.min() >= 0
        assert row.max() <= 9.0001
        assert np.allclose(steps, steps[0], atol=1e-4)
        assert 0.5 - 1e-4 <= steps[0] <= 1.0001


def test_colour_changes_grey_images_too():
    grey = IMAGE[..., :1]
    transform = augmentation(colour=0.3)
    assert transform(grey, SEEDS[0]).shape == grey.shape
    assert not np.allclose(transform(grey, SEEDS[0]), grey)


@pytest.mark.parametrize("name", ["shift", "crop", "colour"])
@pytest.mark.parametrize("amount", [-0.1, 1.0, float("nan")])
def test_amounts_out_of_range_are_refused(name, amount):
    with pytest.raises(UserError, match=f"`{name}`"):
        augmentation(**{name: amount})
