"""Class weights and label smoothing, from the task through `fit`, beside plain Keras."""

import keras
import numpy as np
import pytest

import tfbp

GENERATOR = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2], [22, 9, 2])
X = GENERATOR.normal(size=(33, 4)).astype(np.float32)
SMOOTHING = 0.2


def model():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="zeros")(inputs))


def test_one_update_is_that_of_keras_with_class_weights_and_one_hot_labels():
    ours, theirs = model(), model()
    splits = tfbp.Splits(tfbp.Examples.from_arrays(X, LABELS), classes=("a", "b", "c"))
    task = tfbp.Classification(splits.classes, label_smoothing=SMOOTHING, class_weights="balanced")
    everything = {"epochs": 1, "learning_rate": 0.5, "optimizer": "sgd"}
    phases = [tfbp.Phase("fit", ".*", **everything)]
    run = tfbp.fit(ours, splits, task, phases, tfbp.Settings(batch_size=len(X)))

    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=SMOOTHING)
    theirs.compile(keras.optimizers.SGD(0.5), loss)
    weights = {label: len(X) / (3 * count) for label, count in enumerate(np.bincount(LABELS))}
    rows = np.eye(3, dtype=np.float32)[LABELS]
    theirs.fit(X, rows, batch_size=len(X), epochs=1, class_weight=weights, verbose=0)

    for mine, plain in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)
    assert np.abs(ours.get_weights()[0]).max() > 0.01

    # What is measured is the plain cross-entropy.
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(LABELS, ours(X))
    np.testing.assert_allclose(run.result["metrics"]["train"]["loss"], plain, rtol=1e-5)


def test_a_run_with_other_weights_is_another_run(tmp_path):
    splits = tfbp.Splits(tfbp.Examples.from_arrays(X, LABELS), classes=("a", "b", "c"))
    phases = [tfbp.Phase("fit", ".*", epochs=1, learning_rate=0.5)]

    def fit(**settings):
        task = tfbp.Classification(splits.classes, **settings)
        return tfbp.fit(model(), splits, task, phases, tfbp.Settings(workdir=tmp_path / "run"))

    first = fit(class_weights="balanced")
    assert fit(class_weights="balanced").result["metrics"] == first.result["metrics"]
    for other in ({}, {"class_weights": {"b": 2}}):
        with pytest.raises(tfbp.UserError, match="differs in `class_weights`"):
            fit(**other)
    with pytest.raises(tfbp.UserError, match="`label_smoothing`"):
        fit(class_weights="balanced", label_smoothing=0.1)


def test_weights_may_be_given_by_number_as_keras_takes_them():
    names = ("ant", "bee", "cow")
    examples = tfbp.Examples.from_arrays(X, LABELS)
    for weights in ({0: 1.5, 2: 5.0}, {np.int64(0): 1.5, np.int64(2): 5.0}):
        task = tfbp.Classification(names, class_weights=weights)
        assert task.class_weights_for(examples).tolist() == [1.5, 1, 5]
    assert tfbp.Classification(("0", "1"), class_weights={1: 2.0}).class_weights == {"1": 2.0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({3: 1.0}, r"for the labels 0 to 2, or name classes\. Received: 3"),
        ({-1: 1.0}, r"for the labels 0 to 2, or name classes\. Received: -1"),
        ({"bees": 1.0}, "Did you mean 'bee'"),
        ({1: 2.0, "bee": 3.0}, r"each class one weight\. Received: 'bee'"),
        ({1: 0.0}, "above 0 and finite, for 'bee'"),
    ],
)
def test_weights_of_no_class_or_two_for_one_are_refused(weights, message):
    with pytest.raises(tfbp.UserError, match=message):
        tfbp.Classification(("ant", "bee", "cow"), class_weights=weights)
