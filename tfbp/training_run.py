"""A run: a model that is taken through its phases, measured and exported.

For each phase: freeze → new optimizer → compile → train → prove.
"""

import dataclasses
import pathlib
import platform
import time
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import logging

from tfbp import fingerprint, run_directory
from tfbp.data.examples import Examples, Splits
from tfbp.errors import mistake
from tfbp.exporting import versions
from tfbp.modeling import freezing
from tfbp.reporting.gradients import GradientFlow
from tfbp.reporting.history import History, Rows
from tfbp.reporting.progress import Progress
from tfbp.reporting.tensorboard import TensorBoard
from tfbp.tasks.task import Task
from tfbp.training import batches, checkpoint, loop, optimizer
from tfbp.training import proof as proving
from tfbp.training.checkpoint import Place
from tfbp.training.early_stopping import EarlyStopping
from tfbp.training.phase import Phase


@dataclasses.dataclass
class Run:
    """A model, what it learns from and how; after training, with its history and result.

    Attributes:
        model, splits, task, phases, batch_size, seed: as given to `fit`.
        strategy: the `tf.distribute` strategy that the model was built for.
        gradients: updates from one log of gradient norms to the next; 0: none.
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
    directory: pathlib.Path | None = None
    history: list[dict] = dataclasses.field(default_factory=list)
    result: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.batch_size < 1:
            raise mistake("batch_size", "must be at least 1", self.batch_size)
        if not isinstance(self.gradients, int) or self.gradients < 0:
            raise mistake("gradients", "must be zero or a positive whole number", self.gradients)
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
        self._measure = loop.Measure(self.model, self.task, self.strategy)

    def evaluate(self, examples: Examples) -> dict:
        """Returns the task's metrics on examples, "loss" first, each example counted once."""
        if not isinstance(examples, Examples):
            rule = "must be Examples, such as `splits.test` (None where that split is empty)"
            raise mistake("examples", rule, examples)
        return self.task.evaluate(self._measure(examples, self.batch_size), examples)

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
    """Trains `it` from where it stands, and fills its history and result."""
    began = time.perf_counter()
    checkpoints = it.directory and checkpoint.Checkpoints(it.directory / run_directory.CHECKPOINTS)
    place, state = (checkpoints and checkpoints.newest()) or (Place(), None)
    it.history = list(place.history)
    done = list(place.phases)
    while place.phase < len(it.phases):
        record, after = _train_phase(it, place, state, checkpoints, callbacks)
        done.append(record)
        place = Place(place.phase + 1, 0, tuple(it.history), tuple(done), before=after)
        state = None
        if checkpoints:
            checkpoints.save(it.model, place)
    if state is not None:  # Stopped after the last phase: the weights are the checkpoint's.
        compile_phase(it, it.phases[-1])
        checkpoint.restore(it.model, place, state)
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
        "phases": done,
        "metrics": {name: it.evaluate(examples) for name, examples in splits.items()},
        "seconds": round(time.perf_counter() - began, 3),
    }


def compile_phase(it: Run, phase: Phase) -> freezing.Frozen:
    frozen = freezing.freeze(it.model, phase.trainable, phase.batch_norm)
    in_epoch = batches.updates_per_epoch(it.splits.train.size, it.batch_size, phase.accumulate)
    with it.strategy.scope():
        it.model.compile(
            optimizer=optimizer.build(phase, phase.epochs * in_epoch, frozen),
            loss=it.task.loss(),
            metrics=it.task.metrics(),
            auto_scale_loss=False,  # the optimizer does
        )
    loop.build(it.model, it.splits.train, it.strategy)
    return frozen


def _train_phase(
    it: Run, place: Place, state, checkpoints, callbacks
) -> tuple[dict, proving.Fingerprints]:
    """Trains one phase from `place`; returns its record for the result, and the fingerprints."""
    phase = it.phases[place.phase]
    began = time.perf_counter()
    frozen = compile_phase(it, phase)
    if state is not None:
        checkpoint.restore(it.model, place, state)
    proof = proving.Proof(frozen, place.before)
    place = dataclasses.replace(place, before=proof.before)
    stopping = None
    if phase.early_stopping is not None:
        best = state[checkpoint.BEST] if state else ()
        stopping = EarlyStopping(frozen, phase.early_stopping, place.early_stopping, best)
    steps = batches.steps_per_epoch(it.splits.train.size, it.batch_size)

    def save_if_due(step: int) -> None:
        if not (checkpoints and checkpoints.due()):
            return
        here = dataclasses.replace(place, step=step, history=tuple(it.history))
        if stopping:
            here = dataclasses.replace(here, early_stopping=stopping.state)
        checkpoints.save(it.model, here, stopping.weights if stopping else ())

    done = loop.train(
        it.model,
        it.splits.train,
        it.strategy,
        # One that has stopped already has nothing left to train.
        epochs=stopping.epochs if stopping and stopping.stopped else phase.epochs,
        batch_size=it.batch_size,
        seed=it.seed,
        start=place.step,
        callbacks=_callbacks(it, place.phase, steps, callbacks),
        validate=it.splits.validation and (lambda: _validate(it, stopping)),
        after_call=save_if_due,
        watch=it.gradients,
        class_weights=it.task.class_weights_for(it.splits.train),
    )
    if it.model.optimizer.scales_loss and not it.model.optimizer.iterations.numpy():
        raise proving.ProofFailed(
            f"No update was made in phase {phase.name!r}: the gradients of every batch overflowed "
            "in float16, and loss scaling left them out. Train longer, or in mixed_bfloat16."
        )
    it.model.optimizer.settle()
    if stopping:
        stopping.restore()
    proved = proof.check()
    record = {
        "name": phase.name,
        "trained": list(frozen.trainable),
        "parameters": frozen.parameters,
        "epochs": done // steps,
        "steps": done,
        "seconds": round(time.perf_counter() - began, 3),
        "proof": proved,
        "proof_seconds": round(proof.seconds, 3),
    }
    if stopping:
        record["stopped_epoch"] = stopping.epochs if stopping.stopped else None
        record["best_epoch"] = stopping.best_epoch
    return record, proof.after


def _validate(it: Run, stopping: EarlyStopping | None) -> dict[str, float]:
    """Returns the metrics of an epoch, and stops the phase where they say so."""
    with it.model.optimizer.averaged():
        metrics = _numbers(it.evaluate(it.splits.validation))
        if stopping:
            stopping.judge(metrics["loss"])
            it.model.stop_training |= stopping.stopped
    return metrics


def _callbacks(it: Run, index: int, steps: int, callbacks) -> keras.callbacks.CallbackList:
    phase = it.phases[index]
    own = [Rows(phase.name, it.history)]
    if it.gradients:
        own.append(_gradient_flow(it, phase))
    if it.directory:
        own.append(History(it.directory / run_directory.HISTORY, it.history))
        own.append(TensorBoard(it.directory / run_directory.TENSORBOARD / phase.name))
    own.append(Progress(phase.name, index + 1, len(it.phases), phase.epochs, steps))
    return keras.callbacks.CallbackList(
        [*own, *callbacks], model=it.model, epochs=phase.epochs, steps=steps, verbose=0
    )


def _gradient_flow(it: Run, phase: Phase) -> GradientFlow:
    return GradientFlow(
        phase,
        it.gradients,
        read=batches.reader(
            it.splits.train,
            batch_size=it.batch_size,
            seed=it.seed,
            accumulate=phase.accumulate,
            class_weights=it.task.class_weights_for(it.splits.train),
        ),
        loss=it.task.loss(),
        strategy=it.strategy,
        rows=it.history,
        folder=it.directory and it.directory / run_directory.TENSORBOARD / phase.name,
    )


def _numbers(metrics: dict) -> dict[str, float]:
    """Returns what can be shown beside the loss: no reports."""
    return {name: value for name, value in metrics.items() if not isinstance(value, dict)}
