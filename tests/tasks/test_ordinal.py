import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.tasks import ordinal
from tfbp.tasks.ordinal import Ordinal

NAMES = ("low", "middle", "high", "top")
X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
Y = np.arange(16) % 4
EXAMPLES = Examples.from_arrays(X, Y)


def dense(units=3):
    layer = keras.layers.Dense(units, bias_initializer="random_normal")
    return keras.Sequential([keras.Input((4,)), layer])


def probabilities(logits):
    """By the definition, one rank after the other, in float64."""
    goes_on = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    left, parts = np.ones(len(goes_on)), []
    for rank in range(goes_on.shape[1]):
        parts.append(left * (1 - goes_on[:, rank]))
        left = left * goes_on[:, rank]
    return np.stack([*parts, left], axis=1)


def test_the_loss_is_the_cross_entropy_of_the_probabilities_that_follow():
    logits = dense()(X).numpy() * 2
    expected = -np.log(probabilities(logits)[np.arange(16), Y])
    task = Ordinal(NAMES)
    assert float(task.loss()(Y, logits)) == pytest.approx(expected.mean(), rel=1e-5)
    per_example = task.per_example(None, tf.constant(Y), tf.constant(logits))
    np.testing.assert_allclose(per_example["loss"], expected, rtol=1e-5)


def test_the_loss_stays_finite_and_has_gradients_where_probabilities_vanish():
    logits = tf.Variable([[200.0, -200.0, 50.0], [-200.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        loss = Ordinal(NAMES).loss()(tf.constant([0, 3]), logits)
    assert float(loss) == pytest.approx((200 + 200 + 2 * np.log(2)) / 2, rel=1e-5)
    gradient = tape.gradient(loss, logits).numpy()
    np.testing.assert_allclose(gradient, [[0.5, 0, 0], [-0.5, -0.25, -0.25]], atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
@pytest.mark.filterwarnings("ignore")
def test_kappa_is_that_of_scikit_learn(pairs):
    label, predicted = np.array(pairs).T
    found = ordinal.kappa(label, predicted)
    if len(set(label) | set(predicted)) > 1:
        # Without `labels`, scikit-learn closes the gap of a rank that does not occur.
        expected = sklearn.metrics.cohen_kappa_score(
            label, predicted, labels=range(4), weights="quadratic"
        )
        assert found == pytest.approx(expected, abs=1e-9)
    else:
        assert found == 1.0  # where scikit-learn divides by zero


def test_results_and_running_metrics_follow_the_median():
    task, logits = Ordinal(NAMES), dense()(X).numpy() * 2
    predicted = (np.cumsum(probabilities(logits), axis=1)[:, :-1] < 0.5).sum(axis=1)
    per_example = task.per_example(None, tf.constant(Y), tf.constant(logits))
    results = task.evaluate({name: value.numpy() for name, value in per_example.items()}, None)
    assert list(results) == ["loss", "accuracy", "mae", "kappa", "report"]
    expected = {"accuracy": (predicted == Y).mean(), "mae": np.abs(predicted - Y).mean()}
    running = {metric.name: metric for metric in task.metrics()}
    for name, value in expected.items():
        running[name].update_state(Y, logits)
        assert results[name] == pytest.approx(value)
        assert float(running[name].result()) == pytest.approx(value)


def test_the_answer_is_the_median_and_its_probability():
    task, model = Ordinal(NAMES), dense()
    signature = task.signatures(model, EXAMPLES)["serving_default"]
    request = signature.request(6)
    answer = {name: value.numpy() for name, value in signature.function(**request).items()}
    logits = model(request["features"]).numpy()
    expected = probabilities(logits)
    best = (np.cumsum(expected, axis=1)[:, :-1] < 0.5).sum(axis=1)
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-5)
    np.testing.assert_allclose(answer["probability"], expected[np.arange(6), best], rtol=1e-5)
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-6)
    assert answer["class"].tolist() == [NAMES[rank].encode() for rank in best]


def test_a_model_must_answer_one_logit_less_than_there_are_classes():
    Ordinal(NAMES).check(dense(), EXAMPLES)
    with pytest.raises(UserError, match=r"must answer 3 logits, one less than the 4 classes"):
        Ordinal(NAMES).check(dense(4), EXAMPLES)


def test_it_learns_what_has_an_order():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(2).uniform(-2, 2, (300, 1)).astype(np.float32)
    y = np.digitize(x[:, 0], [-1, 0, 1])
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    task = Ordinal(NAMES)
    model.compile(keras.optimizers.Adam(0.3), task.loss(), metrics=task.metrics())
    logs = model.fit(x, y, epochs=20, batch_size=30, verbose=0).history
    assert logs["mae"][-1] < 0.1 < logs["mae"][0]


@pytest.mark.parametrize(
    ("classes", "warned"),
    [
        (("bad", "good", "middling"), True),
        (("bad", "middling", "good"), False),
        (("A", "B", "C"), False),
        (("0", "1", "10"), False),
    ],
)
def test_names_that_are_sorted_by_the_alphabet_are_told(classes, warned, caplog):
    Ordinal(classes)
    assert ("bad < good < middling" in caplog.text) == warned
