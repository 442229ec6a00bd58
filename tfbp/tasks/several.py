"""Several outputs, with a task for each.

    tfbp.Tasks({"species": tfbp.Classification(names), "size": tfbp.Regression()})

y and what the model answers are dicts of the same names.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import images
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError, mistake
from tfbp.modeling import keras_graph
from tfbp.tasks import class_names, classification, inputs, measures, sample_outputs
from tfbp.tasks.language import LanguageModel
from tfbp.tasks.task import Signature, Task

# Between an output's name and what one of its examples is measured by.
_OF = "/"


class Tasks:
    """A task for each output: the loss is the weighted sum of theirs.

    Metrics and results are called as Keras calls them, `species_loss`, `species_accuracy`, and so
    are what signatures answer, `species_class`, and the files that an export carries. While they
    train, Keras takes the loss of each output as a mean over batches, whatever their sizes; `loss`,
    and all results, are means over examples.

    Args:
        tasks: name of the output → its task. The model answers a dict of these names, and y is one.
        loss_weights: name → factor of its loss in the sum, at least 0; 1 for one that is not named.
        largest_image: height and width that an image file may have for an export to decode it, in
            pixels.

    Raises:
        tfbp.UserError: no tasks, a language model among them, or a weight that is negative or for
            an unknown output.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        loss_weights: Mapping[str, float] | None = None,
        largest_image: int = images.LARGEST,
    ):
        if not isinstance(tasks, Mapping) or not tasks:
            raise mistake("tasks", "must be a dict: name of an output → its task", tasks)
        for name, task in tasks.items():
            if isinstance(task, LanguageModel | Tasks) or not hasattr(task, "per_example"):
                rule = f"must have a task for one output as {name!r}"
                raise mistake("tasks", rule, type(task).__name__)
        if not isinstance(loss_weights, Mapping | None):
            raise mistake("loss_weights", "must be name of an output → number", loss_weights)
        weights = dict(loss_weights or {})
        for name, weight in weights.items():
            if name not in tasks:
                raise mistake("loss_weights", "must be for the outputs", name, tasks)
            class_names.check_factor("loss_weights", name, weight, zero=True)
        self.tasks = dict(tasks)
        self.loss_weights = {name: float(weights.get(name, 1.0)) for name in tasks}
        self.largest_image = largest_image

    def loss(self) -> keras.losses.Loss:
        """Returns the weighted sum of the tasks' losses."""
        losses = {name: task.loss() for name, task in self.tasks.items()}
        return WeightedSum(losses, self.loss_weights)

    def class_weights_for(self, examples: Examples) -> dict[str, np.ndarray | None] | None:
        """Returns the class weights of each task, by name; None: all weigh the same."""
        weights = {
            name: task.class_weights_for(examples.with_target(name))
            for name, task in self.tasks.items()
        }
        return None if all(each is None for each in weights.values()) else weights

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns the metrics of all tasks, in their order."""
        return [metric for task in self.tasks.values() for metric in task.metrics()]

    def check(self, model: keras.Model, examples: Examples) -> None:
        """Refuses y or outputs of other names, and what one of the tasks refuses.

        Raises:
            tfbp.UserError: says what does not fit.
        """
        self.check_names(examples)
        for name, task in self.tasks.items():
            try:
                task.check(Output(model, name), examples.with_target(name))
            except UserError as error:
                raise UserError(f"Of the output {name!r}: {error}") from error

    def check_names(self, examples: Examples) -> None:
        """Refuses examples whose y is no dict of the tasks' names.

        Raises:
            tfbp.UserError: lists both.
        """
        targets = examples.targets
        received = sorted(targets) if isinstance(targets, dict) else "one array"
        if received != sorted(self.tasks):
            rule = f"must be a dict of what there are tasks for: {', '.join(sorted(self.tasks))}"
            raise mistake("y", rule, received)

    def per_example(self, x: Any, y: Any, outputs: Any) -> dict[str, tf.Tensor]:
        """Computes what each task does, as `name/…`."""
        return {
            name + _OF + measure: value
            for name, task in self.tasks.items()
            for measure, value in task.per_example(x, y[name], outputs[name]).items()
        }

    def evaluate(self, per_example: dict[str, np.ndarray], examples: Examples) -> dict:
        """Returns `loss`, the weighted sum, and the results of each task as `name_…`."""
        results: dict[str, Any] = {"loss": 0.0}
        for name, task in self.tasks.items():
            own = {
                measure.removeprefix(name + _OF): values
                for measure, values in per_example.items()
                if measure.startswith(name + _OF)
            }
            found = task.evaluate(own, examples.with_target(name))
            results["loss"] += self.loss_weights[name] * found["loss"]
            results |= {f"{name}_{measure}": value for measure, value in found.items()}
        return results

    def signatures(self, model: keras.Model, examples: Examples) -> dict[str, Signature]:
        """Returns `serving_default`, and for images `image_bytes`.

        They take what `tfbp.tasks.inputs.of` says, arrays as `features`, and answer what the
        default signature of each task answers, `class` as `species_class`. For an image file that
        is no good strings are "", and numbers NaN, or 0 if they are whole.
        """
        answers = sample_outputs.outputs(model, examples)
        functions = {
            name: _reading(task, examples.with_target(name), answers[name])
            for name, task in self.tasks.items()
        }

        def answer(x: Any) -> dict[str, tf.Tensor]:
            outputs = model(x, training=False)
            return {
                inputs.identifiers([f"{name}_{part}"])[0]: value
                for name, function in functions.items()
                for part, value in function(outputs[name]).items()
            }

        taken = inputs.of(examples, array="features", largest_image=self.largest_image, model=model)
        return inputs.signatures(taken, answer, examples, bad=math.nan)

    def assets(self) -> dict[str, str]:
        """Returns the files of each task: `species_labels.txt`."""
        return {
            f"{name}_{file}": text
            for name, task in self.tasks.items()
            for file, text in task.assets().items()
        }


class WeightedSum(keras.losses.Loss):
    """The weighted sum of losses, of dicts of targets and outputs.

    Args:
        losses: name → loss.
        weights: name → its factor.
    """

    def __init__(self, losses: Mapping[str, keras.losses.Loss], weights: Mapping[str, float]):
        super().__init__(name="weighted_sum")
        self.losses, self.weights = dict(losses), dict(weights)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        total = 0.0
        for name, loss in self.losses.items():
            weight = sample_weight[name] if isinstance(sample_weight, dict) else sample_weight
            total += self.weights[name] * loss(y_true[name], y_pred[name], weight)
        return total


def compiled(loss: keras.losses.Loss) -> dict[str, Any]:
    """Returns the arguments by which `keras.Model.compile` takes a task's loss."""
    if isinstance(loss, WeightedSum):
        return {"loss": loss.losses, "loss_weights": loss.weights}
    return {"loss": loss}


def measured(task: Task) -> dict[str, Any]:
    """Returns the arguments by which `keras.Model.compile` takes a task."""
    metrics: Any = task.metrics()
    if isinstance(task, Tasks):
        metrics = {name: each.metrics() for name, each in task.tasks.items()}
    return compiled(task.loss()) | {"metrics": metrics}


def named_metrics(task: Task) -> dict[str, keras.metrics.Metric]:
    """Returns the metrics of a task by the names that their results have."""
    named = {}
    for part in parts(task):
        for metric in part.task.metrics():
            measures.made_of(metric)  # which says what else it is
            named[f"{part.name}_{metric.name}" if part.name else metric.name] = metric
    return named


@dataclasses.dataclass(frozen=True)
class Part:
    """A task for one output, and what it has to do with; of a task alone all there is.

    Attributes:
        name: of the output; "": there is but one.
    """

    name: str
    task: Task

    def model(self, model: keras.Model) -> Any:
        return Output(model, self.name) if self.name else model

    def splits(self, splits: Splits) -> Splits:
        if not self.name:
            return splits
        of_each = splits.classes or {}
        views = {name: each.with_target(self.name) for name, each in splits.parts().items()}
        return Splits(
            views["train"],
            views.get("validation"),
            views.get("test"),
            classes=of_each.get(self.name),
            description=splits.description,
        )


def parts(task: Task) -> Iterator[Part]:
    """Yields the task for each output, or the task itself where it is for one."""
    if isinstance(task, Tasks):
        for name, each in task.tasks.items():
            yield Part(name, each)
    else:
        yield Part("", task)


class Output:
    """A model with one of its outputs alone."""

    def __init__(self, model: keras.Model, name: str):
        self._model, self._name = model, name

    def __call__(self, x: Any, training: bool = False) -> Any:
        return self._model(x, training=training)[self._name]

    def compute_output_spec(self, x: Any) -> Any:
        return self._model.compute_output_spec(x)[self._name]

    @property
    def outputs(self) -> list[keras.KerasTensor]:
        graph = keras_graph.graph_of(self._model)
        if graph is None:
            raise AttributeError("outputs")
        return [keras_graph.graph_ends(graph)["outputs"][self._name]]

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        return tuple(self.outputs[0].shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def suited(task: Task, model: keras.Model) -> Task:
    """Returns a task as it suits a model, each of several: see `classification.suited`."""
    if not isinstance(task, Tasks):
        return classification.suited(task, model)
    task = copy.copy(task)
    if _answers(model, task.tasks):
        task.tasks = {
            name: classification.suited(each, Output(model, name))
            for name, each in task.tasks.items()
        }
    return task


def _answers(model: keras.Model, names: Mapping[str, Task]) -> bool:
    """Tells whether a model's graph says that it answers some names."""
    graph = keras_graph.graph_of(model)
    outputs = keras_graph.graph_ends(graph)["outputs"] if graph else None
    return isinstance(outputs, dict) and outputs.keys() == names.keys()


def _reading(
    task: Task, examples: Examples, answer: np.ndarray
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns the graph function from one output to what a task's default signature answers.

    Args:
        answer: of the model for a few examples, [n, …].
    """
    # Given outputs for examples, and for the model what hands them on, that is the signature's.
    spec = tf.TensorSpec(answer.shape[1:], answer.dtype)
    handed_on = examples.mapped(lambda x: x, spec)
    signatures = task.signatures(lambda x, training=False: x, handed_on)
    signature = next(iter(signatures.values()))
    (name,) = signature.inputs
    return lambda outputs: signature.function(**{name: outputs})
