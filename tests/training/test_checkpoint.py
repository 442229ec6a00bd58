import logging

import keras
import numpy as np
import pytest

from tfbp.errors import UserError
from tfbp.training import checkpoint
from tfbp.training.checkpoint import Checkpoints, Place


def network(units=3, **names):
    """Returns a compiled and built model with statistics, a random seed and a slot optimizer."""
    x = keras.Input((2,))
    hidden = keras.layers.BatchNormalization(**names)(keras.layers.Dense(units)(x))
    model = keras.Model(x, keras.layers.Dense(1)(keras.layers.Dropout(0.5)(hidden)))
    model.compile("adam", "mse", metrics=["mae"])
    train(model, 1)
    return model


def train(model, steps):
    numbers = np.random.default_rng(0)
    for _ in range(steps):
        model.train_on_batch(numbers.normal(0, 1, (4, 2)), numbers.normal(0, 1, (4, 1)))


@pytest.fixture(scope="module")
def model():
    return network()


def state(model):
    every = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [np.array(variable) for variable in every]


def equal(one, other):
    return all((a == b).all() for a, b in zip(one, other, strict=True))


def test_inside_a_phase_everything_that_training_changes_comes_back(tmp_path):
    model, checkpoints = network(), Checkpoints(tmp_path / "checkpoints")
    train(model, 2)
    history = ({"epoch": 1, "loss": 0.1 + 0.2},)
    place = Place(1, 7, history, phases=({"name": "head"},), before={"dense": {"fixed": []}})
    checkpoints.save(model, place)
    saved = state(model)
    train(model, 2)
    ended = state(model)

    other = network(name="renamed")  # and with other auto-generated names
    found, arrays = Checkpoints(tmp_path / "checkpoints").newest()
    assert found == place
    checkpoint.restore(other, found, arrays)
    assert equal(state(other), saved)
    train(other, 2)  # with the same masks of dropout
    assert equal(state(other), ended)


def test_between_phases_the_new_optimizer_is_left_alone(tmp_path):
    model, checkpoints = network(), Checkpoints(tmp_path)
    train(model, 2)
    checkpoints.save(model, Place(phase=1))
    other = network()
    other.compile("sgd", "mse")
    checkpoint.restore(other, *checkpoints.newest())
    assert equal(other.get_weights(), model.get_weights())
    assert not int(other.optimizer.iterations)


def test_the_two_newest_are_kept(tmp_path, model):
    checkpoints = Checkpoints(tmp_path)
    for step in range(12):
        checkpoints.save(model, Place(step=step))
        numbers = sorted(int(path.name) for path in tmp_path.iterdir())
        assert numbers == [1, 2][: step + 1] if step < 2 else [step, step + 1]
        assert checkpoints.newest()[0].step == step
    checkpoints.clear()
    assert not tmp_path.exists()
    assert checkpoints.newest() is None


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_a_bit(folder / "state.npz"),
        lambda folder: (folder / "state.npz").write_bytes(b""),
        lambda folder: (folder / "state.npz").unlink(),
        lambda folder: flip_a_bit(folder / "place.json"),
        lambda folder: (folder / "place.json").unlink(),
        lambda folder: (folder / "sha256").unlink(),
    ],
    ids=["bit of state", "empty", "no state", "bit of place", "no place", "no hash"],
)
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, model, caplog, damage):
    checkpoints = Checkpoints(tmp_path)
    for step in (4, 5):
        checkpoints.save(model, Place(step=step))
    damage(tmp_path / "2")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert checkpoints.newest()[0].step == 4
    assert f"Checkpoint {tmp_path / '2'} is damaged" in caplog.text
    damage(tmp_path / "1")
    assert checkpoints.newest() is None
    checkpoints.save(model, Place(step=6))
    assert checkpoints.newest()[0].step == 6


def test_what_is_no_checkpoint_is_left_alone(tmp_path, model):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    (tmp_path / ".3.77.tmp").mkdir()  # of a process that was killed while it wrote
    checkpoints.save(model, Place(step=1))
    assert checkpoints.newest()[0].step == 1
    assert (tmp_path / "1").is_dir()


def test_the_state_of_another_model_is_refused(tmp_path, model):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(model, Place(step=1))
    with pytest.raises(UserError, match="The checkpoint was made by another model"):
        checkpoint.restore(network(units=4), *checkpoints.newest())


def test_one_is_due_when_the_last_is_old_enough(tmp_path, model, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, seconds=60)
    assert not checkpoints.due()
    now[0] += 60
    assert checkpoints.due()
    checkpoints.save(model, Place(step=1))
    assert not checkpoints.due()
