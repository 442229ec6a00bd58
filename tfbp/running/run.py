"""A run: a model, what it learns from and how, to be evaluated and exported.

`tfbp.running.execute` makes one whole, and `tfbp.running.phases` takes it through its phases.
"""

import dataclasses
import pathlib

import keras
import tensorflow as tf
from absl import logging

from tfbp import fingerprint
from tfbp.data import structures
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import mistake
from tfbp.exporting import versions
from tfbp.modeling import freezing
from tfbp.settings import Settings
from tfbp.tasks.several import suited
from tfbp.tasks.task import Task
from tfbp.training import optimizer
from tfbp.training.evaluator import Evaluator
from tfbp.training.phase import Phase
from tfbp.workers import workers


@dataclasses.dataclass
class Run:
    """A model, what it learns from and how; after training, with its history and result.

    Attributes:
        model, splits, task, phases, settings: as given to `fit`.
        strategy: the `tf.distribute` strategy that the model was built for.
        recipe: what finds its recipe again; None: it has none.
        batch_size: examples per global batch, cut to the size of the training split.
        workers: the processes that train together; each has a run of its own.
        evaluator: evaluates the model on examples.
        directory: the run's directory, or None.
        history: one row per epoch: phase, epoch (from 1), seconds, loss and metrics, `val_…`.
        result: what `result.json` holds.

    Raises:
        tfbp.UserError: model, examples, phases, settings and strategy do not fit together.
    """

    model: keras.Model
    splits: Splits
    task: Task
    phases: tuple[Phase, ...]
    settings: Settings
    strategy: tf.distribute.Strategy
    recipe: str | None = None
    directory: pathlib.Path | None = None
    history: list[dict] = dataclasses.field(default_factory=list)
    result: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, keras.Model):
            raise mistake("model", "must be a Keras model", self.model)
        check_splits(self.splits)
        _check_task(self.task)
        created_here = self.strategy.extended.variable_created_in_scope
        if not all(created_here(variable.value) for variable in self.model.weights):
            rule = "must be the one in whose `scope()` the model was built"
            raise mistake("strategy", rule, type(self.strategy).__name__)
        self._check_phases()
        self.task = suited(self.task, self.model)
        size = self.splits.train.size
        self.batch_size = min(self.settings.batch_size, size)
        if self.batch_size < self.settings.batch_size:
            asked = self.settings.batch_size
            logging.warning("`batch_size` is cut from %d to the %d training examples.", asked, size)
        if self.settings.cached_views and self.splits.train.is_augmented:
            # More views than epochs would never be seen.
            views = min(self.settings.cached_views, max(phase.epochs for phase in self.phases))
            train = self.splits.train.in_views(views)
            self.splits = dataclasses.replace(self.splits, train=train)
        self.workers = workers.of(self.strategy)
        self.evaluator = Evaluator(self.model, self.task, self.strategy)

    def _check_phases(self) -> None:
        if not self.phases:
            raise mistake("phases", "must be one or more", self.phases)
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise mistake("phases", "must have different names", names)
        for phase in self.phases:
            frozen = freezing.freeze(self.model, phase.trainable, phase.batch_norm)
            optimizer.rates(phase, frozen)
            if phase.early_stopping is not None and self.splits.validation is None:
                rule = "must be None where there are no validation examples"
                raise mistake("early_stopping", rule, phase.early_stopping)

    def evaluate(self, examples: Examples) -> dict:
        """Returns the task's metrics on examples, "loss" first, each example counted once.

        Where there are several workers, each has to call it.

        Raises:
            tfbp.UserError: these are no examples, or the task or the model does not take them, or
                other workers have others.
            tfbp.errors.WorkerLost: another worker does not answer.
        """
        if not isinstance(examples, Examples):
            rule = "must be Examples, such as `splits.test` (None where that split is empty)"
            raise mistake("examples", rule, examples)
        if not any(examples is part for part in self.splits.parts().values()):
            nested = structures.is_nested(examples.targets)
            if nested != structures.is_nested(self.splits.train.targets):
                rule = "must have a y like the training examples: one array, or a dict of them"
                raise mistake("examples", rule, "a dict" if nested else "one array")
            self.task.check(self.model, examples)
        with self.workers.watched():
            if self.workers.count > 1:
                self.workers.check_alike({"examples": examples.fingerprint})
            return self.task.evaluate(self.evaluator(examples, self.batch_size), examples)

    def export(self, folder: str, *, keep_versions: int = 0) -> str:
        """Publishes the model as the next version in `folder`, and returns the version's path.

        Where there are several workers, each has to call it, and the chief publishes.

        Args:
            keep_versions: the newest versions that stay in the folder; 0: all.

        Raises:
            tfbp.UserError: the folder cannot be written, or `keep_versions` is negative.
            tfbp.exporting.parity.ParityError: the export does not answer like the model.
            tfbp.errors.WorkerLost: another worker does not answer.
        """
        if keep_versions < 0:
            raise mistake("keep_versions", "must be at least 0", keep_versions)
        with self.workers.watched():
            path, parity = self.workers.on_chief(lambda: self._publish(folder, keep_versions))
        self.result["export"] = {"path": path, "parity": parity}
        return path

    def _publish(self, folder: str, keep_versions: int) -> tuple[str, dict]:
        held_out = self.splits.test or self.splits.validation or self.splits.train
        hashes = [fingerprint.of_array(variable) for variable in self.model.weights]
        details = self.result | {
            "fingerprints": {
                "model": fingerprint.of_json(hashes),
                **{name: part.fingerprint for name, part in self.splits.parts().items()},
            }
        }
        path, parity = versions.export(
            self.model, self.task, held_out, folder, details=details, keep=keep_versions
        )
        return str(path), parity


def check_splits(splits: Splits) -> None:
    """Refuses what are no splits, such as what a recipe's `data` forgot to return.

    Raises:
        tfbp.UserError: says what they are.
    """
    if not isinstance(splits, Splits):
        raise mistake("splits", "must be tfbp.Splits", splits)


def _check_task(task: Task) -> None:
    methods = [name for name in vars(Task) if not name.startswith("_")]
    if isinstance(task, type) or not all(hasattr(task, name) for name in methods):
        rule = "must be a task, such as `tfbp.Classification(splits.classes)`"
        raise mistake("task", rule, task)
