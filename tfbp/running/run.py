"""A run: a model, what it learns from and how, to be measured and exported.

`tfbp.running.fitting` takes it through its phases, and `tfbp.running.phases` through each.
"""

import dataclasses
import pathlib

import keras
import tensorflow as tf
from absl import logging

from tfbp import fingerprint
from tfbp.caching import cache as feature_cache
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import mistake
from tfbp.exporting import versions
from tfbp.modeling import freezing
from tfbp.tasks.task import Task
from tfbp.training import loop, optimizer
from tfbp.training.phase import Phase
from tfbp.workers import workers

ON_NAN = ("stop", "skip")


@dataclasses.dataclass
class Run:
    """A model, what it learns from and how; after training, with its history and result.

    Attributes:
        model, splits, task, phases, batch_size, seed: as given to `fit`.
        strategy: the `tf.distribute` strategy that the model was built for.
        gradients: updates from one log of gradient norms to the next; 0: none.
        checkpoint_seconds: least time between two checkpoints inside a phase.
        on_nan: "stop" at a loss that is not finite, or "skip" such updates, see `loop.train`.
        cache: how what a phase cannot change is computed once.
        measure: measures the model on examples.
        workers: the processes that train together; each has a run of its own.
        directory: the run's directory, or None.
        history: one row per epoch: phase, epoch (from 1), seconds, loss and metrics, `val_…`.
        result: what `result.json` holds.
    """

    model: keras.Model
    splits: Splits
    task: Task
    phases: tuple[Phase, ...]
    batch_size: int
    seed: int
    strategy: tf.distribute.Strategy
    gradients: int = 0
    checkpoint_seconds: float = 60.0
    on_nan: str = "stop"
    cache: feature_cache.Settings = dataclasses.field(default_factory=feature_cache.Settings)
    directory: pathlib.Path | None = None
    history: list[dict] = dataclasses.field(default_factory=list)
    result: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.batch_size < 1:
            raise mistake("batch_size", "must be at least 1", self.batch_size)
        if not isinstance(self.gradients, int) or self.gradients < 0:
            raise mistake("gradients", "must be zero or a positive whole number", self.gradients)
        if not self.checkpoint_seconds >= 0:
            raise mistake("checkpoint_seconds", "must be at least 0", self.checkpoint_seconds)
        if self.on_nan not in ON_NAN:
            raise mistake("on_nan", "must be one of the known names", self.on_nan, ON_NAN)
        if not isinstance(self.model, keras.Model):
            raise mistake("model", "must be a Keras model", self.model)
        created_here = self.strategy.extended.variable_created_in_scope
        if not all(created_here(variable.value) for variable in self.model.weights):
            rule = "must be the one in whose `scope()` the model was built"
            raise mistake("strategy", rule, type(self.strategy).__name__)
        if self.seed < 0:
            raise mistake("seed", "must be at least 0", self.seed)
        if not self.phases:
            raise mistake("phases", "must be one or more", self.phases)
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise mistake("phases", "must have different names", names)
        if self.batch_size > self.splits.train.size:
            logging.warning(
                "`batch_size` is cut from %d to the %d training examples.",
                self.batch_size,
                self.splits.train.size,
            )
            self.batch_size = self.splits.train.size
        for phase in self.phases:
            frozen = freezing.freeze(self.model, phase.trainable, phase.batch_norm)
            optimizer.rates(phase, frozen)
            if phase.early_stopping is not None and self.splits.validation is None:
                rule = "must be None where there are no validation examples"
                raise mistake("early_stopping", rule, phase.early_stopping)
        if self.cache.views and self.splits.train.is_augmented:
            # More views than epochs would never be seen.
            views = min(self.cache.views, max(phase.epochs for phase in self.phases))
            train = self.splits.train.in_views(views)
            self.splits = dataclasses.replace(self.splits, train=train)
        self.workers = workers.of(self.strategy)
        self.measure = loop.Measure(self.model, self.task, self.strategy)

    def evaluate(self, examples: Examples) -> dict:
        """Returns the task's metrics on examples, "loss" first, each example counted once.

        Of several workers each has to call it.

        Raises:
            tfbp.UserError: these are no examples, or other workers have others.
            tfbp.errors.WorkerLost: another worker does not answer.
        """
        if not isinstance(examples, Examples):
            rule = "must be Examples, such as `splits.test` (None where that split is empty)"
            raise mistake("examples", rule, examples)
        with self.workers.watched():
            if self.workers.count > 1:
                self.workers.check_alike({"examples": examples.fingerprint})
            return self.task.evaluate(self.measure(examples, self.batch_size), examples)

    def export(self, folder: str, *, keep_versions: int = 0) -> str:
        """Publishes the model as the next version in `folder`, and returns the version's path.

        Of several workers each has to call it, and the chief publishes.

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
