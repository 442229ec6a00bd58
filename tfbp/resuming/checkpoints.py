"""The checkpoints of a run, each in a folder that is whole or does not exist.

A phase's first checkpoint, at step 0, holds all variables of the model and is kept until the run
ends. Later ones leave out what the phase does not change, and name the first one by the fingerprint
of its manifest.
"""

import concurrent.futures
import dataclasses
import io
import json
import pathlib
import time
import types
from collections.abc import Callable, Container, Iterable, Sequence
from typing import IO, Any, Self

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfbp import fingerprint, storage
from tfbp.resuming import state as run_state
from tfbp.resuming.state import Position, State
from tfbp.workers import workers

# Newest checkpoints that are kept, besides the first one of each phase.
KEPT = 2
# The names of older versions, whose checkpoints are read too.
_STATE, _POSITION = "state.npz", "place.json"


class Checkpoints:
    """The checkpoints of one run, in one folder, written by a thread of their own.

    As a context manager it waits for that thread; what the thread raised is raised again there, or
    at an earlier call. All workers take part in saving and reading; only the chief uses the folder.

    Args:
        folder: holds a folder for each checkpoint, numbered from 1.
        seconds: least time between two checkpoints inside a phase.
        strategy: the one that the model was built for.
        clock: returns seconds.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        seconds: float = 60.0,
        strategy: tf.distribute.Strategy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._folder = folder
        self._seconds = seconds
        self._strategy = strategy or tf.distribute.get_strategy()
        self._workers = workers.of(self._strategy)
        self._clock = clock
        self._saved = clock()
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: concurrent.futures.Future | None = None
        self._first: dict | None = None  # number and manifest of the phase's first checkpoint
        self._damaged: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._writer.shutdown()
        if kind is None:
            self.wait()
        elif self._writing and (also := self._writing.exception()):
            logging.warning("The last checkpoint could not be written. %s", also)

    def due(self) -> bool:
        """Whether the last checkpoint is written, and old enough for the next. Only the chief
        decides; on other workers it is never due.
        """
        if not self._workers.is_chief or (self._writing and not self._writing.done()):
            return False
        self.wait()
        return self._clock() - self._saved >= self._seconds

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
        position: Position,
        *,
        fixed: Iterable[keras.Variable] = (),
        best: Sequence[np.ndarray] = (),
        callbacks: Sequence[np.ndarray] = (),
    ) -> None:
        """Copies the state of a run, to be written while the run goes on.

        Inside a phase a state that is not finite is not written, only warned of. After the writing
        all but the newest two and the phases' first checkpoints are removed.

        Args:
            fixed: the weights that the phase does not change. A checkpoint inside the phase leaves
                them out if the phase has a first one.
            best: the best epoch's weights, if the phase may stop early; they are not copied.
            callbacks: the arrays that belong to `position.callbacks`; they are not copied.

        Raises:
            tfbp.UserError: the previous checkpoint could not be written.
        """
        self.wait()
        self._saved = self._clock()
        left_out = {id(variable) for variable in fixed if position.step and self._first}
        targets = run_state.variables(model, position.step)
        copies = {
            i: np.asarray(variable)  # a copy: TensorFlow's arrays are never views
            for i, variable in enumerate(targets)
            if id(variable) not in left_out
        }
        parts = run_state.parts(model, position, self._strategy)
        if not self._workers.is_chief:
            return
        state = State(copies, parts, tuple(best), tuple(callbacks))
        first = self._first if left_out else None
        not_trainable = {id(variable) for variable in model.non_trainable_variables}
        constant = {i for i, each in enumerate(targets) if id(each) in not_trainable}
        self._writing = self._writer.submit(self._write, position, state, first, constant)

    def newest(self) -> tuple[Position, State] | None:
        """Returns the newest whole checkpoint, or None; damaged ones are logged and skipped."""
        newest = self._newest() if self._workers.is_chief else None
        if self._workers.count == 1:
            return newest
        text, file = b"", io.BytesIO()
        if newest:
            position, state = newest
            text = json.dumps(dataclasses.asdict(position)).encode()
            _write_arrays(file, state)
        text = self._workers.from_chief(text)
        arrays = io.BytesIO(self._workers.from_chief(file.getvalue()))
        if not text:
            return None
        return run_state.position_of(json.loads(text)), run_state.of_arrays(arrays)

    def _newest(self) -> tuple[Position, State] | None:
        self.wait()
        self._damaged = []
        for number in sorted(self._numbers(), reverse=True):
            try:
                position, state, first = self._read(number)
            except storage.Damaged as error:
                logging.warning(
                    "Checkpoint %s is damaged: the one before is used. %s",
                    self._folder / str(number),
                    error,
                )
                self._damaged.append(number)
                continue
            self._first = first if position.step else self._name(number)
            return position, state
        if self._damaged:
            logging.warning("No checkpoint in %s is whole: the run begins anew.", self._folder)
        return None

    def clear(self) -> None:
        """Removes all checkpoints: the run has ended."""
        storage.remove(self._folder)

    def _write(
        self, position: Position, state: State, first: dict | None, constant: Container[int]
    ) -> None:
        if position.step and not state.finite(constant):
            logging.warning(
                "At step %d of the phase weights, optimizer or metrics are not finite: no "
                "checkpoint is written.",
                position.step,
            )
            return
        text = json.dumps({"first": first, **dataclasses.asdict(position)}).encode()
        number = max(self._numbers(), default=0) + 1
        needed = len(text) + sum(array.nbytes for array in run_state.arrays(state).values())
        storage.sweep(self._folder)
        with storage.publish(self._folder / str(number), manifest=True, needed=needed) as folder:
            (folder / _POSITION).write_bytes(text)
            with open(folder / _STATE, "wb") as file:
                _write_arrays(file, state)
        if not position.step:
            self._first = self._name(number)
        self._prune()

    def _read(self, number: int) -> tuple[Position, State, dict | None]:
        """Returns a checkpoint, completed from its phase's first one, and the name of that.

        Raises:
            tfbp.storage.Damaged: it or its phase's first checkpoint is damaged, or that is another.
        """
        folder = self._folder / str(number)
        storage.verify(folder)
        content = json.loads((folder / _POSITION).read_bytes())
        first = content.pop("first")
        state = run_state.of_arrays(folder / _STATE)
        if first:
            _, whole, _ = self._read(first["number"])
            if first != self._name(first["number"]):
                raise storage.Damaged(f"{folder} belongs to another first checkpoint.")
            state = dataclasses.replace(state, variables=whole.variables | state.variables)
        return run_state.position_of(content), state, first

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
            return json.loads((self._folder / str(number) / _POSITION).read_bytes())["step"] == 0
        except (OSError, ValueError):
            return False  # damaged: it is removed with the others

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]


def _write_arrays(file: IO[bytes], state: State) -> None:
    arrays: dict[str, Any] = run_state.arrays(state)
    np.savez(file, **arrays)
