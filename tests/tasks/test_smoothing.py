import keras
import numpy as np
import pytest

from tfbp.tasks.smoothing import SmoothedCrossentropy

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(size=(7, 5)).astype(np.float32)
LABELS = GENERATOR.integers(0, 5, 7)
WEIGHTS = GENERATOR.uniform(0.5, 2, 7).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_it_is_the_cross_entropy_against_the_smoothed_labels(smoothing):
    rows = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
    log_probabilities = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    by_hand = -(rows * log_probabilities).sum(axis=1)
    loss = SmoothedCrossentropy(smoothing)
    np.testing.assert_allclose(loss(LABELS, LOGITS), by_hand.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        loss(LABELS, LOGITS, sample_weight=WEIGHTS), (WEIGHTS * by_hand).mean(), rtol=1e-5
    )


def test_a_compiled_model_is_saved_and_loaded_with_it(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    model.compile("sgd", SmoothedCrossentropy(0.2))
    x = GENERATOR.normal(size=(7, 4)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.loss.label_smoothing == 0.2
    expected = model.evaluate(x, LABELS, verbose=0)
    assert again.evaluate(x, LABELS, verbose=0) == pytest.approx(expected, rel=1e-6)
