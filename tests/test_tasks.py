"""Tasks from the data to a server's answer, killed once in between; and what makes another run."""

import contextlib
import itertools
import json
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.commands import metrics
from tfbp.serving.server import Server
from tfbp.workers import interruption

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
SUM = X.sum(axis=1)
WEIGHTS = np.random.default_rng(1).uniform(0.5, 2, 60)
PHASES = [
    tfbp.Phase("body", ".*", epochs=1, learning_rate=0.01),
    tfbp.Phase("head", "head", epochs=1, learning_rate=0.01),
]


class Robust(tfbp.Regression):
    """As the page on tasks shows it."""

    def loss(self):
        return keras.losses.Huber(delta=0.1)

    def metrics(self):
        return [*super().metrics(), keras.metrics.RootMeanSquaredError(name="rmse")]


def tags(row):
    return [name for name, value in zip(("a", "b", "c"), row, strict=False) if value > 0]


# name → targets, the task, units of the last layer.
CASES = {
    "one": ((SUM > 0).astype(int), lambda s: tfbp.Classification(s.classes, metrics=["AUC"]), 1),
    "several": (list(map(tags, X)), lambda s: tfbp.MultiLabel(s.classes, thresholds=0.4), 3),
    "ranks": (np.digitize(SUM, [-1, 1]), lambda s: tfbp.Ordinal(s.classes), 2),
    "robust": (SUM * 3, lambda s: Robust(), 1),
}


def model(units):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(6, "relu", name="body")]
    return keras.Sequential(
        [*layers, keras.layers.Dropout(0.2), keras.layers.Dense(units, name="head")]
    )


def fit(name, workdir=None, **settings):
    y, task, units = CASES[name]
    splits = tfbp.Splits.from_arrays(X, y, weights=WEIGHTS)
    task = settings.pop("task", task(splits))
    settings = tfbp.Settings(workdir=workdir and str(workdir), batch_size=9, **settings)
    return tfbp.fit(model(units), splits, task, PHASES, settings)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("ranks", "robust")))
        for name in CASES
    ],
)
def whole(request):
    """A run that nobody disturbed."""
    return request.param, fit(request.param)


def test_a_killed_run_ends_as_one_that_was_not_and_its_losses_are_one_measure(whole, tmp_path):
    name, run = whole
    questions = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        # Whether it is to stop is asked after each call of steps.
        asked = contextlib.nullcontext(lambda: next(questions) > 3)
        patch.setattr(interruption, "deferred", lambda: asked)
        with pytest.raises(interruption.Interrupted):
            fit(name, tmp_path / "run")
    again = fit(name, tmp_path / "run")
    assert again.result["metrics"] == run.result["metrics"]
    for mine, other in zip(again.model.get_weights(), run.model.get_weights(), strict=True):
        assert np.array_equal(mine, other)
    last = run.history[-1]
    shown = {key.removeprefix("val_") for key in last if key.startswith("val_")}
    assert shown >= set(last) - {"phase", "epoch", "seconds"} - {f"val_{each}" for each in shown}
    # What has been trained is weighed; evaluated without weights, it is Keras's own result.
    splits = run.splits
    x, y = splits.validation.read(np.arange(splits.validation.size))
    expected = float(run.task.loss()(y, run.model(x, training=False)))
    assert last["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert run.evaluate(splits.validation)["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_command_line_prints_every_number_and_every_mean(whole):
    _, run = whole
    results = run.evaluate(run.splits.test)
    text = metrics.of_splits({"test": results})
    for name, value in results.items():
        assert name == "report" or f"{value:.4f}" in text
    if "report" in results:
        text = metrics.of_classes(results["report"])
        assert ("(all together)" in text) == isinstance(run.task, tfbp.MultiLabel)
        assert all(name in text for name in run.splits.classes)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Exports, compared in a fresh process, and a server over them."""
    folder = tmp_path_factory.mktemp("saved_models")
    runs = {name: fit(name) for name in ("one", "several", "ranks")}
    for name, run in runs.items():
        run.export(str(folder / name))
    with Server(folder, port=0, grpc_port=0) as server:
        yield folder, runs, server


def probabilities(name, logits):
    if name == "several":
        return 1 / (1 + np.exp(-logits))
    above = 1 / (1 + np.exp(-logits))
    left = np.cumprod(np.hstack([np.ones((len(logits), 1)), above]), axis=1)
    return left * np.hstack([1 - above, np.ones((len(logits), 1))])


@pytest.mark.parametrize("name", ["one", "several", "ranks"])
def test_exports_and_the_server_answer_what_the_model_does(served, name):
    folder, runs, server = served
    run = runs[name]
    logits = run.model(X[:5], training=False).numpy().astype(np.float64)
    loaded = tf.saved_model.load(str(folder / name / "1"))
    answer = loaded.signatures["serving_default"](features=tf.constant(X[:5]))
    request = json.dumps({"instances": X[:5].tolist()}).encode()
    url = f"http://127.0.0.1:{server.port}/v1/models/{name}:predict"
    with urllib.request.urlopen(urllib.request.Request(url, request), timeout=60) as response:
        rows = json.load(response)["predictions"]
    expected = probabilities(name, logits)
    for row, values in enumerate(expected):
        np.testing.assert_allclose(answer["probabilities"][row], values, rtol=1e-4)
        np.testing.assert_allclose(rows[row]["probabilities"], values, rtol=1e-4)
        np.testing.assert_allclose(rows[row]["logits"], logits[row], rtol=1e-4, atol=1e-6)
        assert rows[row]["classes"] == list(run.splits.classes)
        if name == "several":
            labels = [each if p > 0.4 else "" for each, p in zip("abc", values, strict=True)]
            assert rows[row]["labels"] == labels
        else:
            # Of two classes the likelier one is the median.
            best = int((np.cumsum(values)[:-1] < 0.5).sum())
            assert rows[row]["class"] == run.splits.classes[best]
            assert rows[row]["probability"] == pytest.approx(values[best], rel=1e-4)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: tfbp.Regression(), "`loss`.*`rmse`"),
        (
            lambda: tfbp.Regression(loss=keras.losses.Huber(delta=0.2)),
            "`delta` .0.1, not 0.2.*`rmse`",
        ),
        (
            lambda: tfbp.Regression(
                loss=keras.losses.Huber(delta=0.1),
                metrics=[keras.metrics.RootMeanSquaredError(name="rmse"), "R2Score"],
            ),
            r"`r2_score` \(None",
        ),
    ],
    ids=["default", "setting", "metric"],
)
def test_another_loss_or_metric_is_another_run(tmp_path_factory, other, difference):
    folder = tmp_path_factory.getbasetemp() / "other_run"
    loss = keras.losses.Huber(delta=0.1)
    task = tfbp.Regression(loss=loss, metrics=[keras.metrics.RootMeanSquaredError(name="rmse")])
    fit("robust", folder, task=task)
    with pytest.raises(tfbp.UserError, match=f"holds another run, which differs in {difference}"):
        fit("robust", folder, task=other())


def test_early_stopping_of_keras_follows_a_metric_that_was_given():
    stop = keras.callbacks.EarlyStopping("val_rmse", min_delta=100, mode="min")
    splits = tfbp.Splits.from_arrays(X, SUM)
    phases = [tfbp.Phase("fit", ".*", epochs=5, learning_rate=0.01)]
    run = tfbp.fit(model(1), splits, Robust(), phases, callbacks=[stop])
    assert len(run.history) == 2  # nothing falls by 100
