"""The state of a run at a point from which it can go on, as a folder that is whole or not there.

It holds every variable that the rest of the run depends on (weights, statistics, random seeds and,
inside a phase, optimizer and metrics) by its position, so that auto-generated names do not matter,
the weights that early stopping may put back, and the place in the run: phase, steps done, history.
"""

import dataclasses
import io
import json
import pathlib
import shutil
import time
from collections.abc import Sequence

import keras
import numpy as np
from absl import logging

from tfbp import fingerprint, storage
from tfbp.errors import UserError

KEPT = 2
# The arrays of a checkpoint: those of the variables, and those of the best epoch's weights.
State = dict[str, list[np.ndarray]]
VARIABLES, BEST = "variables", "best"


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
    """

    phase: int = 0
    step: int = 0
    history: tuple[dict, ...] = ()
    phases: tuple[dict, ...] = ()
    before: dict | None = None
    early_stopping: dict | None = None


def variables(model: keras.Model, step: int) -> list[keras.Variable]:
    """Returns what a run goes on with: before the first step of a phase, the model's variables;
    inside a phase its optimizer's and its metrics' too.
    """
    every = list(model.variables)
    if step:
        every += [*model.optimizer.variables, *model.metrics_variables]
    return list({id(variable): variable for variable in every}.values())


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
        folder: holds a folder for each checkpoint, numbered from 1.
        seconds: least time between two checkpoints inside a phase.
    """

    def __init__(self, folder: pathlib.Path, seconds: float = 60.0):
        self._folder = folder
        self._seconds = seconds
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Tells whether the last checkpoint is old enough for the next."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, model: keras.Model, place: Place, best: Sequence[np.ndarray] = ()) -> None:
        """Writes a checkpoint and removes all but the newest ones.

        Args:
            best: the best epoch's weights, where the phase may stop early.
        """
        numbers = self._numbers()
        with storage.publish(self._folder / str(max(numbers, default=0) + 1)) as folder:
            buffer = io.BytesIO()
            arrays = {VARIABLES: variables(model, place.step), BEST: best}
            named = {
                f"{k} {i}": np.asarray(v) for k, vs in arrays.items() for i, v in enumerate(vs)
            }
            np.savez(buffer, **named)
            state = buffer.getvalue()
            text = json.dumps(dataclasses.asdict(place)).encode()
            (folder / "state.npz").write_bytes(state)
            (folder / "place.json").write_bytes(text)
            (folder / "sha256").write_text(fingerprint.of_bytes(state, text))
        for number in sorted(numbers)[: -(KEPT - 1)]:
            shutil.rmtree(self._folder / str(number))
        self._saved = time.monotonic()

    def newest(self) -> tuple[Place, State] | None:
        """Returns the newest whole checkpoint, or None; damaged ones are passed over and logged."""
        for number in sorted(self._numbers(), reverse=True):
            folder = self._folder / str(number)
            try:
                state = (folder / "state.npz").read_bytes()
                text = (folder / "place.json").read_bytes()
                if (folder / "sha256").read_text() != fingerprint.of_bytes(state, text):
                    raise ValueError("its contents do not have the hash that was written")
            except (OSError, ValueError) as error:
                logging.warning(
                    "Checkpoint %s is damaged (%s): the one before is used.", folder, error
                )
                continue
            with np.load(io.BytesIO(state), allow_pickle=False) as arrays:
                found = {VARIABLES: [], BEST: []}
                for name in arrays.files:  # in the order in which they were saved
                    found[name.split()[0]].append(arrays[name])
            place = json.loads(text)
            history, phases = tuple(place.pop("history")), tuple(place.pop("phases"))
            return Place(**place, history=history, phases=phases), found
        return None

    def clear(self) -> None:
        """Removes all checkpoints: the run has ended."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]


def restore(model: keras.Model, place: Place, state: State) -> None:
    """Assigns a checkpoint's state to a model that is compiled and built for its place's phase.

    Raises:
        tfbp.UserError: the variables are not those that were saved.
    """
    targets = variables(model, place.step)
    shapes = [tuple(variable.shape) for variable in targets]
    if shapes != [value.shape for value in state[VARIABLES]]:
        raise UserError(
            "The checkpoint was made by another model: its variables have other shapes. "
            "Give another work directory."
        )
    for variable, value in zip(targets, state[VARIABLES], strict=True):
        variable.assign(value)
