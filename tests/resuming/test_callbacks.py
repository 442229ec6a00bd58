import itertools
import json
import logging

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import keras
import numpy as np
import pytest

from tfbp.errors import UserError
from tfbp.reporting.progress import Progress
from tfbp.resuming import callbacks as callback_state

LOSSES = (3.0, 2.0, 2.5, 2.4, 2.3, 1.0, 1.5, 1.4)


class Own(keras.callbacks.Callback):
    """Has the state that it is given."""

    def __init__(self, value=None):
        super().__init__()
        self.value = value

    def get_state(self):
        return self.value

    def set_state(self, state):
        self.value = state


def through_json(callbacks, fixed=()):
    states, arrays = callback_state.take(callbacks, fixed)
    return json.loads(json.dumps(states)), arrays


# ---- Keras's own


def network():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def train(callback, epochs):
    """Calls a callback for epochs in which the weights are the epoch's number."""
    for epoch in epochs:
        callback.on_epoch_begin(epoch)
        callback.model.set_weights([np.full(w.shape, epoch) for w in callback.model.get_weights()])
        for batch in range(2):
            callback.on_train_batch_begin(batch)
            callback.on_train_batch_end(batch, {"loss": 1.0})
        callback.on_epoch_end(epoch, {"loss": 2 * LOSSES[epoch], "val_loss": LOSSES[epoch]})


def begin(callback, model):
    callback.set_model(model)
    callback.set_params({"epochs": len(LOSSES), "steps": 2})
    callback.on_train_begin()
    return callback


KERAS = {
    "EarlyStopping": lambda folder: keras.callbacks.EarlyStopping(
        patience=3, min_delta=0.3, restore_best_weights=True
    ),
    "History": lambda folder: keras.callbacks.History(),
    "ModelCheckpoint": lambda folder: keras.callbacks.ModelCheckpoint(
        folder / "{epoch}.weights.h5", save_best_only=True, save_weights_only=True
    ),
    "ModelCheckpoint by batches": lambda folder: keras.callbacks.ModelCheckpoint(
        folder / "{epoch}.weights.h5", save_freq=3, save_weights_only=True
    ),
    "ReduceLROnPlateau": lambda folder: keras.callbacks.ReduceLROnPlateau(
        patience=2, factor=0.5, cooldown=1
    ),
    "TensorBoard": lambda folder: keras.callbacks.TensorBoard(folder, write_graph=False),
}


@pytest.mark.parametrize("name", KERAS)
def test_a_callback_of_keras_goes_on_as_one_that_never_stopped(tmp_path, name):
    whole = begin(KERAS[name](tmp_path / "whole"), network())
    first = begin(KERAS[name](tmp_path / "first"), network())
    train(whole, range(len(LOSSES)))
    train(first, range(4))
    second = begin(KERAS[name](tmp_path / "second"), first.model)
    callback_state.give([second], *through_json([first]))
    train(second, range(4, len(LOSSES)))
    ours, theirs = (callback_state.take([each], ()) for each in (second, whole))
    assert ours[0] == theirs[0]
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert second.model.optimizer.learning_rate == whole.model.optimizer.learning_rate
    if name.startswith("ModelCheckpoint"):
        written = [
            {path.name for path in (tmp_path / part).iterdir()}
            for part in ("whole", "first", "second")
        ]
        assert written[0] == written[1] | written[2]
        assert len(written[0]) == len(written[1]) + len(written[2])


def test_best_weights_are_kept_without_those_that_stay():
    stopping = begin(KERAS["EarlyStopping"](None), network())
    stopping.model.set_weights([w + 7 for w in stopping.model.get_weights()])
    stopping.best_weights = [np.full(w.shape, 7 + i) for i, w in enumerate(stopping.model.weights)]
    fixed = stopping.model.layers[0].weights
    states, arrays = through_json([stopping], fixed)
    assert [array.flat[0] for array in arrays] == [9, 10]
    other = begin(KERAS["EarlyStopping"](None), stopping.model)
    callback_state.give([other], states, arrays)
    expected = [*stopping.model.get_weights()[:2], *stopping.best_weights[2:]]
    for ours, theirs in zip(other.best_weights, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("taken_after", [0, 1, 3])
def test_a_csv_log_goes_on_where_it_was_without_a_row_lost_or_twice(tmp_path, append, taken_after):
    def logger(name):
        return keras.callbacks.CSVLogger(tmp_path / name, separator=";", append=append)

    if append:  # rows of somebody else
        for name in ("whole", "log"):
            (tmp_path / name).write_bytes(b"epoch;loss\r\n")
    whole = begin(logger("whole"), None)
    log_losses(whole, range(6))
    first = begin(logger("log"), None)
    log_losses(first, range(taken_after))
    state = through_json([first])
    log_losses(first, range(taken_after, 5))  # and then it was killed
    second = begin(logger("log"), None)
    callback_state.give([second], *state)
    log_losses(second, range(taken_after, 6))
    assert (tmp_path / "log").read_bytes() == (tmp_path / "whole").read_bytes()
    for each in (whole, second):  # and the next phase
        each.on_train_end()
        begin(each, None)
        log_losses(each, range(2))
        each.on_train_end()
    assert (tmp_path / "log").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_csv_log_of_the_phase_before_comes_back(tmp_path):
    def logger():
        return keras.callbacks.CSVLogger(tmp_path / "log", append=True)

    first = begin(logger(), None)
    log_losses(first, range(2))
    first.on_train_end()
    expected, state = (tmp_path / "log").read_bytes(), through_json([first])
    begin(first, None)
    log_losses(first, range(3))  # the next phase, of which no checkpoint knows
    second = logger()
    callback_state.give([second], *state)
    assert (tmp_path / "log").read_bytes() == expected
    begin(second, None)
    log_losses(second, range(1))
    assert (tmp_path / "log").read_bytes() == expected + b"0,3.0,3.0\r\n"


def log_losses(callback, epochs):
    for epoch in epochs:
        callback.on_epoch_end(epoch, {"loss": LOSSES[epoch], "val_loss": LOSSES[epoch]})


def test_each_callback_of_keras_is_looked_up():
    classes = {each for each in vars(keras.callbacks).values() if isinstance(each, type)}
    known = {keras.callbacks.CSVLogger, *callback_state.CALLBACK_STATE, *callback_state.STATELESS}
    # The first restores by itself, the second needs another optimizer, the third is a list.
    unknown = {"BackupAndRestore", "SwapEMAWeights", "CallbackList"}
    assert {each.__name__ for each in classes - known} == unknown
    assert known <= classes


# ---- others


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)
ARRAYS = hypothesis.extra.numpy.arrays(
    st.sampled_from([np.float32, np.int64, np.bool_]),
    hypothesis.extra.numpy.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3),
)
STATES = st.recursive(
    SCALARS | ARRAYS | st.sampled_from([np.float32(0.1), np.int8(3)]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(SCALARS | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=8,
)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            assert_same(ours, theirs)
    elif isinstance(one, dict):
        assert_same(list(itertools.chain(*one.items())), list(itertools.chain(*other.items())))
    elif isinstance(one, np.ndarray | np.generic):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    else:
        assert one == other


@hypothesis.given(STATES)
def test_the_state_of_a_callback_comes_back_equal_and_of_the_same_types(value):
    states, arrays = through_json([Own(value)])
    other = Own()
    callback_state.give([other], states, arrays)
    assert_same(other.value, value)


def test_arrays_are_copied_when_they_are_taken():
    values = np.zeros(3)
    states, arrays = callback_state.take([Own(values)], ())
    values += 1
    other = Own()
    callback_state.give([other], states, arrays)
    np.testing.assert_array_equal(other.value, [0, 0, 0])


def test_callbacks_of_one_kind_keep_their_order_and_others_are_passed_over():
    taken = callback_state.take([Own(1), keras.callbacks.TerminateOnNaN(), Own(2)], ())
    one, two = Own(), Own()
    callback_state.give([one, two], *taken)
    assert (one.value, two.value) == (1, 2)


@pytest.mark.parametrize("others", [[], [Own()], [Own(), keras.callbacks.History()]])
def test_other_callbacks_than_those_that_were_saved_are_refused(others):
    taken = callback_state.take([Own(1), Own(2)], ())
    with pytest.raises(UserError, match="`callbacks` must be those that the run began with"):
        callback_state.give(others, *taken)


@pytest.mark.parametrize("state", [object(), {"a": {1, 2}}, [np.array([None])]])
def test_a_state_that_cannot_be_kept_is_refused(state):
    with pytest.raises(UserError, match="`get_state` of the callback Own 1 must return numbers"):
        callback_state.take([Own(state)], ())


def test_one_warning_names_the_callbacks_of_unknown_state(tmp_path, caplog):
    class Secret(keras.callbacks.EarlyStopping):
        pass

    known = [make(tmp_path) for make in KERAS.values()]
    known += [keras.callbacks.LambdaCallback(), Own(), Progress("fit", 1, 1, 1, 1)]
    with caplog.at_level(logging.WARNING, logger="absl"):
        callback_state.warn_of_unknown(known)
        assert not caplog.records
        restoring = keras.callbacks.BackupAndRestore("backup")
        callback_state.warn_of_unknown([*known, Secret(), restoring, Secret()])
    (record,) = caplog.records
    assert "not in the checkpoints: Secret, BackupAndRestore." in record.getMessage()
