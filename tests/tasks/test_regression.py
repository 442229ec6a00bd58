import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.tasks.regression import Regression

X = np.float32([[1, 2], [3, 4], [5, 6]])


def dense(units):
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])


def test_the_errors_are_means_over_examples_and_values():
    x, y = Examples.from_arrays(X, np.float32([[0, 0], [1, 1], [2, 2]])).read(tf.range(3))
    outputs = tf.constant([[1.0, 1.0], [1.0, 4.0], [2.0, 0.0]])
    task = Regression()
    per_example = {name: value.numpy() for name, value in task.per_example(x, y, outputs).items()}
    results = task.evaluate(per_example, None)
    assert results == pytest.approx({"loss": (1 + 1 + 9 + 4) / 6, "mae": (1 + 1 + 3 + 2) / 6})
    assert results["loss"] == pytest.approx(float(task.loss()(y, outputs)))


def test_the_answer_is_the_model_s():
    task, model = Regression(), dense(1)
    examples = Examples.from_arrays(X, np.float32([1, 2, 3]))
    signature = task.signatures(model, examples)["serving_default"]
    request = signature.request(3)
    np.testing.assert_array_equal(request["x"], X)
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(signature.function(**request)["y"], X @ kernel + bias, rtol=1e-6)


@pytest.mark.parametrize(
    ("targets", "message"),
    [(np.float32([1, 2, 3]), r"answer \[1\].*shape \[4\]"), (np.arange(3), "floats.*int64")],
    ids=["a shape that would broadcast", "labels"],
)
def test_targets_of_another_kind_are_refused(targets, message):
    with pytest.raises(UserError, match=message):
        Regression().check(dense(4), Examples.from_arrays(X, targets))
