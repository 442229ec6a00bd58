"""Whether the loss reads the model's answers, and the targets, as what they are."""

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import structures, tags
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import mistake
from tfbp.finding import Finding, listed
from tfbp.modeling import keras_graph
from tfbp.tasks import sample_outputs, several
from tfbp.tasks.one_hot import OF_ROWS, OneHot
from tfbp.tasks.ordinal import RankCrossentropy
from tfbp.tasks.positive import PositiveWeighted
from tfbp.tasks.several import Tasks
from tfbp.tasks.task import Task

_OF_LABELS = (keras.losses.SparseCategoricalCrossentropy, OneHot)
_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_OF_UNITS = (*_BINARY, PositiveWeighted, RankCrossentropy)  # each logit of which is a decision


def findings(model: keras.Model, splits: Splits, task: Task) -> Iterator[Finding]:
    """Yields `loss-mismatch`: by the loss, the targets, and answers to a few examples.

    Raises:
        tfbp.UserError: the model does not take the examples, or has not one finite output for each
            task.
    """
    if isinstance(task, Tasks):
        task.check_names(splits.train)
        sample_outputs.outputs(model, splits.train)  # of the same names
    elif structures.is_nested(targets := splits.train.targets):
        names = ", ".join(structures.joined(path) for path in structures.leaves(targets))
        rule = "must be one array where there is one task. For a dict give `tfbp.Tasks({…})`"
        raise mistake("y", rule, f"{type(targets).__name__} of {names}")
    for part in several.parts(task):
        where = f"of the output {part.name!r}: " if part.name else ""
        messages = list(_messages(part.model(model), part.splits(splits), part.task))
        for message in messages:
            yield Finding("loss-mismatch", where + message)
        if not messages and (
            doubt := _doubt(part.model(model), part.splits(splits).train, part.task)
        ):
            yield Finding("loss-mismatch", where + doubt, warning=True)


def _messages(model: keras.Model, splits: Splits, task: Task) -> Iterator[str]:
    loss, examples = task.loss(), splits.train
    answer = sample_outputs.outputs(model, examples)
    if isinstance(loss, _OF_LABELS):
        shape = _of_labels(examples, answer)
    elif isinstance(loss, OF_ROWS):
        shape = _of_rows(examples, answer)
    else:
        shape = _of_values(examples, answer, loss)
    if shape:  # Answers of another shape say nothing more.
        messages = [shape]
    elif isinstance(loss, (*_OF_LABELS, *OF_ROWS)):
        messages = [
            _width(answer, splits, task),
            _names(splits, task),
            _scale(model, answer, loss),
        ]
    else:
        if isinstance(loss, _OF_UNITS):
            scale = _unit_scale(model, answer, loss)
        else:
            scale = _range(model, examples, loss)
        messages = [_names(splits, task), scale]
    yield from filter(None, messages)


def _names(splits: Splits, task: Task) -> str:
    # Rows of 0 and 1 may come as values, which have names too.
    theirs, ours = splits.classes or splits.train.values, getattr(task, "classes", None)
    # Classes that have but numbers may be named by the task.
    if not theirs or not ours or tuple(theirs) == tuple(map(str, range(len(theirs)))):
        return ""
    if tuple(theirs) == tuple(ours):
        return ""
    return (
        "`task` must name the classes as the examples do, in their order. Received: "
        f"{listed(ours)} against {listed(theirs)}. Give the task `splits.classes`."
    )


def _of_labels(examples: Examples, answer: np.ndarray) -> str:
    spec = examples.spec[1]
    if spec.dtype.is_integer and spec.shape.rank == answer.ndim - 2:
        return ""
    remedy = ""
    if _one_hot(examples.targets):
        remedy = " They are one-hot rows: give `targets.argmax(axis=-1)`."
    elif tags.are_rows(examples.targets):
        count = examples.targets.sum(axis=1)
        row = int(np.flatnonzero(count != 1)[0])
        remedy = (
            f" They are rows of 0 and 1, and {examples.name(row)} has {count[row]:g} labels: "
            "several are for `tfbp.MultiLabel`."
        )
    return (
        "`examples` must carry one label, a whole number, for each row of logits. "
        f"Received: {_shown(spec)} against answers of shape {list(answer.shape[1:])}.{remedy}"
    )


def _of_rows(examples: Examples, answer: np.ndarray) -> str:
    spec = examples.spec[1]
    if tuple(spec.shape) == answer.shape[1:]:
        return ""
    remedy = ""
    if spec.dtype.is_integer and spec.shape.rank == answer.ndim - 2:
        remedy = (
            " They are labels: the loss for them is keras.losses.SparseCategoricalCrossentropy."
        )
    return (
        "`examples` must carry a one-hot row, or probabilities, for each row of answers. "
        f"Received: {_shown(spec)} against answers of shape {list(answer.shape[1:])}.{remedy}"
    )


def _of_values(examples: Examples, answer: np.ndarray, loss: keras.losses.Loss) -> str:
    spec, got = examples.spec[1], answer.shape[1:]
    own = not type(loss).__module__.startswith("keras.")
    if tuple(spec.shape) == got:
        return ""
    if own and (spec.dtype.is_integer or spec.shape.rank == len(got)):
        return ""  # what a loss of somebody's own compares is its affair: quantiles of one value
    if isinstance(loss, _BINARY) and spec.dtype.is_integer and (*spec.shape, 1) == got:
        return ""  # Keras lines 0 or 1 up with a single answer
    if spec.dtype.is_integer:
        due = "0 or 1 for each label" if isinstance(loss, _BINARY) else "numbers to predict"
        return (
            f"`examples` must carry {due}, as floats, in the shape of the answers. "
            f"Received: {_shown(spec)} against answers of shape {list(got)}."
        )
    return (
        f"`model` must answer {list(spec.shape)} for each example, like the targets: [n] against "
        f"[n, 1] broadcasts to [n, n]. Received: an answer of shape {list(got)}."
    )


def _width(answer: np.ndarray, splits: Splits, task: Task) -> str:
    names = getattr(task, "classes", None) or splits.classes
    due = len(names) if names else splits.vocabulary and splits.vocabulary.size
    if due is None or answer.shape[-1] == due:
        return ""
    one = due == 2 and answer.shape[-1] == 1 and getattr(task, "logits", None) == 2
    more = " One logit of two classes is `Classification(…, logits=1)`." if one else ""
    return (
        f"`model` must answer one logit for each of the {due} classes. "
        f"Received: an answer of shape {list(answer.shape[1:])}.{more}"
    )


def _scale(model: keras.Model, answer: np.ndarray, loss: keras.losses.Loss) -> str:
    # Wide enough for float16; logits whose every row does this by accident are not to be expected.
    sums = answer.sum(axis=-1, dtype=np.float64)
    distributions = (answer >= 0).all() and np.allclose(sums, 1, atol=1e-2)
    if loss.from_logits and (distributions or _last_activation(model) in _SQUASHING):
        return (
            "`model` must answer logits, and its answers are probabilities. "
            "Leave the softmax of its last layer out: the loss and the export apply it."
        )
    if loss.from_logits:
        return _cut_off(model)
    if distributions:
        return ""
    return _unlike_probabilities(answer, " and do not sum to 1")


def _unit_scale(model: keras.Model, answer: np.ndarray, loss: keras.losses.Loss) -> str:
    if loss.from_logits and _last_activation(model) in _SQUASHING:
        return (
            "`model` must answer logits, and its answers are probabilities. "
            f"Leave the {_last_activation(model)} of its last layer out: the loss, which has "
            "`from_logits=True`, applies a sigmoid."
        )
    if loss.from_logits:
        return _cut_off(model)
    if ((answer >= 0) & (answer <= 1)).all():
        return ""
    return _unlike_probabilities(answer)


def _unlike_probabilities(answer: np.ndarray, more: str = "") -> str:
    return (
        "`model` must answer probabilities, since the loss has `from_logits=False`; its answers "
        f"range from {answer.min():.4g} to {answer.max():.4g}{more}. "
        "Give the loss `from_logits=True`."
    )


def _cut_off(model: keras.Model) -> str:
    name = _last_activation(model)
    if name not in _RANGES:
        return ""
    return (
        f"`model` must answer logits, which take any value. Leave the {name} of its last layer out."
    )


def _range(model: keras.Model, examples: Examples, loss: keras.losses.Loss) -> str:
    name = _last_activation(model)
    if name not in _RANGES or not type(loss).__module__.startswith("keras."):
        return ""
    least, most = _RANGES[name]
    low, high = examples.targets.min(), examples.targets.max()
    if least <= low and high <= most:
        return ""
    return (
        f"`model` must reach the targets, which are {low:.4g} to {high:.4g}. The {name} of its "
        f"last layer answers {least:g} to {most:g}: leave it out, or scale the targets."
    )


def _doubt(model: keras.Model, examples: Examples, task: Task) -> str:
    """Returns what is to be feared of answers that may be a sigmoid's, where no graph says so."""
    loss = task.loss()
    if not isinstance(loss, _OF_UNITS) or not loss.from_logits:
        return ""
    answer = sample_outputs.outputs(model, examples)
    if not ((answer > 0) & (answer < 1)).all():
        return ""
    return (
        "`model` must answer logits, and its answers to "
        f"{len(answer)} examples are all between 0 and 1, as those of a sigmoid. If it has one at "
        "its end, leave it out: the loss and the export apply it."
    )


_SQUASHING = ("softmax", "sigmoid", "hard_sigmoid")
# What functions at the end of a model answer.
_RANGES = {
    **dict.fromkeys(_SQUASHING, (0.0, 1.0)),
    **dict.fromkeys(("tanh", "hard_tanh", "softsign"), (-1.0, 1.0)),
    **dict.fromkeys(("relu", "softplus", "exponential"), (0.0, math.inf)),
    "relu6": (0.0, 6.0),
}


def _last_activation(model: keras.Model) -> str:
    """Returns the function that a model's output comes from; "" where its graph does not say."""
    operation: Any = model
    while isinstance(operation, keras.Model | several.Output):
        outputs = getattr(operation, "outputs", None) or [None]
        operation = keras_graph.producer(outputs[0])
    function = getattr(operation, "activation", None)
    return getattr(function, "__name__", type(operation).__name__.lower())


def _one_hot(targets: np.ndarray) -> bool:
    binary = np.isin(targets, (0, 1)).all()
    return bool(targets.ndim > 1 and binary and (targets.sum(axis=-1) == 1).all())


def _shown(spec: tf.TensorSpec) -> str:
    return f"targets of {spec.dtype.name} {list(spec.shape)}"
