import fcntl
import json
import logging
import os
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp import storage
from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.modeling import freezing, heads
from tfbp.resuming import state as run_state
from tfbp.resuming.checkpoints import Checkpoints
from tfbp.resuming.state import Position
from tfbp.tasks.classification import Classification
from tfbp.training import loop, optimizer
from tfbp.training.phase import Phase


def network(units=3, **names):
    """Returns a compiled and built model with statistics, a random seed and a slot optimizer."""
    x = keras.Input((2,))
    hidden = keras.layers.BatchNormalization(**names)(keras.layers.Dense(units)(x))
    model = keras.Model(x, keras.layers.Dense(1)(keras.layers.Dropout(0.5)(hidden)))
    model.compile("adam", "mse", metrics=["mae"], run_eagerly=True)  # tracing takes seconds
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
    return [variable.value.numpy() for variable in every]


def equal(one, other):
    return all((a == b).all() for a, b in zip(one, other, strict=True))


def test_inside_a_phase_everything_that_training_changes_comes_back(tmp_path):
    model, checkpoints = network(), Checkpoints(tmp_path / "checkpoints")
    train(model, 2)
    position = Position(
        phase=1,
        step=7,
        history=({"epoch": 1, "loss": 0.1 + 0.2},),
        phases=({"name": "head"},),
        before={"dense": {"fixed": []}},
        stopped=True,
        callbacks=[["Own 1", {"array": 0}]],
        gradients={"latest": {"gradient_norm/head": 0.3}, "warned": []},
    )
    best, remembered = [np.ones((2, 3), np.float32)], [np.arange(3)]
    checkpoints.save(model, position, best=best, callbacks=remembered)
    saved = state(model)
    train(model, 2)  # while it is written
    ended = state(model)

    other = network(name="renamed")  # and with other auto-generated names
    checkpoints.wait()
    found, arrays = Checkpoints(tmp_path / "checkpoints").newest()
    assert found == position
    assert equal(arrays.best, best)
    assert equal(arrays.callbacks, remembered)
    run_state.restore(other, found, arrays)
    assert equal(state(other), saved)
    train(other, 2)  # with the same masks of dropout
    assert equal(state(other), ended)


def test_between_phases_the_new_optimizer_is_left_alone(tmp_path):
    model, checkpoints = network(), Checkpoints(tmp_path)
    train(model, 2)
    checkpoints.save(model, Position(phase=1))
    other = network()
    other.compile("sgd", "mse")
    run_state.restore(other, *checkpoints.newest())
    assert equal(other.get_weights(), model.get_weights())
    assert not int(other.optimizer.iterations)


def test_numbers_that_numpy_does_not_know_come_back_bit_for_bit(tmp_path):
    half = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, dtype="bfloat16")])
    half.set_weights([weight + 1.7 for weight in half.get_weights()])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(half, Position())
    before = state_of_weights(half)
    half.set_weights([0 * weight for weight in half.get_weights()])
    run_state.restore(half, *checkpoints.newest())
    assert half.weights[0].dtype == "bfloat16"
    assert equal(state_of_weights(half), before)


def state_of_weights(model):
    return [np.asarray(weight).astype(np.float32) for weight in model.weights]


# ---- what a checkpoint inside a phase leaves out


@pytest.fixture
def tuned():
    """Returns a model whose last layer and BatchNormalization learn, and what stays."""
    model = network(name="norm")
    last = model.layers[-1].name
    frozen = freezing.freeze(model, f"norm|{last}", "train")
    phase = Phase("tune", f"norm|{last}", epochs=1, learning_rate=0.1)
    model.compile(optimizer.build(phase, 9, frozen), "mse", metrics=["mae"], auto_scale_loss=False)
    examples = Examples.from_arrays(np.ones((4, 2), np.float32), np.ones((4, 1), np.float32))
    loop.build(model, examples, tf.distribute.get_strategy())
    return model, frozen.fixed


def arrays_in(folder):
    with np.load(folder / "state.npz") as arrays:
        return dict(arrays)


def test_inside_a_phase_what_stays_is_left_to_the_first_checkpoint(tmp_path, tuned):
    model, fixed = tuned
    assert [weight.path for weight in fixed] == [weight.path for weight in model.layers[1].weights]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(model, Position())
    for target in (*model.variables[2:], *model.optimizer.variables, *model.metrics_variables):
        target.assign(target + 1)
    checkpoints.save(model, Position(step=3), fixed=fixed)
    position, found = checkpoints.newest()
    assert position.step == 3

    whole, part = arrays_in(tmp_path / "1"), arrays_in(tmp_path / "2")
    assert whole.keys() == {f"variables {i}" for i in range(len(run_state.variables(model, 0)))}
    every = run_state.variables(model, 3)
    assert part.keys() == {f"variables {i}" for i in range(2, len(every))}
    expected = [np.asarray(variable) for variable in every]
    for target in every:
        target.assign(0 * target)
    run_state.restore(model, position, found)
    assert equal([np.asarray(variable) for variable in every], expected)


@pytest.mark.parametrize("what", ["damaged", "gone", "another"])
def test_without_its_first_one_a_checkpoint_is_passed_over(tmp_path, tuned, caplog, what):
    model, fixed = tuned
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(model, Position())
    checkpoints.save(model, Position(step=3), fixed=fixed)
    checkpoints.save(model, Position(phase=1))
    checkpoints.save(model, Position(phase=1, step=2), fixed=fixed)
    checkpoints.wait()
    if what == "damaged":
        flip_a_bit(tmp_path / "3" / "state.npz")
    else:
        shutil.rmtree(tmp_path / "3")
    if what == "another":
        shutil.copytree(tmp_path / "1", tmp_path / "3")
    again = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING, logger="absl"):
        position, _ = again.newest()
    assert f"Checkpoint {tmp_path / '4'} is damaged: the one before is used." in caplog.text
    if what == "another":
        assert (position.phase, position.step) == (0, 0)  # number 3 is whole
        return
    assert (position.phase, position.step) == (0, 3)
    again.save(model, Position(phase=1))
    again.save(model, Position(phase=1, step=1), fixed=fixed)
    assert again.newest()[0] == Position(phase=1, step=1)
    assert names(tmp_path) == ["1", "2", "5", "6"]  # and what was damaged is gone


def test_inside_the_head_phase_of_vgg16_one_is_under_a_megabyte(tmp_path):
    backbone = keras.applications.VGG16(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    model = heads.swap_head(backbone, classes=10)
    task = Classification([str(i) for i in range(10)])
    frozen = freezing.freeze(model, "head.*")
    phase = Phase("head", "head.*", epochs=1, learning_rate=0.1)
    update = optimizer.build(phase, 1, frozen)
    model.compile(update, loss=task.loss(), metrics=task.metrics(), auto_scale_loss=False)
    images = Examples.from_arrays(np.zeros((2, 32, 32, 3), np.uint8), np.arange(2))
    loop.build(model, images, tf.distribute.get_strategy())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(model, Position())
    checkpoints.save(model, Position(step=1), fixed=frozen.fixed)
    position, found = checkpoints.newest()
    whole, part = (
        sum(file.stat().st_size for file in (tmp_path / name).iterdir()) for name in ("1", "2")
    )
    assert whole > 4 * model.count_params() > 50e6
    assert part < 1e6
    kernel = model.get_layer("vgg16").get_layer("block1_conv1").kernel
    before = np.asarray(kernel)
    kernel.assign(0 * kernel)
    run_state.restore(model, position, found)
    assert (np.asarray(kernel) == before).all()


# ---- which ones stay


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_first_one_of_each_phase_and_the_two_newest_are_kept(tmp_path, model):
    checkpoints, number, firsts = Checkpoints(tmp_path), 0, []
    for phase in range(2):
        for step in range(12):
            checkpoints.save(model, Position(phase=phase, step=step))
            number += 1
            if step == 0:
                firsts.append(number)
            found = checkpoints.newest()[0]
            assert (found.phase, found.step) == (phase, step)
            others = [n for n in range(1, number + 1) if n not in firsts][-2:]
            assert set(names(tmp_path)) == {str(n) for n in (*firsts, *others)}
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
        lambda folder: flip_a_bit(folder / "manifest.json"),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
    ids=[
        "bit of state",
        "empty",
        "no state",
        "bit of place",
        "no place",
        "bit of manifest",
        "no manifest",
    ],
)
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, model, caplog, damage):
    checkpoints = Checkpoints(tmp_path)
    for step in (4, 5):
        checkpoints.save(model, Position(step=step))
    checkpoints.wait()
    damage(tmp_path / "2")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert checkpoints.newest()[0].step == 4
    assert f"Checkpoint {tmp_path / '2'} is damaged" in caplog.text
    damage(tmp_path / "1")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert checkpoints.newest() is None
    assert f"No checkpoint in {tmp_path} is whole: the run begins anew." in caplog.text
    checkpoints.save(model, Position(step=6))
    assert checkpoints.newest()[0].step == 6
    assert names(tmp_path) == ["3"]


def test_what_is_no_checkpoint_is_left_alone(tmp_path, model):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    (tmp_path / "notes").mkdir()
    checkpoints.save(model, Position(step=1))
    assert checkpoints.newest()[0].step == 1
    assert names(tmp_path) == ["1", "notes"]


def test_the_state_of_another_model_is_refused(tmp_path, model):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(model, Position(step=1))
    with pytest.raises(UserError, match="The checkpoint was made by another model"):
        run_state.restore(network(units=4), *checkpoints.newest())


# ---- when and by whom it is written


def test_one_is_due_when_the_last_is_old_enough(tmp_path, model):
    now = [100.0]
    checkpoints = Checkpoints(tmp_path, seconds=60, clock=lambda: now[0])
    assert not checkpoints.due()
    now[0] += 60
    assert checkpoints.due()
    checkpoints.save(model, Position(step=1))
    checkpoints.wait()
    assert not checkpoints.due()


def test_while_one_is_being_written_training_goes_on_and_none_is_due(tmp_path):
    model, folder = network(), os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # as `storage.sweep` does: who writes there has to wait
    with Checkpoints(tmp_path, seconds=0) as checkpoints:
        assert checkpoints.due()
        checkpoints.save(model, Position(step=1))
        saved = state(model)
        assert not checkpoints.due()
        train(model, 2)
        assert not equal(state(model), saved)
        os.close(folder)
    run_state.restore(model, *checkpoints.newest())
    assert equal(state(model), saved)


@pytest.fixture
def no_folder(tmp_path):
    """Returns a path that no checkpoint can be written to, and the reason."""
    path = tmp_path / "checkpoints"
    path.write_text("a file")
    return path, re.escape(f"`{path / '1'}` cannot be written: `{path}` is no folder.")


@pytest.mark.parametrize("where", ["due", "save", "wait", "newest", "end"])
def test_an_error_of_the_writer_is_raised_at_the_next_call(model, no_folder, where):
    def call(checkpoints):
        if where == "due":
            while not checkpoints.due():
                pass
        elif where == "save":
            checkpoints.save(model, Position(step=2))
        elif where != "end":
            getattr(checkpoints, where)()

    path, reason = no_folder
    with pytest.raises(UserError, match=reason), Checkpoints(path, seconds=0) as checkpoints:
        checkpoints.save(model, Position(step=1))
        call(checkpoints)
    assert path.read_text() == "a file"


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_writer(model, no_folder, caplog):
    path, reason = no_folder
    with (
        caplog.at_level(logging.WARNING, logger="absl"),
        pytest.raises(ZeroDivisionError),
        Checkpoints(path) as checkpoints,
    ):
        checkpoints.save(model, Position())
        1 / 0  # noqa: B018
    assert re.search(f"The last checkpoint could not be written. {reason}", caplog.text)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("which", ["variables", "metrics_variables"])
def test_inside_a_phase_what_is_not_finite_is_not_written(tmp_path, caplog, which, value):
    model, checkpoints = network(), Checkpoints(tmp_path)
    checkpoints.save(model, Position(step=4))
    target = getattr(model, which)[0]
    target.assign(np.full(target.shape, value))
    with caplog.at_level(logging.WARNING, logger="absl"):
        checkpoints.save(model, Position(step=5))
        assert checkpoints.newest()[0].step == 4
    assert "At step 5 of the phase weights, optimizer or metrics are not finite" in caplog.text
    assert names(tmp_path) == ["1"]


def test_a_manifest_names_the_files_of_each(tmp_path, model):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(model, Position(step=1))
    checkpoints.wait()
    storage.verify(tmp_path / "1")
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    assert manifest["files"].keys() == {"state.npz", "place.json"}
