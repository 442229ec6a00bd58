"""The state of a run at a point from which it can go on.

It is every variable that the rest of the run depends on (weights, statistics, random seeds and,
inside a phase, optimizer and metrics), by index, so that auto-generated names do not matter; the
weights that early stopping may restore; the state of callbacks; and the position in the run: phase,
steps done, history.
"""

import dataclasses
import io
import os
from collections.abc import Container, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfbp.errors import UserError
from tfbp.modeling import keras_graph
from tfbp.workers import workers


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        phase: index of the phase.
        step: steps of the phase that are done.
        history: one row per finished epoch, all phases.
        phases: the records of the finished phases.
        before: the fingerprints of the variables when the phase began, for its proof; None: not
            taken.
        early_stopping: inside a phase that may stop early, the state of its `EarlyStopping`.
        stopped: whether early stopping or a callback has ended the phase here.
        callbacks: the JSON value of `tfbp.resuming.callbacks.take`.
        gradients: inside a phase whose gradients are logged, the state of its `GradientFlow`.
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
        variables: their values, by index in the list that `variables` returns.
        parts: for variables of which each of several replicas keeps a part: [replicas, …].
        best: the weights of early stopping's best epoch.
        callbacks: the arrays of `tfbp.resuming.callbacks.take`.
    """

    variables: dict[int, np.ndarray]
    parts: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    best: Sequence[np.ndarray] = ()
    callbacks: Sequence[np.ndarray] = ()

    def finite(self, constant: Container[int]) -> bool:
        """Whether no variable holds a NaN or an infinity. At the indices `constant` infinities are
        allowed: a mask of them is no fault of the training.
        """
        return all(_finite(value, i in constant) for i, value in self.variables.items())


def variables(model: keras.Model, step: int) -> list[keras.Variable]:
    """Returns the variables that a run resumes from: the model's and Keras's own random seed;
    inside a phase, after its first step, the optimizer's and the metrics' too.
    """
    # Layers without a seed of their own draw from one generator of the whole process.
    every = [*model.variables, keras_graph.global_seed()]
    if step:
        every += [*model.optimizer.variables, *model.metrics_variables]
    return list({id(variable): variable for variable in every}.values())


def restore(
    model: keras.Model,
    position: Position,
    state: State,
    strategy: tf.distribute.Strategy | None = None,
) -> None:
    """Assigns a checkpoint's state to a model that is compiled and built for its phase.

    Args:
        strategy: the one that the model was built for.

    Raises:
        tfbp.UserError: the variables are not those that were saved.
    """
    targets = variables(model, position.step)
    dtypes = [np.dtype(tf.as_dtype(variable.dtype).as_numpy_dtype) for variable in targets]
    expected = {
        i: (tuple(variable.shape), dtype.itemsize)
        for i, (variable, dtype) in enumerate(zip(targets, dtypes, strict=True))
    }
    if expected != {i: (value.shape, value.itemsize) for i, value in state.variables.items()}:
        raise UserError(
            "The checkpoint was made by another model: its variables have other shapes. "
            "Give another work directory."
        )
    for i, (variable, dtype) in enumerate(zip(targets, dtypes, strict=True)):
        variable.assign(state.variables[i].view(dtype))  # the file holds the mere bits of bfloat16
    if not state.parts:
        return
    strategy = strategy or tf.distribute.get_strategy()
    replicas, group = strategy.num_replicas_in_sync, workers.of(strategy)
    first = group.index * (replicas // group.count)
    for i, parts in state.parts.items():
        if len(parts) == replicas:  # else `assign` has divided the sum among the replicas
            local = strategy.experimental_local_results(targets[i].value)
            for own, value in zip(local, parts[first:], strict=False):
                own.assign(value)


def parts(
    model: keras.Model, position: Position, strategy: tf.distribute.Strategy
) -> dict[int, np.ndarray]:
    """Returns each replica's part of the metrics: divided among the replicas in another way, the
    sums would be rounded differently.
    """
    if not position.step or strategy.num_replicas_in_sync == 1:
        return {}
    own = {id(variable) for variable in model.metrics_variables}
    return {
        i: workers.of(strategy).concatenate(
            np.stack(strategy.experimental_local_results(variable.value))
        )
        for i, variable in enumerate(variables(model, position.step))
        if id(variable) in own
    }


def arrays(state: State) -> dict[str, np.ndarray]:
    """Returns the arrays of a state by their names in a file."""
    groups = {
        "variables": state.variables,
        "parts": state.parts,
        "best": dict(enumerate(state.best)),
        "callbacks": dict(enumerate(state.callbacks)),
    }
    return {f"{group} {i}": each for group, values in groups.items() for i, each in values.items()}


def of_arrays(file: os.PathLike | io.BytesIO) -> State:
    """Returns the state whose arrays a `.npz` file holds."""
    groups: dict[str, dict[int, np.ndarray]] = {
        name: {} for name in ("variables", "parts", "best", "callbacks")
    }
    with np.load(file, allow_pickle=False) as loaded:
        for name in loaded.files:
            group, i = name.split()
            groups[group][int(i)] = loaded[name]
    best, callbacks = (tuple(groups[name].values()) for name in ("best", "callbacks"))
    return State(groups["variables"], groups["parts"], best, callbacks)


def position_of(value: Mapping) -> Position:
    """Returns the position whose `dataclasses.asdict` went through JSON."""
    tuples = {name: tuple(value[name]) for name in ("history", "phases")}
    return Position(**{**value, **tuples})


def _finite(value: np.ndarray, allow_infinite: bool) -> bool:
    if value.dtype.kind == "V":  # NumPy knows no bfloat16
        value = value.astype(np.float32)
    return not np.isnan(value).any() if allow_infinite else bool(np.isfinite(value).all())
