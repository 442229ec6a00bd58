"""Statistics under a frozen backbone that would move."""

import keras
import models
import numpy as np
import pytest

import tfbp
from tfbp.auditing import one_batch, statistics
from tfbp.modeling import freezing

X = np.random.default_rng(0).normal(2.0, 1.0, size=(40, 4)).astype("float32")
SPLITS = tfbp.Splits.from_arrays(X, np.arange(40) % 2, classes=("a", "b"))
TASK = tfbp.Classification(SPLITS.classes)


class Centred(keras.layers.Layer):
    """Follows the mean of its batches, frozen or not: what BatchNormalization was in old Keras."""

    def __init__(self, heed=False, **settings):
        super().__init__(**settings)
        self.heed = heed

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.mean = self.add_weight(
            shape=(shape[-1],), initializer="zeros", trainable=False, name="mean"
        )

    def call(self, x, training=False):
        if training and (self.trainable or not self.heed):
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=0))
        return self.scale * (x - self.mean)


def found(model, pattern, batch_norm="frozen"):
    phase = tfbp.Phase("tune", pattern, epochs=1, learning_rate=0.1, batch_norm=batch_norm)
    with one_batch.untouched(model):
        frozen = freezing.freeze(model, phase.trainable, phase.batch_norm)
        result = list(statistics.findings(model, phase, frozen))
        return result + list(statistics.of_batch(phase, one_batch.run(model, SPLITS, TASK, frozen)))


def test_normalization_that_moves_under_a_frozen_backbone_is_refused_by_name():
    model = models.dense(keras.layers.BatchNormalization(name="norm"))
    (finding,) = found(model, "head|.*norm", "train")
    assert finding.id == "statistics-move" and not finding.warning
    assert "body/norm" in finding.message and "body/first, body/second" in finding.message
    assert "batch_norm" in finding.message
    for mended in ("frozen", "affine"):
        assert not found(model, "head|.*norm", mended)


def test_normalization_that_learns_with_the_layers_around_it_is_at_most_a_warning():
    model = models.dense(keras.layers.BatchNormalization(name="norm"))
    assert not found(model, ".*", "train")
    (finding,) = found(model, "head|body/(norm|second)", "train")
    assert finding.id == "statistics-move" and finding.warning


def test_a_frozen_layer_that_a_training_batch_changes_all_the_same_is_refused_by_name():
    (finding,) = found(models.dense(Centred(name="norm")), "head")
    assert finding.id == "statistics-move" and not finding.warning
    assert "body/norm" in finding.message and "first" not in finding.message
    assert not found(models.dense(Centred(heed=True, name="norm")), "head")


@pytest.mark.parametrize("layer", [keras.layers.Dropout(0.5), keras.layers.GaussianNoise(1.0)])
def test_random_seeds_are_no_statistics(layer):
    assert not found(models.dense(layer), "head")
