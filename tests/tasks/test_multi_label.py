import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.tasks.multi_label import MultiLabel

NAMES = ("blue", "green", "red")
X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = (np.random.default_rng(1).random((12, 3)) < 0.5).astype(np.float32)
EXAMPLES = Examples.from_arrays(X, Y)


def dense(units=3, activation=None):
    layer = keras.layers.Dense(units, activation, bias_initializer="random_normal")
    return keras.Sequential([keras.Input((4,)), layer])


def evaluated(task, y, logits):
    per_example = task.per_example(None, tf.constant(y), tf.constant(logits))
    return task.evaluate({name: value.numpy() for name, value in per_example.items()}, None)


# Halves repeat, so that there are equal scores; none is a threshold.
CASE = st.lists(
    st.tuples(*[st.tuples(st.booleans(), st.integers(-3, 2).map(lambda n: n + 0.25))] * 3),
    min_size=1,
    max_size=20,
)


@settings(max_examples=50, deadline=None)
@given(CASE, st.sampled_from([0.5, 0.2, 0.9]))
@pytest.mark.filterwarnings("ignore:No positive class")
def test_scores_are_those_of_scikit_learn(rows, threshold):
    y = np.array([[target for target, _ in row] for row in rows], np.float32)
    logits = np.array([[logit for _, logit in row] for row in rows], np.float32)
    results = evaluated(MultiLabel(NAMES, thresholds=threshold), y, logits)
    chosen = 1 / (1 + np.exp(-logits)) > threshold
    report = results["report"]
    for average in ("macro", "weighted", "micro"):
        expected = sklearn.metrics.precision_recall_fscore_support(
            y, chosen, average=average, zero_division=0
        )
        if average != "weighted" or y.any():
            found = [report[average][score] for score in ("precision", "recall", "f1")]
            np.testing.assert_allclose(found, expected[:3], atol=1e-12)
    expected = [sklearn.metrics.average_precision_score(y[:, i], logits[:, i]) for i in range(3)]
    found = [report["per_class"][name]["average_precision"] for name in NAMES]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert results["mean_average_precision"] == pytest.approx(np.mean(expected))
    assert results["accuracy"] == pytest.approx(1 - sklearn.metrics.hamming_loss(y, chosen))
    assert results["exact"] == pytest.approx(sklearn.metrics.accuracy_score(y, chosen))
    assert results["macro_f1"] == report["macro"]["f1"]
    assert results["micro_f1"] == report["micro"]["f1"]


def test_the_loss_is_the_mean_binary_cross_entropy():
    logits = dense()(X).numpy()
    chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -np.mean(Y * np.log(chances) + (1 - Y) * np.log(1 - chances))
    task = MultiLabel(NAMES)
    assert float(task.loss()(Y, logits)) == pytest.approx(expected, rel=1e-5)
    assert evaluated(task, Y, logits)["loss"] == pytest.approx(expected, rel=1e-5)


def test_positive_weights_count_in_training_alone():
    task, logits = MultiLabel(NAMES, positive_weights={"red": 3}), dense()(X).numpy()
    chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = Y * np.log(chances) * [1, 1, 3]
    expected = -np.mean(found + (1 - Y) * np.log(1 - chances))
    loss = task.loss()
    assert float(loss(Y, logits)) == pytest.approx(expected, rel=1e-5)
    assert evaluated(task, Y, logits) == evaluated(MultiLabel(NAMES), Y, logits)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert float(again(Y, logits)) == float(loss(Y, logits))


def test_each_label_may_have_a_threshold_and_the_running_accuracy_knows_it():
    task = MultiLabel(NAMES, thresholds={"red": 0.9, "blue": 0.1})
    assert task.thresholds == (0.1, 0.5, 0.9)
    logits = dense()(X).numpy() * 3
    chosen = 1 / (1 + np.exp(-logits)) > np.array([0.1, 0.5, 0.9])
    (accuracy,) = task.metrics()
    accuracy.update_state(Y, logits)
    assert float(accuracy.result()) == pytest.approx((chosen == Y).mean())
    assert evaluated(task, Y, logits)["accuracy"] == pytest.approx((chosen == Y).mean())


def test_the_answer_has_the_labels_chosen_and_the_probability_of_each():
    task, model = MultiLabel(NAMES, thresholds={"red": 0.3}), dense()
    signature = task.signatures(model, EXAMPLES)["serving_default"]
    request = signature.request(5)
    answer = {name: value.numpy() for name, value in signature.function(**request).items()}
    logits = model(request["features"]).numpy()
    chances = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-6)
    np.testing.assert_allclose(answer["probabilities"], chances, rtol=1e-5)
    assert answer["classes"].tolist() == [[name.encode() for name in NAMES]] * 5
    chosen = chances > [0.5, 0.5, 0.3]
    assert answer["labels"].tolist() == np.where(chosen, np.array(NAMES, "S"), b"").tolist()
    assert task.assets() == {"labels.txt": "blue\ngreen\nred\n"}


def test_what_fits_is_accepted():
    MultiLabel(NAMES).check(dense(), EXAMPLES)


@pytest.mark.parametrize(
    ("model", "y", "message"),
    [
        (lambda: dense(2), Y, r"one logit for each of the 3 labels.*\[2\]"),
        (dense, Y[:, :2], r"0 or 1 for each of the 3 labels.*\[2\]"),
        (dense, Y + np.eye(12, 3), "Received: 2 for .* at row .*more"),
        (dense, Y * 0.5, "Received: 0.5 for"),
        (dense, np.arange(12) % 3, "They carry one label each: that is `tfbp.Classification`"),
    ],
    ids=["units", "targets", "two", "half", "labels"],
)
def test_what_does_not_fit_is_refused(model, y, message):
    with pytest.raises(UserError, match=message):
        MultiLabel(NAMES).check(model(), Examples.from_arrays(X, y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": None}, "`classes` must be names that differ"),
        ({"classes": ("a", "a")}, "`classes` must be names that differ"),
        ({"thresholds": 1}, "`thresholds` must be above 0 and below 1"),
        ({"thresholds": {"rad": 0.2}}, "`thresholds` must name labels.*Did you mean 'red'"),
        ({"thresholds": {"red": "high"}}, "`thresholds` must be a number"),
        ({"thresholds": (0.1, 0.2, 0.3)}, "`thresholds` must be a number"),
        ({"positive_weights": {"rad": 2}}, "`positive_weights` must name labels.*'red'"),
        ({"positive_weights": {"red": 0}}, "`positive_weights` must be above 0 and finite"),
        ({"positive_weights": {"red": 2}, "loss": "mse"}, "`positive_weights` must be a matter"),
        (
            {"loss": keras.losses.CategoricalCrossentropy(from_logits=True)},
            "`loss` must take each label by itself",
        ),
        *(
            ({"loss": loss}, "`loss` must take logits")
            for loss in ("binary_crossentropy", "mean_absolute_error", "kl_divergence", "Dice")
        ),
        ({"loss": keras.losses.Huber(0.5)}, "`loss` must take logits"),
        ({"positive_weights": {"red": "2"}}, "`positive_weights` must be a number that is above 0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        MultiLabel(**{"classes": NAMES} | arguments)
