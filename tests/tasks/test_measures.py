import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.tasks import measures
from tfbp.tasks.classification import Classification, suited
from tfbp.tasks.multi_label import MultiLabel
from tfbp.tasks.ordinal import Ordinal
from tfbp.tasks.regression import Regression
from tfbp.tasks.several import named_metrics

NAMES = ("ant", "bee", "cat")
X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
LABELS = np.arange(12) % 3
VALUES = X[:, :2] * 3
LOGITS = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32) * 2


def evaluated(task, y, outputs):
    per_example = task.per_example(None, tf.constant(y), tf.constant(outputs))
    return task.evaluate({name: value.numpy() for name, value in per_example.items()}, None)


def trained(task, y, outputs):
    """What Keras shows while it trains: the loss and the running metrics of the same outputs."""
    metrics = task.metrics()
    for metric in metrics:
        for rows in (slice(0, 7), slice(7, None)):
            metric.update_state(y[rows], outputs[rows])
    return {"loss": float(task.loss()(y, outputs))} | {
        metric.name: float(metric.result()) for metric in metrics
    }


def dense(units):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])


class Keeping(Regression):
    """Returns the same metrics at each call, which have counted before."""

    def __init__(self):
        super().__init__()
        self.kept = [keras.metrics.RootMeanSquaredError(name="rmse")]

    def metrics(self):
        return self.kept


class Quantile(keras.losses.Loss):
    """Of somebody's own, with a setting that no config tells."""

    def __init__(self, quantile):
        super().__init__(name="quantile")
        self.quantile = quantile

    def call(self, y_true, y_pred):
        error = y_true - y_pred
        return keras.ops.maximum(self.quantile * error, (self.quantile - 1) * error)


class Huberized(Regression):
    def loss(self):
        return keras.losses.Huber(delta=0.1)

    def metrics(self):
        return [*super().metrics(), keras.metrics.RootMeanSquaredError(name="rmse")]


def focal(**settings):
    return keras.losses.CategoricalFocalCrossentropy(from_logits=True, **settings)


TOP2 = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")


@pytest.mark.parametrize(
    ("task", "y", "outputs"),
    [
        (Regression(), VALUES, LOGITS[:, :2]),
        (Regression(loss="huber", metrics=["mse"]), VALUES, LOGITS[:, :2]),
        (Regression(loss=keras.losses.Huber(delta=0.1)), VALUES, LOGITS[:, :2]),
        (Regression(loss=Quantile(0.9), metrics=["RootMeanSquaredError"]), VALUES, LOGITS[:, :2]),
        (Huberized(), VALUES, LOGITS[:, :2]),
        (Keeping(), VALUES, LOGITS[:, :2]),
        (Classification(NAMES), LABELS, LOGITS),
        (Classification(NAMES, metrics=[TOP2]), LABELS, LOGITS),
        (Classification(NAMES, loss=focal(gamma=3), metrics=[TOP2]), LABELS, LOGITS),
        (Classification(NAMES[:2], logits=1, metrics=["AUC"]), LABELS % 2, LOGITS[:, :1]),
    ],
    ids=[
        "mse",
        "name",
        "config-less",
        "own",
        "subclass",
        "keeping",
        "softmax",
        "top",
        "focal",
        "one",
    ],
)
def test_what_is_shown_while_training_and_what_is_evaluated_are_the_same(task, y, outputs):
    shown = trained(task, y, outputs)
    results = evaluated(task, y, outputs)
    report = results.pop("report", None)
    assert {name: results[name] for name in shown} == pytest.approx(shown, rel=1e-5)
    assert not results.keys() - shown.keys() - {"mae"}
    assert (report is None) == isinstance(task, Regression)


def test_the_results_are_those_of_the_formulas():
    error = np.abs(LOGITS[:, :2] - VALUES)
    huber = np.where(error <= 0.1, 0.5 * error**2, 0.1 * error - 0.005).mean()
    results = evaluated(Huberized(), VALUES, LOGITS[:, :2])
    assert results == pytest.approx(
        {"loss": huber, "mae": error.mean(), "rmse": np.sqrt((error**2).mean())}, rel=1e-5
    )
    chances = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    true = chances[np.arange(12), LABELS]
    task = Classification(NAMES, loss=focal(alpha=0.5, gamma=3))
    expected = np.mean(-0.5 * (1 - true) ** 3 * np.log(true))
    assert evaluated(task, LABELS, LOGITS)["loss"] == pytest.approx(expected, rel=1e-5)


def test_metrics_of_a_classification_are_given_probabilities():
    rows = keras.utils.to_categorical(LABELS[:, np.newaxis] % 2, 2)[:, 1]
    task = Classification(NAMES[:2], logits=1, metrics=["precision", keras.metrics.AUC()])
    results = evaluated(task, LABELS % 2, LOGITS[:, :1])
    chosen = LOGITS[:, 0] > 0
    assert results["precision"] == pytest.approx(rows[chosen].mean())
    pairs = LOGITS[:, 0][rows == 1][:, None] > LOGITS[:, 0][rows == 0]
    assert results["auc"] == pytest.approx(pairs.mean(), abs=0.02)  # of 200 thresholds


def test_one_logit_is_the_same_as_two_of_which_the_first_is_zero():
    one, two = Classification(NAMES[:2], logits=1), Classification(NAMES[:2])
    both = np.pad(LOGITS[:, :1], [(0, 0), (1, 0)])
    found, expected = (
        evaluated(task, LABELS % 2, logits) for task, logits in ((one, LOGITS[:, :1]), (two, both))
    )
    assert found["report"] == expected["report"] and found["accuracy"] == expected["accuracy"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    smooth = Classification(NAMES[:2], logits=1, label_smoothing=0.2)
    assert evaluated(smooth, LABELS % 2, LOGITS[:, :1]) == found  # results are without it
    expected = Classification(NAMES[:2], label_smoothing=0.2).loss()(LABELS % 2, both)
    assert float(smooth.loss()(LABELS % 2, LOGITS[:, :1])) == pytest.approx(float(expected))


def test_one_logit_answers_what_two_do():
    examples, model = Examples.from_arrays(X, LABELS % 2), dense(1)
    task = suited(Classification(NAMES[:2]), model)
    task.check(model, examples)
    signature = task.signatures(model, examples)["serving_default"]
    request = signature.request(5)
    answer = {name: value.numpy() for name, value in signature.function(**request).items()}
    logits = model(request["features"]).numpy()
    second = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-6)
    np.testing.assert_allclose(answer["probabilities"], np.hstack([1 - second, second]), rtol=1e-5)
    np.testing.assert_allclose(answer["probability"], answer["probabilities"].max(1))
    assert answer["class"].tolist() == [b"bee" if each > 0 else b"ant" for each in logits[:, 0]]
    assert answer["classes"].tolist() == [[b"ant", b"bee"]] * 5


def test_only_two_classes_that_say_nothing_else_take_one_logit():
    for task, units in (
        (Classification(NAMES[:2]), 2),
        (Classification(NAMES), 1),
        (Classification(NAMES[:2], logits=2), 1),
        (Regression(), 1),
    ):
        assert suited(task, dense(units)) is task
    own = Classification(NAMES[:2])
    assert suited(own, dense(1)).logits == 1 and own.logits == 2


def test_names_and_configs_stand_for_objects():
    for given in ("Huber", "huber", {"class_name": "Huber", "config": {"delta": 1.0}}):
        loss = Regression(loss=given).loss()
        assert isinstance(loss, keras.losses.Huber)
    assert isinstance(Regression(loss="mae").loss(), keras.losses.MeanAbsoluteError)
    assert isinstance(Regression(loss="kld").loss(), keras.losses.KLDivergence)
    task = Regression(metrics=["R2Score", {"class_name": "Poisson", "config": {"name": "own"}}])
    assert [metric.name for metric in task.metrics()] == ["mae", "r2_score", "own"]


def test_metrics_are_made_anew_by_one_name_however_many_there_have_been():
    for _ in range(3):
        task = Classification(NAMES[:2], logits=1, metrics=[keras.metrics.AUC()])
        first, again = (task.metrics()[1] for _ in range(2))
        assert first.name == again.name == "auc"
        first.update_state([1, 0], [[9.0], [-9.0]])
        assert float(first.result()) == 1.0 and float(again.result()) == 0.0


def test_what_a_loss_is_made_of_tells_settings_that_its_config_leaves_out():
    def of(loss):
        return measures.made_of(loss)

    assert of(keras.losses.Huber()) == of(keras.losses.Huber(delta=1.0))
    assert of(keras.losses.Huber())["delta"] != of(keras.losses.Huber(delta=0.1))["delta"]
    assert of(Quantile(0.5)) != of(Quantile(0.9))
    assert of(keras.losses.MeanSquaredError()) != of(keras.losses.MeanAbsoluteError())
    assert of(keras.metrics.AUC(num_thresholds=50)) != of(keras.metrics.AUC())
    assert of(keras.metrics.AUC()) == of(keras.metrics.AUC())


class Mean(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred))


class Fussy(keras.metrics.Mean):
    def __init__(self, rows, **settings):
        super().__init__(**settings)
        self.rows = rows


class Forgetful(keras.metrics.Mean):
    def __init__(self, rows=3, **settings):
        super().__init__(**settings)
        self.rows = rows


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regression(loss="hubber"), "`loss` must be called as in .*Did you mean 'Huber'"),
        (lambda: Regression(loss=lambda y, o: y - o), "`loss` must be a keras.losses.Loss"),
        (lambda: Regression(loss=keras.losses.Huber(reduction="sum")), "reduction.*'sum'"),
        (lambda: Regression(loss={"class_name": "Hub", "config": {}}), "`loss` must be a config"),
        (lambda: Regression(metrics=["MeanIoU"]), "an object where it needs settings.*num_classes"),
        (lambda: Regression(metrics="mse"), "`metrics` must be a list"),
        (lambda: Regression(metrics=["mae", "MAE"]), "names that differ.*'mean_absolute_error'"),
        (lambda: Regression(metrics=[keras.metrics.Sum(name="mae")]), "names that differ.*'mae'"),
        (lambda: Regression(metrics=[keras.metrics.Sum(name="loss")]), "names that differ.*'loss'"),
        (lambda: MultiLabel(NAMES, metrics=[keras.metrics.AUC(name="exact")]), "'exact'"),
        (lambda: Ordinal(NAMES, metrics=[keras.metrics.AUC(name="kappa")]), "'kappa'"),
        (lambda: Regression(metrics=[keras.losses.Huber()]), "`metrics` must be keras.metrics"),
        (lambda: Regression(metrics=[Fussy(3)]), "`metrics` must be made anew.*rows"),
        (lambda: Regression(metrics=[Forgetful(5)]), "all that they are made of.*'Forgetful'"),
        (
            lambda: Classification(NAMES, loss="sparse_categorical_crossentropy"),
            "`loss` must take logits",
        ),
        (
            lambda: Classification(NAMES, metrics=[keras.metrics.AUC(from_logits=True)]),
            "given probabilities, not logits",
        ),
        (lambda: Classification(NAMES, loss=focal(), label_smoothing=0.1), "a setting of `loss`"),
        (lambda: Classification(NAMES, logits=1), "`logits` must be one for each class"),
    ],
)
def test_what_is_no_loss_or_metric_of_the_task_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("task", "y", "units", "message"),
    [
        (Regression(loss=Mean()), VALUES, 2, "a value for each example"),
        (Regression(metrics=[keras.metrics.Precision([0.2, 0.7])]), np.eye(12, 2), 2, "one number"),
        (Classification(NAMES, metrics=["F1Score"]), LABELS, 3, "`metrics` must take targets of"),
        # Eight examples are tried, and [8] against [8, 8] would broadcast.
        (
            Classification(tuple("abcdefgh"), metrics=["mse"]),
            LABELS,
            8,
            "`metrics` must take targets of",
        ),
        (
            Classification(NAMES[:2], metrics=["Recall"]),
            LABELS % 2,
            2,
            "go with a model of one logit",
        ),
        (Classification(NAMES[:2], metrics=["AUC"]), LABELS % 2, 2, "go with a model of one logit"),
        (Regression(metrics=["Mean"]), VALUES, 2, "takes values alone. Received: 'mean'"),
        (Classification(NAMES[:2]), LABELS % 2, 3, "or one with `logits=1`"),
    ],
)
def test_what_does_not_take_the_examples_is_refused_before_training(task, y, units, message):
    examples = Examples.from_arrays(X, y.astype(np.float32) if y.ndim > 1 else y)
    with pytest.raises(UserError, match=message):
        task.check(dense(units), examples)


@pytest.mark.parametrize("method", ["loss", "metrics"])
def test_a_subclass_that_returns_a_name_is_told_what_it_must_return(method):
    own = type("Own", (Regression,), {method: lambda self: "mse" if method == "loss" else ["mse"]})
    with pytest.raises(UserError, match=r"`task` must return objects of .*'mse'"):
        own().check(dense(2), Examples.from_arrays(X, VALUES))
    if method == "metrics":
        with pytest.raises(UserError, match="`task` must return objects"):
            named_metrics(own())
