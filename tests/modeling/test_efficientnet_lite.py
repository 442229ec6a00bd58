import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from tfbp.data import images
from tfbp.errors import UserError
from tfbp.modeling import efficientnet_lite as lite

PALACE, DAISY = 698, 985  # classes of ImageNet


@pytest.fixture(scope="module")
def whole():
    return lite.efficientnet_lite0()


def test_it_has_the_size_of_the_published_one_and_the_names_of_its_relatives(whole):
    assert whole.count_params() == 4_694_024
    assert whole.output_shape == (None, 1000)
    names = [layer.name for layer in whole.layers]
    expected = ["stem_conv", "block1a_dwconv", "block2a_expand_conv", "block7a_project_bn"]
    assert [name for name in names if name in expected] == expected
    # A sum where the stride is 1 and the channels are equal: all blocks of a stage but its first.
    sums = [name.removesuffix("_add") for name in names if name.endswith("_add")]
    assert [name[-2:] for name in sums] == ["2b", "3b", "4b", "4c", "5b", "5c", "6b", "6c", "6d"]


def test_weights_that_nobody_brings_are_refused():
    with pytest.raises(UserError, match="`weights` must be a file for efficientnet_lite0"):
        lite.efficientnet_lite0(weights="imagenet")


@pytest.mark.shared_data
def test_with_the_real_weights_it_tells_a_palace_from_a_daisy(whole, shared_data):
    whole.load_weights(shared_data / "efficientnet_lite0_imagenet.weights.h5")
    squares = [photo[:, 107:534].astype(np.float32)[None] for photo in load_sample_images().images]
    photos = np.concatenate([images.resize(square, 224, 224, 3) for square in squares])
    answers = whole.predict_on_batch(lite.preprocess_input(photos))
    assert answers.argmax(axis=1).tolist() == [PALACE, DAISY]
