"""The loss and the metrics of a task: as they are given, and what they come to over examples."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tfbp import fingerprint
from tfbp.errors import UserError, mistake, reason

# As it is given: an object, its name in Keras, or its config.
LossLike: TypeAlias = keras.losses.Loss | str | Mapping[str, Any]
MetricLike: TypeAlias = keras.metrics.Metric | str | Mapping[str, Any]

# Beside what else a task computes of each example, where metrics need them.
_TARGET, _OUTPUT = "metrics of y", "metrics of outputs"
# Examples that metrics are shown at once.
_ROWS = 4096
# For what fails in TensorFlow where y is a label and there are several answers.
_ONE_SHAPE = (
    "it compares targets and answers of one shape. Of two classes, AUC, precision and recall go "
    "with a model of one logit."
)
_MEAN = "sum_over_batch_size"
_OF_VALUES = (keras.metrics.Mean.update_state, keras.metrics.Sum.update_state)


def loss_of(given: LossLike | None) -> keras.losses.Loss | None:
    """Returns a loss as an object; None: none is given.

    Raises:
        tfbp.UserError: it is no loss, or does not take the mean over a batch.
    """
    if given is None or isinstance(given, keras.losses.Loss):
        loss = given
    elif isinstance(given, str):
        loss = _by_name("loss", given, keras.losses, keras.losses.Loss)
    elif isinstance(given, Mapping):
        loss = _from_config("loss", given, keras.losses, keras.losses.Loss)
    else:
        rule = "must be a keras.losses.Loss, its name or its config; a function becomes one as the "
        raise mistake("loss", rule + "`call` of a class of your own", given)
    if loss is not None:
        check_reduction(loss)
    return loss


def check_reduction(loss: keras.losses.Loss) -> None:
    """Refuses a loss that is not the mean over a batch, as the loop and the results take it.

    Raises:
        tfbp.UserError: it is reduced otherwise.
    """
    if loss.reduction != _MEAN:
        rule = f"must have the reduction {_MEAN!r}, the mean over a batch"
        raise mistake("loss", rule, loss.reduction)


def metrics_of(
    given: Sequence[MetricLike],
    own: Sequence[keras.metrics.Metric],
    results: Sequence[str] = (),
) -> tuple[keras.metrics.Metric, ...]:
    """Returns metrics as objects, each with a name of its own.

    Args:
        own: those that the task has beside them.
        results: what else the task's results are called.

    Raises:
        tfbp.UserError: one is no metric, cannot be made anew from its config, or has a name that
            is taken.
    """
    if isinstance(given, (str, Mapping, keras.metrics.Metric)):
        raise mistake("metrics", "must be a list of metrics", given)
    metrics = tuple(_metric(each) for each in given)
    taken = ["loss", "report", *(metric.name for metric in own), *results]
    for metric in metrics:
        if metric.name in taken:
            rule = "must have names that differ, from the task's own too: give it `name=…`"
            raise mistake("metrics", rule, metric.name)
        taken.append(metric.name)
    return metrics


def _metric(given: MetricLike) -> keras.metrics.Metric:
    if isinstance(given, str):
        given = _by_name("metrics", given, keras.metrics, keras.metrics.Metric)
    elif isinstance(given, Mapping):
        given = _from_config("metrics", given, keras.metrics, keras.metrics.Metric)
    if not isinstance(given, keras.metrics.Metric):
        raise mistake("metrics", "must be keras.metrics.Metric, their names or configs", given)
    try:
        same = made_of(anew(given)) == made_of(given)
    except (TypeError, ValueError) as error:
        rule = f"must be made anew by `from_config(get_config())` ({reason(error)})"
        raise mistake("metrics", rule, type(given).__name__) from error
    if not same:
        rule = "must give all that they are made of in `get_config()`"
        raise mistake("metrics", rule, type(given).__name__)
    return given


def anew(metric: keras.metrics.Metric) -> keras.metrics.Metric:
    """Returns a metric that is made like another, and has counted nothing.

    A name that Keras has numbered (`auc_3` for the fourth one of a process) loses the number: the
    same program would find another name, and a run that goes on another run.
    """
    config = metric.get_config()
    stem = re.sub(r"_\d+$", "", metric.name)
    if _plain(stem) == _plain(type(metric).__name__):
        config = config | {"name": stem}
    return type(metric).from_config(config)


def made_of(thing: keras.losses.Loss | keras.metrics.Metric) -> dict[str, Any]:
    """Returns what a loss or metric is made of, as a JSON value: its class, and its settings.

    Keras's own config is not enough: that of keras.losses.Huber leaves `delta` out. Names are left
    out: those of metrics are numbered, see `anew`.

    Raises:
        tfbp.UserError: it is neither.
    """
    if not isinstance(thing, (keras.losses.Loss, keras.metrics.Metric)):
        rule = "must return objects of keras.losses and keras.metrics from `loss` and `metrics`"
        raise mistake("task", rule, thing)
    attributes = {name.lstrip("_"): value for name, value in vars(thing).items()}
    settings = thing.get_config() | attributes
    settings |= settings.pop("fn_kwargs", {})
    for passing in ("name", "built", "build_input_shape"):
        settings.pop(passing, None)
    return {"class": type(thing).__name__, **_json(settings)}


def _json(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(each) for each in value]
    if isinstance(value, (np.ndarray, np.generic, tf.Tensor)):
        return fingerprint.of_array(np.asarray(value))
    if isinstance(value, (keras.losses.Loss, keras.metrics.Metric)):
        return made_of(value)
    return getattr(value, "__name__", type(value).__name__)  # functions


def each(loss: keras.losses.Loss, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Computes the loss of each example, float32 [batch]: the mean over what else it has."""
    # Called as Keras does, without the mean. A copy without it would lose settings that the config
    # lacks: keras.losses.Huber's `delta`.
    values = loss.call(tf.cast(y, loss.dtype), tf.cast(outputs, loss.dtype))
    values = tf.cast(values, tf.float32)
    if values.shape.rank == 0:
        raise UserError(
            f"`loss` must give a value for each example, [batch, …]. {loss.name!r} gives one for "
            "them all: leave the mean over the batch to Keras."
        )
    if values.shape.rank == 1:
        return values
    return tf.reduce_mean(tf.reshape(values, [tf.shape(values)[0], -1]), axis=1)


def others(
    metrics: Sequence[keras.metrics.Metric], own: Sequence[keras.metrics.Metric]
) -> list[keras.metrics.Metric]:
    """Returns those metrics that are not of the task's own, which it computes by itself."""
    known = [(made_of(metric), metric.name) for metric in own]
    return [metric for metric in metrics if (made_of(metric), metric.name) not in known]


def kept(y: tf.Tensor, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns what `values` needs of each example."""
    return {_TARGET: y, _OUTPUT: tf.cast(outputs, tf.float32)}


def values(
    metrics: Sequence[keras.metrics.Metric], per_example: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Returns name → result of metrics over all examples."""
    results = {}
    for metric in metrics:
        metric.reset_state()  # a subclass may keep those that it returns
        y, outputs = per_example[_TARGET], per_example[_OUTPUT]
        for start in range(0, len(y), _ROWS):
            metric.update_state(y[start : start + _ROWS], outputs[start : start + _ROWS])
        results[metric.name] = float(metric.result())
    return results


def check(
    loss: keras.losses.Loss,
    metrics: Sequence[keras.metrics.Metric],
    y: np.ndarray,
    outputs: np.ndarray,
) -> None:
    """Refuses a loss and metrics that do not take a few targets and outputs.

    Raises:
        tfbp.UserError: says what one of them answers.
    """
    made_of(loss)
    check_reduction(loss)
    _take(each, (loss,), y, outputs, f"`loss` must take {_shown(y, outputs)}. {loss.name!r} says:")
    for metric in metrics:
        made_of(metric)
        if type(metric).update_state in _OF_VALUES:
            rule = "must take targets and answers, and this one takes values alone"
            raise mistake("metrics", rule, metric.name)
        rule = f"`metrics` must take {_shown(y, outputs)}. {metric.name!r} says:"
        _take(type(metric).update_state, (metric,), y, outputs, rule)
        result = metric.result()
        if isinstance(result, Mapping) or np.ndim(result):
            rule = f"must each give one number, and {metric.name!r} gives more"
            raise mistake("metrics", rule, np.shape(result))


def _take(
    function: Callable[..., Any], first: tuple, y: np.ndarray, outputs: np.ndarray, rule: str
) -> None:
    # Twice: [n] against [n, k] broadcasts where n is k by chance.
    for size in {len(y), max(1, len(y) - 1)}:
        try:
            function(*first, tf.constant(y[:size]), tf.constant(outputs[:size]))
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            if isinstance(error, UserError):
                raise
            failed = isinstance(error, tf.errors.OpError) or "segment_ids" in str(error)
            said = _ONE_SHAPE if failed and y.ndim == 1 < outputs.ndim else reason(error)
            raise UserError(f"{rule} {said}") from error


def _shown(y: np.ndarray, outputs: np.ndarray) -> str:
    return f"targets of {y.dtype} {list(y.shape[1:])} and answers of {list(outputs.shape[1:])}"


def _by_name(argument: str, name: str, module: Any, kind: type) -> Any:
    """Returns a new one of the class that a name means; a function stands for its class."""
    classes = {
        _plain(found): made
        for found, made in vars(module).items()
        if isinstance(made, type) and issubclass(made, kind) and made is not kind
    }
    try:
        found = module.get(name)
    except ValueError:
        found = None
    except TypeError as error:
        rule = f"must be an object where it needs settings ({error})"
        raise mistake(argument, rule, name) from error
    if isinstance(found, kind):
        return found
    made = classes.get(_plain(getattr(found, "__name__", name)))
    if made is None:
        known = sorted(each.__name__ for each in classes.values())
        raise mistake(argument, f"must be called as in {module.__name__}", name, known)
    return made()


def _from_config(argument: str, config: Mapping[str, Any], module: Any, kind: type) -> Any:
    why = "no such class"
    try:
        found = module.deserialize(dict(config))
        if isinstance(found, kind):
            return found
    except (TypeError, ValueError, KeyError) as error:
        why = reason(error)
    raise mistake(argument, f"must be a config as of {module.__name__} ({why})", config)


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
