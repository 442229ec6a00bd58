"""The state of a run at a point from which it can go on.

It is every variable that the rest of the run depends on (weights, statistics, random seeds and,
inside a phase, optimizer and metrics) by its position, so that auto-generated names do not matter,
the weights that early stopping may put back, what callbacks remember, and the place in the run:
phase, steps done, history.
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
    every = [*model.variables, keras_graph.global_seed()]
    if step:
        every += [*model.optimizer.variables, *model.metrics_variables]
    return list({id(variable): variable for variable in every}.values())


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
    replicas, its = strategy.num_replicas_in_sync, workers.of(strategy)
    first = its.index * (replicas // its.count)
    for i, parts in state.parts.items():
        if len(parts) == replicas:  # else the sum has been dealt out again
            local = strategy.experimental_local_results(targets[i].value)
            for own, value in zip(local, parts[first:], strict=False):
                own.assign(value)


def parts(
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


def arrays(state: State) -> dict[str, np.ndarray]:
    """Returns the arrays of a state by the names that they have in a file."""
    groups = {
        "variables": state.variables,
        "parts": state.parts,
        "best": dict(enumerate(state.best)),
        "callbacks": dict(enumerate(state.callbacks)),
    }
    return {f"{group} {i}": each for group, found in groups.items() for i, each in found.items()}


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


def place_of(found: Mapping) -> Place:
    """Returns the place that `dataclasses.asdict` has made a JSON value of."""
    lists = {name: tuple(found[name]) for name in ("history", "phases")}
    return Place(**{**found, **lists})


def _finite(value: np.ndarray, infinite: bool) -> bool:
    if value.dtype.kind == "V":  # NumPy knows no bfloat16
        value = value.astype(np.float32)
    return not np.isnan(value).any() if infinite else bool(np.isfinite(value).all())
