"""Weights of examples, from the data through `fit`, beside plain Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.data import tables
from tfbp.training import batches

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(36, 4)).astype(np.float32)
LABELS = np.arange(36) % 3
WEIGHTS = GENERATOR.uniform(0, 3, 36).astype(np.float32)
ONE = tf.distribute.get_strategy()


def model(units=3):
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(units, kernel_initializer="zeros")(inputs))


def of_all(**settings):
    return tfbp.Splits.from_arrays(X, LABELS, validation=0, test=0, **settings)


@pytest.mark.parametrize("classes", [None, {0: 2.0, 2: 0.5}])
def test_one_update_is_that_of_keras_with_sample_weights(classes):
    ours, theirs = model(), model()
    splits = of_all(weights=WEIGHTS)
    task = tfbp.Classification(splits.classes, class_weights=classes)
    phases = [tfbp.Phase("fit", ".*", epochs=1, learning_rate=0.5, optimizer="sgd")]
    tfbp.fit(ours, splits, task, phases, tfbp.Settings(batch_size=len(X)))

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs.compile(keras.optimizers.SGD(0.5), loss)
    factors = np.array([(classes or {}).get(label, 1.0) for label in LABELS])
    theirs.fit(X, LABELS, sample_weight=WEIGHTS * factors, batch_size=len(X), verbose=0)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


ROWS = (X[:, :3] > 0).astype(np.float32)


@pytest.mark.parametrize(
    ("y", "task", "units", "loss"),
    [
        (LABELS > 0, tfbp.Classification(tuple("ab")), 1, keras.losses.BinaryCrossentropy(True)),
        (ROWS, tfbp.MultiLabel(tuple("abc")), 3, keras.losses.BinaryCrossentropy(True)),
        (LABELS, tfbp.Ordinal(tuple("abc")), 2, tfbp.Ordinal(tuple("abc")).loss()),
        (ROWS, tfbp.Regression(loss="huber"), 3, keras.losses.Huber()),
    ],
    ids=["one logit", "several labels", "ranks", "own loss"],
)
def test_every_task_weighs_its_examples_as_keras_does(y, task, units, loss):
    ours, theirs = model(units), model(units)
    splits = tfbp.Splits(tfbp.Examples.from_arrays(X, y, weights=WEIGHTS))
    phases = [tfbp.Phase("fit", ".*", epochs=2, learning_rate=0.5, optimizer="sgd")]
    settings = tfbp.Settings(batch_size=len(X))
    unweighted = tfbp.fit(ours, splits, task, phases, settings).result["metrics"]["train"]["loss"]
    theirs.compile(keras.optimizers.SGD(0.5), loss)
    theirs.fit(X, y, sample_weight=WEIGHTS, batch_size=len(X), epochs=2, verbose=0)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    expected = theirs.evaluate(X, y, batch_size=len(X), verbose=0)
    assert unweighted == pytest.approx(expected, rel=1e-5)


def test_an_example_without_weight_is_not_learnt_from():
    wrong = np.where(LABELS == 0, 1, LABELS)  # a third of the labels, spoilt
    phases = [tfbp.Phase("fit", ".*", epochs=2, learning_rate=0.5, optimizer="sgd")]
    answers = []
    for labels in (LABELS, wrong):
        trained, examples = model(), tfbp.Examples.from_arrays(X, labels, weights=LABELS > 0)
        splits = tfbp.Splits(examples, classes=("a", "b", "c"))
        task = tfbp.Classification(splits.classes)
        settings = tfbp.Settings(batch_size=9, allow=("class-missing",))
        tfbp.fit(trained, splits, task, phases, settings)
        answers.append(trained(X).numpy())
    assert np.array_equal(*answers)


def test_weights_stay_with_their_examples_through_splits_and_batches():
    splits = tfbp.Splits.from_arrays(X, LABELS, weights=WEIGHTS, validation=0.2, test=0.2)
    weight_of = {x.tobytes(): weight for x, weight in zip(X, WEIGHTS, strict=True)}
    for part in splits.parts().values():
        x, _ = part.read(np.arange(part.size))
        assert [weight_of[row.tobytes()] for row in x.numpy()] == part.weights.tolist()
    factors = np.array([1, 2, 3], np.float32)
    batching = batches.Batching(5, seed=3, class_weights=factors)
    read = batches.training(splits.train, ONE, batching, range(5))
    for x, y, weight, _ in read:
        expected = [weight_of[row.tobytes()] for row in x.numpy()] * factors[y.numpy()]
        np.testing.assert_array_equal(weight, expected)


def test_other_weights_are_another_run_and_none_leave_the_fingerprint_as_it_was():
    plain, weighted = of_all().train, of_all(weights=WEIGHTS).train
    other = of_all(weights=WEIGHTS[::-1]).train
    assert len({plain.fingerprint, weighted.fingerprint, other.fingerprint}) == 3
    assert np.array_equal(plain.hashes, weighted.hashes)


@pytest.mark.parametrize("batched", [False, True])
def test_a_dataset_may_carry_weights_as_keras_takes_them(batched):
    dataset = tf.data.Dataset.from_tensor_slices((X, LABELS, WEIGHTS))
    dataset = dataset.batch(7) if batched else dataset
    splits = tfbp.Splits.from_dataset(dataset, validation=0, test=0)
    assert np.array_equal(splits.train.weights, WEIGHTS)


def test_a_column_of_a_table_may_hold_weights(tmp_path):
    path = tmp_path / "table.csv"
    rows = [f"{x[0]},{'abc'[y]},{w}" for x, y, w in zip(X, LABELS, WEIGHTS, strict=True)]
    path.write_text("\n".join(["x,kind,importance", *rows]))
    splits = tables.load(path, target="kind", weight="importance", validation=0, test=0)
    assert splits.train.columns == ("x",)
    np.testing.assert_allclose(splits.train.weights, WEIGHTS, rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (WEIGHTS[:35], r"one for each of the 36 examples\. Received: \(35,\)"),
        (-WEIGHTS, r"at least 0 \(row 0\)"),
        (np.zeros(36), "must not all be 0"),
        (np.where(np.arange(36) == 4, np.nan, 1.0), r"must be finite \(row 4\)"),
        ([None] + [1.0] * 35, r"no missing values \(row 0"),
        (["much"] * 36, "must be numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(tfbp.UserError, match=f"`weights` .*{message}"):
        of_all(weights=weights)
