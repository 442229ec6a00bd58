"""The checkpoints of a run: its state, each in a folder that is whole or not there.

A phase's first checkpoint, at step 0, holds all the model's variables, and is kept until the run
ends. Those after it leave out what the phase does not change, and name the first one by the
fingerprint of its manifest.
"""

import concurrent.futures
import dataclasses
import io
import json
import pathlib
import time
from collections.abc import Container, Iterable, Sequence
from typing import Self

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfbp import fingerprint, storage
from tfbp.resuming import state as run_state
from tfbp.resuming.state import Place, State
from tfbp.workers import workers

# Newest checkpoints that stay, besides the first one of each phase.
KEPT = 2
_STATE, _PLACE = "state.npz", "place.json"


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
        targets = run_state.variables(model, place.step)
        copies = {
            i: np.asarray(variable)  # a copy: TensorFlow's arrays are never views
            for i, variable in enumerate(targets)
            if id(variable) not in left_out
        }
        parts = run_state.parts(model, place, self._strategy)
        if not self._workers.is_chief:
            return
        state = State(copies, parts, tuple(best), tuple(callbacks))
        first = self._first if left_out else None
        constant = {id(variable) for variable in model.non_trainable_variables}
        constant = {i for i, each in enumerate(targets) if id(each) in constant}
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
            np.savez(arrays, **run_state.arrays(state))
        text, arrays = (self._workers.from_chief(each.getvalue()) for each in (text, arrays))
        return (
            (run_state.place_of(json.loads(text)), run_state.of_arrays(io.BytesIO(arrays)))
            if text
            else None
        )

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
        arrays = run_state.arrays(state)
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
        state = run_state.of_arrays(folder / _STATE)
        if first:
            _, whole, _ = self._read(first["number"])
            if first != self._name(first["number"]):
                raise storage.Damaged(f"{folder} belongs to another first checkpoint.")
            state = dataclasses.replace(state, variables=whole.variables | state.variables)
        return run_state.place_of(found), state, first

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
