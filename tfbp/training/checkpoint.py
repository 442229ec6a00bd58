"""The state of a run at a point from which it can go on, as a folder that is whole or not there.

It holds every variable that the rest of the run depends on (weights, statistics, random seeds and,
inside a phase, optimizer and metrics) by its position, so that auto-generated names do not matter,
the weights that early stopping may put back, what callbacks remember, and the place in the run:
phase, steps done, history. A phase's first checkpoint, at step 0, holds all the model's variables,
and is kept until the run ends. Those after it leave out what the phase does not change, and name
the first one by the fingerprint of its manifest.
"""

import concurrent.futures
import dataclasses
import io
import json
import pathlib
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Self

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from keras.src.random.seed_generator import global_seed_generator

from tfbp import fingerprint, storage
from tfbp.errors import UserError
from tfbp.training import workers

# Newest checkpoints that stay, besides the first one of each phase.
KEPT = 2
_STATE, _PLACE = "state.npz", "place.json"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run stands.

    Attributes:
        phase: index of the phase.
        step: steps of the phase that are done.
        history: one row per finished epoch, all phases.
        phases: what has been recorded of the finished phases.
        before: the fingerprints of the variables when the phase began, for its proof; None: not
            taken.
        early_stopping: inside a phase that may stop early, how its epochs have been judged.
        stopped: whether the phase is to end here, as early stopping or a callback has asked.
        callbacks: what `callback_state.take` has returned, but for the arrays.
        gradients: inside a phase whose gradients are logged, the state of that.
    """

    phase: int = 0
    step: int = 0
    history: tuple[dict, ...] = ()
    phases: tuple[dict, ...] = ()
    before: dict | None = None
    early_stopping: dict | None = None
    stopped: bool = False
    callbacks: list | None = None
    gradients: dict | None = None


@dataclasses.dataclass(frozen=True)
class State:
    """The arrays of a checkpoint.

    Attributes:
        variables: their values, by the position in what `variables` returns.
        parts: of those of which each of several replicas keeps a part, the parts: [replicas, …].
        best: the weights of early stopping's best epoch.
        callbacks: the arrays of `callback_state.take`.
    """

    variables: dict[int, np.ndarray]
    parts: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    best: Sequence[np.ndarray] = ()
    callbacks: Sequence[np.ndarray] = ()

    def finite(self, constant: Container[int]) -> bool:
        """Tells whether no variable holds a NaN or, but for those at the positions `constant`, an
        infinity: a mask of infinities is no fault of the training.
        """
        return all(_finite(value, i in constant) for i, value in self.variables.items())


def variables(model: keras.Model, step: int) -> list[keras.Variable]:
    """Returns what a run goes on with: before the first step of a phase, the model's variables and
    Keras's own random seed; inside a phase its optimizer's and its metrics' too.
    """
    # Keras draws from a generator of the whole process where a layer names none of its own.
    every = [*model.variables, global_seed_generator().state]
    if step:
        every += [*model.optimizer.variables, *model.metrics_variables]
    return list({id(variable): variable for variable in every}.values())


class Checkpoints:
    """The checkpoints of one run, in one folder. A thread of its own writes them.

    As a context manager it waits for that thread; what the thread raised is raised again there, or
    at an earlier call. Of several workers each takes part in saving and in reading; the chief alone
    has the folder.

    Args:
        folder: holds a folder for each checkpoint, numbered from 1.
        seconds: least time between two checkpoints inside a phase.
        strategy: the one that the model was built for.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        seconds: float = 60.0,
        strategy: tf.distribute.Strategy | None = None,
    ):
        self._folder = folder
        self._seconds = seconds
        self._strategy = strategy or tf.distribute.get_strategy()
        self._workers = workers.of(self._strategy)
        self._saved = time.monotonic()
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: concurrent.futures.Future | None = None
        self._first: dict | None = None  # number and manifest of the phase's first checkpoint
        self._damaged: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *error):
        self._writer.shutdown()
        if kind is None:
            self.wait()
        elif self._writing and (also := self._writing.exception()):
            logging.warning("The last checkpoint could not be written. %s", also)

    def due(self) -> bool:
        """Tells whether the last checkpoint is written, and old enough for the next. Of several
        workers the chief says so.
        """
        if not self._workers.is_chief or (self._writing and not self._writing.done()):
            return False
        self.wait()
        return time.monotonic() - self._saved >= self._seconds

    def wait(self) -> None:
        """Waits until what was saved is on the disk.

        Raises:
            tfbp.UserError: it cannot be written.
        """
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def save(
        self,
        model: keras.Model,
        place: Place,
        *,
        fixed: Iterable[keras.Variable] = (),
        best: Sequence[np.ndarray] = (),
        callbacks: Sequence[np.ndarray] = (),
    ) -> None:
        """Copies the state of a run; it is written while the run goes on.

        Inside a phase a state that is not finite is not written, only warned of. Once it is on the
        disk, all but the newest two and the first ones of the phases are removed.

        Args:
            fixed: the weights that the phase does not change. A checkpoint inside it does without
                them where there is a first one of the phase.
            best: the best epoch's weights, where the phase may stop early; they are not copied.
            callbacks: the arrays that belong to `place.callbacks`; they are not copied.

        Raises:
            tfbp.UserError: the one before cannot be written.
        """
        self.wait()
        self._saved = time.monotonic()
        left_out = {id(variable) for variable in fixed if place.step and self._first}
        copies = {
            i: np.asarray(variable)  # a copy: TensorFlow's arrays are never views
            for i, variable in enumerate(variables(model, place.step))
            if id(variable) not in left_out
        }
        parts = _parts(model, place, self._strategy)
        if not self._workers.is_chief:
            return
        state = State(copies, parts, tuple(best), tuple(callbacks))
        first = self._first if left_out else None
        constant = {id(variable) for variable in model.non_trainable_variables}
        constant = {
            i for i, each in enumerate(variables(model, place.step)) if id(each) in constant
        }
        self._writing = self._writer.submit(self._write, place, state, first, constant)

    def newest(self) -> tuple[Place, State] | None:
        """Returns the newest whole checkpoint, or None; damaged ones are passed over and logged."""
        found = self._newest() if self._workers.is_chief else None
        if self._workers.count == 1:
            return found
        text, arrays = io.BytesIO(), io.BytesIO()
        if found:
            place, state = found
            text.write(json.dumps(dataclasses.asdict(place)).encode())
            np.savez(arrays, **_named(state))
        text, arrays = (self._workers.from_chief(each.getvalue()) for each in (text, arrays))
        return (_place(json.loads(text)), _state(io.BytesIO(arrays))) if text else None

    def _newest(self) -> tuple[Place, State] | None:
        self.wait()
        self._damaged = []
        for number in sorted(self._numbers(), reverse=True):
            try:
                place, state, first = self._read(number)
            except storage.Damaged as error:
                logging.warning(
                    "Checkpoint %s is damaged: the one before is used. %s",
                    self._folder / str(number),
                    error,
                )
                self._damaged.append(number)
                continue
            self._first = first if place.step else self._name(number)
            return place, state
        if self._damaged:
            logging.warning("No checkpoint in %s is whole: the run begins anew.", self._folder)
        return None

    def clear(self) -> None:
        """Removes all checkpoints: the run has ended."""
        storage.remove(self._folder)

    def _write(
        self, place: Place, state: State, first: dict | None, constant: Container[int]
    ) -> None:
        if place.step and not state.finite(constant):
            logging.warning(
                "At step %d of the phase weights, optimizer or metrics are not finite: no "
                "checkpoint is written.",
                place.step,
            )
            return
        arrays = _named(state)
        text = json.dumps({"first": first, **dataclasses.asdict(place)}).encode()
        number = max(self._numbers(), default=0) + 1
        needed = len(text) + sum(array.nbytes for array in arrays.values())
        storage.sweep(self._folder)
        with storage.publish(self._folder / str(number), manifest=True, needed=needed) as folder:
            (folder / _PLACE).write_bytes(text)
            np.savez(folder / _STATE, **arrays)
        if not place.step:
            self._first = self._name(number)
        self._prune()

    def _read(self, number: int) -> tuple[Place, State, dict | None]:
        """Returns a checkpoint with what its first one holds, and how it names that.

        Raises:
            tfbp.storage.Damaged: it is not whole, or its first one is not, or is another.
        """
        folder = self._folder / str(number)
        storage.verify(folder)
        found = json.loads((folder / _PLACE).read_bytes())
        first = found.pop("first")
        state = _state(folder / _STATE)
        if first:
            _, whole, _ = self._read(first["number"])
            if first != self._name(first["number"]):
                raise storage.Damaged(f"{folder} belongs to another first checkpoint.")
            state = dataclasses.replace(state, variables=whole.variables | state.variables)
        return _place(found), state, first

    def _name(self, number: int) -> dict:
        manifest = (self._folder / str(number) / storage.MANIFEST).read_bytes()
        return {"number": number, "manifest": fingerprint.of_bytes(manifest)}

    def _prune(self) -> None:
        within = [n for n in self._numbers() if n not in self._damaged and not self._is_first(n)]
        for number in [*self._damaged, *sorted(within)[:-KEPT]]:
            storage.remove(self._folder / str(number))
        self._damaged = []

    def _is_first(self, number: int) -> bool:
        try:
            return json.loads((self._folder / str(number) / _PLACE).read_bytes())["step"] == 0
        except (OSError, ValueError):
            return False  # damaged: it goes with the others

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]


def restore(
    model: keras.Model,
    place: Place,
    state: State,
    strategy: tf.distribute.Strategy | None = None,
) -> None:
    """Assigns a checkpoint's state to a model that is compiled and built for its place's phase.

    Args:
        strategy: the one that the model was built for.

    Raises:
        tfbp.UserError: the variables are not those that were saved.
    """
    targets = variables(model, place.step)
    dtypes = [np.dtype(tf.as_dtype(variable.dtype).as_numpy_dtype) for variable in targets]
    due = {
        i: (tuple(variable.shape), dtype.itemsize)
        for i, (variable, dtype) in enumerate(zip(targets, dtypes, strict=True))
    }
    if due != {i: (value.shape, value.itemsize) for i, value in state.variables.items()}:
        raise UserError(
            "The checkpoint was made by another model: its variables have other shapes. "
            "Give another work directory."
        )
    for i, (variable, dtype) in enumerate(zip(targets, dtypes, strict=True)):
        variable.assign(state.variables[i].view(dtype))  # of bfloat16 the file knows the bits only
    if not state.parts:
        return
    strategy = strategy or tf.distribute.get_strategy()
    first = workers.of(strategy).index * len(strategy.extended.worker_devices)
    for i, parts in state.parts.items():
        if len(parts) == strategy.num_replicas_in_sync:  # else the sum has been dealt out again
            local = strategy.experimental_local_results(targets[i].value)
            for own, value in zip(local, parts[first:], strict=False):
                own.assign(value)


def _parts(
    model: keras.Model, place: Place, strategy: tf.distribute.Strategy
) -> dict[int, np.ndarray]:
    """Returns what each replica keeps of the metrics: their sums do not tell, and dealt out in
    other parts they would be rounded otherwise.
    """
    if not place.step or strategy.num_replicas_in_sync == 1:
        return {}
    own = {id(variable) for variable in model.metrics_variables}
    return {
        i: workers.of(strategy).concatenate(
            np.stack(strategy.experimental_local_results(variable.value))
        )
        for i, variable in enumerate(variables(model, place.step))
        if id(variable) in own
    }


def _named(state: State) -> dict[str, np.ndarray]:
    """Returns the arrays of a state by the names that they have in a file."""
    groups = {
        "variables": state.variables,
        "parts": state.parts,
        "best": dict(enumerate(state.best)),
        "callbacks": dict(enumerate(state.callbacks)),
    }
    return {f"{group} {i}": each for group, found in groups.items() for i, each in found.items()}


def _state(file: pathlib.Path | io.BytesIO) -> State:
    groups: dict[str, dict[int, np.ndarray]] = {
        name: {} for name in ("variables", "parts", "best", "callbacks")
    }
    with np.load(file, allow_pickle=False) as arrays:
        for name in arrays.files:
            group, i = name.split()
            groups[group][int(i)] = arrays[name]
    best, callbacks = (tuple(groups[name].values()) for name in ("best", "callbacks"))
    return State(groups["variables"], groups["parts"], best, callbacks)


def _place(found: Mapping) -> Place:
    lists = {name: tuple(found[name]) for name in ("history", "phases")}
    return Place(**{**found, **lists})


def _finite(value: np.ndarray, infinite: bool) -> bool:
    if value.dtype.kind == "V":  # NumPy knows no bfloat16
        value = value.astype(np.float32)
    return not np.isnan(value).any() if infinite else bool(np.isfinite(value).all())
