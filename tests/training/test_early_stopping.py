"""Early stopping, alone and in runs that are stopped and go on."""

import shutil

import keras
import numpy as np
import pytest

from tfbp import driver
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError
from tfbp.modeling import freezing
from tfbp.resuming import checkpoints as run_checkpoints
from tfbp.settings import Settings
from tfbp.tasks.classification import Classification
from tfbp.training import loop
from tfbp.training.early_stopping import EarlyStopping
from tfbp.training.phase import Phase

SETTINGS = {"epochs": 12, "learning_rate": 0.5, "optimizer": "adam", "early_stopping": 2}
PHASES = (
    Phase("fit", "body|head|norm", **SETTINGS, ema=0.6, accumulate=2, batch_norm="train"),
    Phase("tune", "head", **SETTINGS | {"epochs": 2}),
)
STEPS = 5  # of an epoch: 10 examples in batches of 2


def network():
    keras.utils.set_random_seed(4)
    x = keras.Input((3,))
    y = keras.layers.Dense(4, "tanh", name="body")(x)
    y = keras.layers.Dropout(0.2)(keras.layers.BatchNormalization(name="norm")(y))
    return keras.Model(x, keras.layers.Dense(2, name="head")(y))


def splits():
    numbers = np.random.default_rng(1)
    x, y = numbers.normal(0, 1, (18, 3)).astype(np.float32), numbers.integers(0, 2, 18)
    return Splits(
        Examples.from_arrays(x[:10], y[:10]),
        Examples.from_arrays(x[10:], y[10:]),
        classes=("a", "b"),
    )


def fit(phases=PHASES, allow=("imbalance", "class-missing"), callbacks=(), **settings):
    settings = Settings(batch_size=2, allow=allow, **settings)
    task = Classification(tuple("ab"))
    return driver.fit(network(), splits(), task, phases, settings, callbacks=callbacks)


def judge(stopping, model, losses):
    """Judges epochs whose weights are their number, and returns how many there were."""
    for number, loss in enumerate(losses, start=1):
        model.set_weights([np.full(w.shape, number) for w in model.get_weights()])
        stopping.judge(loss)
        if stopping.stopped:
            return number
    return None


@pytest.mark.parametrize(
    ("losses", "stopped", "best"),
    [
        ([3, 2, 1, 1, 1, 0], 5, 3),  # an equal loss is no better one
        ([3, 2, 4, 1, 4, 4], 6, 4),
        ([3, 2, 1], None, 3),
        ([1, np.nan, 0.5, np.inf, 2], 5, 3),
        ([np.nan, np.nan, 1], 2, 0),
    ],
)
def test_it_stops_after_epochs_without_a_better_loss_and_restores_the_best(losses, stopped, best):
    model = network()
    frozen = freezing.freeze(model, "body|norm", "train")
    stopping = EarlyStopping(frozen, 2)
    assert judge(stopping, model, losses) == stopped
    assert stopping.best_epoch == best
    stopping.restore()
    for layer in ("body", "norm"):  # kernel and bias; gamma and beta, and the statistics
        for weight in model.get_layer(layer).get_weights():
            assert (weight == (best or stopped)).all()
    for weight in model.get_layer("head").get_weights():  # frozen: not its affair
        assert (weight == (stopped or len(losses))).all()


def test_without_validation_examples_it_is_refused():
    with pytest.raises(UserError, match="`early_stopping` must be None where there are no valida"):
        driver.fit(network(), Splits(splits().train), Classification(tuple("ab")), PHASES)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Returns an uninterrupted run, and a folder with its directory after each checkpoint."""
    folder, places = tmp_path_factory.mktemp("recorded"), []
    save = run_checkpoints.Checkpoints.save

    def save_and_copy(self, model, place, **more):
        save(self, model, place, **more)
        self.wait()
        places.append((place.phase, place.step))
        shutil.copytree(folder / "end", folder / f"{place.phase} {place.step}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SECONDS_PER_CALL", 0)
        patch.setattr(run_checkpoints.Checkpoints, "due", lambda self: True)
        patch.setattr(run_checkpoints.Checkpoints, "save", save_and_copy)
        run = fit(workdir=folder / "end")
    return run, places, folder


def test_the_best_averaged_weights_are_validated_and_left_in_the_model(recorded):
    run, places, _ = recorded
    record = run.result["phases"][0]
    rows = [row for row in run.history if row["phase"] == "fit"]
    losses = [row["val_loss"] for row in rows]
    assert record["stopped_epoch"] == record["epochs"] == len(rows) < SETTINGS["epochs"]
    assert record["best_epoch"] == 1 + int(np.argmin(losses)) == len(rows) - 2
    assert record["steps"] == STEPS * len(rows)
    # Whole updates: of two batches, and of the one that is left of an epoch.
    assert {step % STEPS for phase, step in places if phase == 0} == {0, 2, 4}
    tune = run.result["phases"][1]
    assert (tune["stopped_epoch"], tune["epochs"]) == (None, 2)
    # The second phase ends with its best weights too.
    best = min(row["val_loss"] for row in run.history if row["phase"] == "tune")
    assert run.result["metrics"]["validation"]["loss"] == pytest.approx(best, rel=1e-6)


def test_one_phase_ends_with_the_weights_of_its_best_epoch():
    run = fit(PHASES[:1])
    best = min(row["val_loss"] for row in run.history)
    assert run.result["metrics"]["validation"]["loss"] == pytest.approx(best, rel=1e-6)


def test_averages_are_left_where_nothing_stops_early():
    run = fit([Phase("fit", "body|head", epochs=3, learning_rate=0.5, ema=0.6)])
    last = run.history[-1]["val_loss"]
    assert run.result["metrics"]["validation"]["loss"] == pytest.approx(last, rel=1e-6)


@pytest.mark.parametrize("where", ["inside", "after the best", "stopped", "next phase"])
def test_a_run_that_goes_on_stops_at_the_same_epoch_with_the_same_weights(
    recorded, tmp_path, where
):
    run, _, folder = recorded
    best, stopped = (run.result["phases"][0][name] for name in ("best_epoch", "stopped_epoch"))
    place = {
        "inside": f"0 {STEPS * best - 1}",
        "after the best": f"0 {STEPS * (best + 1) + 2}",
        "stopped": f"0 {STEPS * stopped}",
        "next phase": f"1 {STEPS}",
    }[where]
    directory = tmp_path / "run"
    shutil.copytree(folder / place, directory)
    again = fit(workdir=directory)
    for ours, theirs in zip(again.model.get_weights(), run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for key in ("metrics", "data"):
        assert again.result[key] == run.result[key]
    for ours, theirs in zip(again.result["phases"], run.result["phases"], strict=True):
        assert {k: v for k, v in ours.items() if "seconds" not in k} == {
            k: v for k, v in theirs.items() if "seconds" not in k
        }
    assert len(again.history) == len(run.history)
