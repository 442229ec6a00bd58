"""The state of callbacks, so that a resumed run has them as they were.

The state of Keras's own callbacks is known here. Others return it themselves, as numbers, texts,
lists, tuples, dicts and arrays:

    def get_state(self):
        return {"best": self.best}

    def set_state(self, state):  # called after `on_train_begin`, inside a phase
        self.best = state["best"]
"""

import collections
import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from tfbp import storage
from tfbp.errors import UserError, mistake
from tfbp.modeling.keras_graph import CALLBACK_STATE

# Those without state, or whose state the optimizer's variables hold.
STATELESS = (
    keras.callbacks.Callback,
    keras.callbacks.LambdaCallback,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TerminateOnNaN,
)


def warn_of_unknown(callbacks: Iterable[keras.callbacks.Callback]) -> None:
    """Warns of callbacks that may have a state which cannot be saved."""
    known = {keras.callbacks.CSVLogger, *CALLBACK_STATE, *STATELESS}
    names = [
        type(callback).__name__
        for callback in callbacks
        if type(callback) not in known
        and not _has_own_state(callback)
        and not type(callback).__module__.startswith("tfbp.")
    ]
    if names:
        logging.warning(
            "The state of these callbacks is not in the checkpoints: %s. If they have any, give "
            "them `get_state()` and `set_state(state)`; else a run that is stopped and goes on may "
            "end differently.",
            ", ".join(dict.fromkeys(names)),
        )


def take(
    callbacks: Iterable[keras.callbacks.Callback], fixed: Iterable[keras.Variable]
) -> tuple[list, list[np.ndarray]]:
    """Returns the state of callbacks: a JSON value, and copies of the arrays that it refers to.

    Args:
        callbacks: have been given their model.
        fixed: weights that do not change in this phase. Best weights are kept without them.

    Raises:
        tfbp.UserError: `get_state` returns a value of another type than it may.
    """
    arrays: list[np.ndarray] = []
    fixed_ids = {id(variable) for variable in fixed}
    return [
        [name, _encode(_get(callback, fixed_ids), arrays, name)]
        for name, callback in _with_state(callbacks)
    ], arrays


def give(
    callbacks: Iterable[keras.callbacks.Callback], states: list, arrays: Sequence[np.ndarray]
) -> None:
    """Gives callbacks back the state that `take` returned.

    Raises:
        tfbp.UserError: they are not the callbacks that it was taken from.
    """
    named = dict(_with_state(callbacks))
    before = [name for name, _ in states]
    if before != list(named):
        rule = f"must be those that the run began with; of these it holds the state: {before}"
        raise mistake("callbacks", rule, list(named))
    for name, state in states:
        _set(named[name], _decode(state, arrays))


def _with_state(
    callbacks: Iterable[keras.callbacks.Callback],
) -> Iterator[tuple[str, keras.callbacks.Callback]]:
    """Yields each callback that has a state, after a name of its own."""
    counts: collections.Counter[str] = collections.Counter()
    for callback in callbacks:
        known = (keras.callbacks.CSVLogger, *CALLBACK_STATE)
        if _has_own_state(callback) or isinstance(callback, known):
            kind = type(callback).__name__
            counts[kind] += 1
            yield f"{kind} {counts[kind]}", callback


def _has_own_state(callback: keras.callbacks.Callback) -> bool:
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _get(callback: keras.callbacks.Callback, fixed: set[int]) -> Any:
    if _has_own_state(callback):
        return callback.get_state()
    if isinstance(callback, keras.callbacks.CSVLogger):
        return _rows(callback)
    (names,) = (names for kind, names in CALLBACK_STATE.items() if isinstance(callback, kind))
    state = {name: getattr(callback, name) for name in names if hasattr(callback, name)}
    if isinstance(callback, keras.callbacks.EarlyStopping) and callback.best_weights is not None:
        pairs = enumerate(zip(callback.model.weights, callback.best_weights, strict=True))
        state["best_weights"] = {i: value for i, (own, value) in pairs if id(own) not in fixed}
    return state


def _set(callback: keras.callbacks.Callback, state: Any) -> None:
    if _has_own_state(callback):
        callback.set_state(state)
        return
    if isinstance(callback, keras.callbacks.CSVLogger):
        _set_rows(callback, state)
        return
    if "best_weights" in state:
        best = state["best_weights"]
        weights = enumerate(callback.model.weights)
        state["best_weights"] = [best[i] if i in best else np.asarray(own) for i, own in weights]
    vars(callback).update(state)


def _rows(logger: keras.callbacks.CSVLogger) -> dict:
    """The state of a CSVLogger with its whole file: a resumed run repeats some of its rows."""
    text = ""
    if os.path.exists(logger.filename):
        with open(logger.filename, newline="", encoding="utf-8") as file:
            text = file.read()
    return {"text": text, "keys": logger.keys, "header": logger.append_header} | {
        "begun": logger.writer is not None
    }


def _set_rows(logger: keras.callbacks.CSVLogger, state: dict) -> None:
    is_open = logger.csv_file is not None and not logger.csv_file.closed
    if is_open:
        logger.csv_file.close()
    storage.write_text(logger.filename, state["text"])
    logger.keys, logger.append_header = state["keys"], state["header"]
    if is_open:
        logger.csv_file = open(logger.filename, "a", newline="", encoding="utf-8")  # noqa: SIM115
    if is_open and state["begun"]:
        columns = ["epoch", *state["keys"]]
        logger.writer = csv.DictWriter(logger.csv_file, columns, delimiter=logger.sep)


def _encode(value: object, arrays: list[np.ndarray], name: str) -> object:
    """Returns a JSON value. Types that JSON lacks become an object with one key, their kind."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list):
        return [_encode(each, arrays, name) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(each, arrays, name) for each in value]}
    if isinstance(value, dict):
        pairs = value.items()
        return {"dict": [[_encode(part, arrays, name) for part in pair] for pair in pairs]}
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        arrays.append(np.array(value))
        return {"array" if isinstance(value, np.ndarray) else "scalar": len(arrays) - 1}
    raise UserError(
        f"`get_state` of the callback {name} must return numbers, texts, lists, tuples, dicts and "
        f"NumPy arrays. Received: {type(value).__name__}."
    )


def _decode(value: Any, arrays: Sequence[np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(each, arrays) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "scalar":
        return arrays[content][()]
    if kind == "tuple":
        return tuple(_decode(content, arrays))
    return {_decode(key, arrays): _decode(each, arrays) for key, each in content}
