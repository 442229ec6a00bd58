"""A run: a model that is taken through its phases, measured and exported.

For each phase: freeze → new optimizer → compile → train → prove.
"""

import dataclasses
import pathlib
import platform
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
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
from tfbp.training import batches, callback_state, checkpoint, interruption, loop, optimizer
from tfbp.training import proof as proving
from tfbp.training.checkpoint import Checkpoints, Place, State
from tfbp.training.early_stopping import EarlyStopping
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
    """Trains `it` from where it stands, and fills its history and result.

    Raises:
        tfbp.training.interruption.Interrupted: it was asked to stop, and has left a checkpoint.
    """
    began = time.perf_counter()
    callbacks = keras.tree.flatten(list(callbacks))
    if it.directory is None:
        done = _train_phases(it, None, callbacks, lambda: False)
    else:
        callback_state.warn_of_unknown(callbacks)
        folder = it.directory / run_directory.CHECKPOINTS
        with interruption.deferred() as asked, Checkpoints(folder, it.checkpoint_seconds) as saved:
            done = _train_phases(it, saved, callbacks, asked)
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


def _train_phases(
    it: Run,
    checkpoints: Checkpoints | None,
    callbacks: Sequence[keras.callbacks.Callback],
    asked: Callable[[], bool],
) -> tuple[dict, ...]:
    """Trains what is left, and returns the records of all phases.

    Args:
        asked: tells whether the run is to stop.
    """
    place, state = (checkpoints and checkpoints.newest()) or (Place(), None)
    it.history = list(place.history)
    if checkpoints and state is None:
        checkpoints.save(it.model, place)
    while place.phase < len(it.phases):
        place = _train_phase(it, place, state, checkpoints, callbacks, asked)
        state = None
        if asked():
            _stop(it, checkpoints)
    if state is not None:  # Stopped after the last phase: the weights are the checkpoint's.
        compile_phase(it, it.phases[-1])
        checkpoint.restore(it.model, place, state)
    return place.phases


def _train_phase(
    it: Run, place: Place, state: State | None, checkpoints, callbacks, asked
) -> Place:
    """Trains one phase from `place`; returns the place behind it, which has been saved.

    Args:
        state: of the checkpoint that `place` is from; None: the model is as it stands there.
    """
    phase = it.phases[place.phase]
    began = time.perf_counter()
    frozen = compile_phase(it, phase)
    if state is not None:
        checkpoint.restore(it.model, place, state)
    proof = proving.Proof(frozen, place.before)
    place = dataclasses.replace(place, before=proof.before)
    stopping = None
    if phase.early_stopping is not None:
        best = state.best if state else ()
        stopping = EarlyStopping(frozen, phase.early_stopping, place.early_stopping, best)
    steps = batches.steps_per_epoch(it.splits.train.size, it.batch_size)
    flow = _gradient_flow(it, phase) if it.gradients else None
    told = _callbacks(it, place.phase, steps, flow, callbacks)
    fixed = frozen.fixed

    def recall() -> None:
        if place.callbacks is not None:
            callback_state.give(callbacks, place.callbacks, state.callbacks)

    def resume() -> None:
        """Undoes what callbacks did at a beginning that was none."""
        if state is None or not place.step:
            return
        checkpoint.restore(it.model, place, state)
        recall()
        if flow and place.gradients:
            flow.set_state(place.gradients)
        it.model.stop_training = place.stopped

    def save_if_due(step: int) -> None:
        stop = checkpoints is not None and asked()
        if not stop and not (checkpoints and checkpoints.due()):
            return
        remembered, arrays = callback_state.take(callbacks, fixed)
        here = dataclasses.replace(
            place,
            step=step,
            history=tuple(it.history),
            early_stopping=stopping and stopping.state,
            stopped=bool(it.model.stop_training),
            callbacks=remembered,
            gradients=flow and flow.get_state(),
        )
        best = stopping.weights if stopping else ()
        checkpoints.save(it.model, here, fixed=fixed, best=best, callbacks=arrays)
        if stop:
            _stop(it, checkpoints)

    if state is not None and not place.step:
        recall()
    try:
        done = loop.train(
            it.model,
            it.splits.train,
            it.strategy,
            epochs=phase.epochs,
            batch_size=it.batch_size,
            seed=it.seed,
            start=place.step,
            callbacks=told,
            validate=it.splits.validation and (lambda: _validate(it, stopping)),
            after_call=save_if_due,
            resume=resume,
            # How many steps share a call depends on the machine: who acts on them sees each update.
            watch=1 if any(map(_acts_on_batches, callbacks)) else it.gradients,
            class_weights=it.task.class_weights_for(it.splits.train),
            on_nan=it.on_nan,
        )
    except loop.Diverged as error:
        raise loop.Diverged(f"In phase {phase.name!r}: {error}") from error
    if it.model.optimizer.scales_loss and not it.model.optimizer.iterations.numpy():
        raise proving.ProofFailed(
            f"No update was made in phase {phase.name!r}: the gradients of every batch overflowed "
            "in float16, and loss scaling left them out. Train longer, or in mixed_bfloat16."
        )
    it.model.optimizer.settle()
    if stopping:
        stopping.restore()
    _check_finite(phase, frozen)
    proved = proof.check()
    record = {
        "name": phase.name,
        "trained": list(frozen.trainable),
        "parameters": frozen.parameters,
        "epochs": done // steps,
        "steps": done,
        "skipped_updates": it.model.optimizer.skipped,
        "seconds": round(time.perf_counter() - began, 3),
        "proof": proved,
        "proof_seconds": round(proof.seconds, 3),
    }
    if stopping:
        record["stopped_epoch"] = stopping.epochs if stopping.stopped else None
        record["best_epoch"] = stopping.best_epoch
    remembered, arrays = callback_state.take(callbacks, fixed) if checkpoints else (None, ())
    behind = Place(
        phase=place.phase + 1,
        history=tuple(it.history),
        phases=(*place.phases, record),
        before=proof.after,
        callbacks=remembered,
    )
    if checkpoints:
        checkpoints.save(it.model, behind, callbacks=arrays)
    return behind


def _acts_on_batches(callback: keras.callbacks.Callback) -> bool:
    names = "on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end"
    plain = keras.callbacks.Callback
    return any(
        getattr(getattr(callback, name), "__func__", None) is not getattr(plain, name)
        for name in names
    )


def _check_finite(phase: Phase, frozen: freezing.Frozen) -> None:
    """Refuses weights that the very last update has spoiled: no loss has shown it."""
    # A statistic may be a mask of infinities that nothing changes.
    groups = (frozen.learning, lambda x: ~np.isfinite(x)), (frozen.statistics, np.isnan)
    spoiled = [
        f"{path}/{variable.name}"
        for group, wrong in groups
        for path, variables in group.items()
        for variable in variables
        if wrong(np.asarray(variable).astype(np.float64)).any()
    ]
    if spoiled:
        raise loop.Diverged(
            f"After the last update of phase {phase.name!r} these are not finite: "
            f"{', '.join(spoiled)}. Lower the learning rate, or set `clip_norm`."
        )


def _stop(it: Run, checkpoints: Checkpoints) -> None:
    checkpoints.wait()
    raise interruption.Interrupted(f"Stopped on request. {it.directory} holds a checkpoint.")


def _validate(it: Run, stopping: EarlyStopping | None) -> dict[str, float]:
    """Returns the metrics of an epoch, and stops the phase where they say so."""
    with it.model.optimizer.averaged():
        metrics = _numbers(it.evaluate(it.splits.validation))
        if stopping:
            stopping.judge(metrics["loss"])
            it.model.stop_training |= stopping.stopped
    return metrics


def _callbacks(
    it: Run, index: int, steps: int, flow: GradientFlow | None, callbacks
) -> keras.callbacks.CallbackList:
    phase = it.phases[index]
    own = [Rows(phase.name, it.history)]
    if flow:
        own.append(flow)
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
