"""A run: a model that is taken through its phases, measured and exported.

What happens in a phase is `tfbp.phase_training`.
"""

import dataclasses
import pathlib
import platform
import time
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from absl import logging

from tfbp import fingerprint, phase_training, run_directory
from tfbp.data.examples import Examples, Splits
from tfbp.errors import mistake
from tfbp.exporting import versions
from tfbp.modeling import freezing
from tfbp.tasks.task import Task
from tfbp.training import (
    callback_state,
    checkpoint,
    feature_cache,
    interruption,
    loop,
    optimizer,
)
from tfbp.training.checkpoint import Checkpoints, Place
from tfbp.training.feature_cache import FeatureCache, Source
from tfbp.training.phase import Phase

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
        self.measure = loop.Measure(self.model, self.task, self.strategy)

    def evaluate(self, examples: Examples) -> dict:
        """Returns the task's metrics on examples, "loss" first, each example counted once."""
        if not isinstance(examples, Examples):
            rule = "must be Examples, such as `splits.test` (None where that split is empty)"
            raise mistake("examples", rule, examples)
        return self.task.evaluate(self.measure(examples, self.batch_size), examples)

    def export(self, folder: str, *, keep_versions: int = 0) -> str:
        """Publishes the model as the next version in `folder`, and returns the version's path.

        Args:
            keep_versions: the newest versions that stay in the folder; 0: all.

        Raises:
            tfbp.UserError: the folder cannot be written, or `keep_versions` is negative.
            tfbp.exporting.parity.ParityError: the export does not answer like the model.
        """
        if keep_versions < 0:
            raise mistake("keep_versions", "must be at least 0", keep_versions)
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
        self.result["export"] = {"path": str(path), "parity": parity}
        return str(path)


def train(it: Run, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Trains `it` from where it stands, and fills its history and result.

    Raises:
        tfbp.training.interruption.Interrupted: it was asked to stop, and has left a checkpoint.
    """
    began = time.perf_counter()
    callbacks = keras.tree.flatten(list(callbacks))
    with FeatureCache(it.cache, it.model, it.splits, it.phases, it.seed) as cache:
        if it.directory is None:
            done, metrics = _train_phases(it, None, cache, callbacks, lambda: False)
        else:
            callback_state.warn_of_unknown(callbacks)
            saving = Checkpoints(it.directory / run_directory.CHECKPOINTS, it.checkpoint_seconds)
            with interruption.deferred() as asked, saving as saved:
                done, metrics = _train_phases(it, saved, cache, callbacks, asked)
    # The model goes back to its owner as plain Keras compiles it: it saves and loads without tfbp.
    with it.strategy.scope():
        plain = optimizer.plain(it.phases[-1])
        it.model.compile(plain, loss=it.task.loss(), metrics=it.task.metrics())
    splits = it.splits.parts()
    it.result = {
        "seed": it.seed,
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "data": {
            "spec": it.splits.description,
            "sizes": {name: examples.size for name, examples in splits.items()},
            "classes": it.splits.classes,
        },
        "phases": list(done),
        "metrics": metrics,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _train_phases(
    it: Run,
    checkpoints: Checkpoints | None,
    cache: FeatureCache,
    callbacks: Sequence[keras.callbacks.Callback],
    asked: Callable[[], bool],
) -> tuple[tuple[dict, ...], dict[str, dict]]:
    """Trains what is left; returns the records of all phases, and the metrics on each split.

    Args:
        asked: tells whether the run is to stop.
    """
    place, state = (checkpoints and checkpoints.newest()) or (Place(), None)
    it.history = list(place.history)
    if checkpoints and state is None:
        checkpoints.save(it.model, place)
    while place.phase < len(it.phases):
        place, source, measure = phase_training.train(
            it, place, state, checkpoints, cache, callbacks, asked
        )
        state = None
        if asked():
            phase_training.interrupt(it, checkpoints)
    if state is not None:  # Stopped after the last phase: the weights are the checkpoint's.
        frozen = phase_training.compile(it, it.phases[-1])
        checkpoint.restore(it.model, place, state)
        last = len(it.phases) - 1
        source, measure = phase_training.learn_from(it, last, frozen, cache, checkpoints, asked)
    return place.phases, _metrics(it, source, measure)


def _metrics(it: Run, source: Source, measure: loop.Measure) -> dict[str, dict]:
    """Returns the metrics on each split, from features where the last phase has learned from them.

    Those of augmented examples are not the ones that are measured.
    """
    cached = {"train": source.train, "validation": source.validation}
    if it.splits.train.is_augmented:
        del cached["train"]
    return {
        name: it.task.evaluate(measure(cached[name], it.batch_size), examples)
        if name in cached
        else it.evaluate(examples)
        for name, examples in it.splits.parts().items()
    }
