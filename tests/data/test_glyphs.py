import numpy as np
import pytest

from tfbp.data import glyphs

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")


def test_letters_are_repeatable_and_vary():
    images, labels = glyphs.render(4, seed=0)
    assert images.shape == (208, 8, 8, 1)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [4] * 52
    assert np.array_equal(images, glyphs.render(4, seed=0)[0])
    assert not np.array_equal(images, glyphs.render(4, seed=1)[0])
    assert len({image.tobytes() for image in images}) > 200


def test_letters_have_ink_and_their_own_shape():
    images, labels = glyphs.render(12, seed=0)
    assert images.max(axis=(1, 2, 3)).min() > 60
    means = np.stack([images[labels == label].mean(axis=0).ravel() for label in range(52)])
    # A nearest-mean classifier must do far better than chance (1/52) on letters it has not seen.
    others, truth = glyphs.render(4, seed=1)
    distances = np.square(others.reshape(-1, 1, 64) - means).sum(axis=2)
    assert np.mean(distances.argmin(axis=1) == truth) > 0.4
