import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError
from tfbp.running.run import Run
from tfbp.settings import Settings
from tfbp.tasks.classification import Classification
from tfbp.training.phase import Phase

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
LABELS = np.arange(12) % 2


@pytest.fixture(scope="module")
def run():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    splits = Splits(Examples.from_arrays(X, LABELS), classes=("no", "yes"))
    return Run(
        model,
        splits,
        Classification(splits.classes),
        (Phase("fit", ".*", epochs=1, learning_rate=0.1),),
        Settings(),
        tf.distribute.get_strategy(),
    )


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, LABELS + 1, "`labels` must be from 0 to 1"),
        (X, LABELS + 0.5, "must carry one label each"),
        (X[:, :2], LABELS, r"`model` must take the examples, which are float32 \[2\]"),
        ({"a": X}, LABELS, "`x` must be named like the inputs of `model`"),
        (X, {"a": LABELS}, "must have a y like the training examples.*'a dict'"),
    ],
    ids=["labels", "values", "width", "dict x", "dict y"],
)
def test_examples_of_another_form_are_not_evaluated(run, x, y, message):
    with pytest.raises(UserError, match=message):
        run.evaluate(Examples.from_arrays(x, y))


def test_other_examples_of_the_same_form_are_evaluated(run):
    other = Examples.from_arrays(X[::-1], LABELS)
    loss, accuracy = (run.evaluate(other)[name] for name in ("loss", "accuracy"))
    run.model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    expected = run.model.evaluate(X[::-1], LABELS, verbose=0)
    np.testing.assert_allclose((loss, accuracy), expected, rtol=1e-5)
