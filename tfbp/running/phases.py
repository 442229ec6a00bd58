"""Takes a run through its phases, from where it stands to its result.

Each phase is: freeze → new optimizer → compile → train → prove.
"""

import dataclasses
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfbp.caching.cache import FeatureCache, PhaseInputs
from tfbp.gradients.flow import GradientFlow
from tfbp.modeling import freezing, keras_graph
from tfbp.reporting.progress import Count
from tfbp.resuming import callbacks as callback_state
from tfbp.resuming import state as run_state
from tfbp.resuming.checkpoints import Checkpoints
from tfbp.resuming.state import Position, State
from tfbp.running import directory as run_directory
from tfbp.running import phase_callbacks
from tfbp.running.run import Run
from tfbp.tasks import several
from tfbp.training import batches, loop, optimizer
from tfbp.training import proof as proving
from tfbp.training.early_stopping import EarlyStopping
from tfbp.training.evaluator import Evaluator
from tfbp.training.phase import Phase
from tfbp.workers import interruption


def train(run: Run, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Trains a run from where it stands, and fills its history and result.

    Raises:
        tfbp.workers.interruption.Interrupted: a stop was requested; a checkpoint is there.
    """
    began = time.perf_counter()
    with FeatureCache(run.settings, run.model, run.splits, run.task, run.phases) as cache:
        if run.directory is None:
            records, metrics = Training(run, callbacks, cache).train()
        else:
            callback_state.warn_of_unknown(callbacks)
            folder = run.directory / run_directory.CHECKPOINTS
            saving = Checkpoints(folder, run.settings.checkpoint_seconds, run.strategy)
            with interruption.deferred() as stop_requested, saving as checkpoints:
                training = Training(run, callbacks, cache, checkpoints, stop_requested)
                records, metrics = training.train()
    # The model goes back to its owner as plain Keras compiles it: it saves and loads without tfbp.
    with run.strategy.scope():
        plain = optimizer.plain(run.phases[-1])
        run.model.compile(plain, **several.measured(run.task))
    run.result = {
        "seed": run.settings.seed,
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "data": {
            "spec": run.splits.description,
            "sizes": {name: examples.size for name, examples in run.splits.parts().items()},
            "classes": run.splits.classes,
        },
        "phases": list(records),
        "metrics": metrics,
        "seconds": round(time.perf_counter() - began, 3),
    }


def compile(run: Run, phase: Phase) -> freezing.Frozen:
    """Freezes and compiles a run's model for a phase, with a new optimizer."""
    frozen = freezing.freeze(run.model, phase.trainable, phase.batch_norm)
    in_epoch = batches.updates_per_epoch(run.splits.train.size, run.batch_size, phase.accumulate)
    with run.strategy.scope():
        run.model.compile(
            optimizer=optimizer.build(phase, phase.epochs * in_epoch, frozen),
            **several.measured(run.task),
            auto_scale_loss=False,  # the optimizer does
        )
        keras_graph.save_with_optimizer(run.model, optimizer.plain(phase))
    loop.build(run.model, run.splits.train, run.strategy)
    return frozen


@dataclasses.dataclass
class Training:
    """What all phases of a run share.

    Attributes:
        callbacks: of the user.
        checkpoints: None where nothing is written.
        stop_requested: whether the run is to stop.
    """

    run: Run
    callbacks: Sequence[keras.callbacks.Callback]
    cache: FeatureCache
    checkpoints: Checkpoints | None = None
    stop_requested: Callable[[], bool] = lambda: False

    def train(self) -> tuple[tuple[dict, ...], dict[str, dict]]:
        """Trains what is left; returns the records of all phases, and the metrics of each split."""
        run = self.run
        position, state = (self.checkpoints and self.checkpoints.newest()) or (Position(), None)
        run.history = list(position.history)
        if self.checkpoints and state is None:
            self.checkpoints.save(run.model, position)
        while position.phase < len(run.phases):
            phase = PhaseTraining(self, position, state)
            position, inputs, evaluator = phase.train(), phase.inputs, phase.evaluator
            state = None
            if run.workers.any(self.stop_requested())[0]:
                self.interrupt()
        if state is not None:  # Stopped after the last phase: the weights are the checkpoint's.
            frozen = compile(run, run.phases[-1])
            run_state.restore(run.model, position, state, run.strategy)
            inputs, evaluator = self.learn_from(len(run.phases) - 1, frozen)
        return position.phases, self._metrics(inputs, evaluator)

    def learn_from(self, index: int, frozen: freezing.Frozen) -> tuple[PhaseInputs, Evaluator]:
        """Returns what a phase learns from, and what evaluates the model on it.

        Args:
            frozen: how the phase divides the model, whose weights are those that it begins with.
        """
        run = self.run
        inputs = self.cache.inputs(index, frozen, self._progress)
        (whole,) = run.workers.any(inputs.model is run.model)
        if not whole:
            return inputs, Evaluator(inputs.model, run.task, run.strategy)
        if inputs.model is not run.model:  # Workers that train other graphs would wait for ever.
            inputs = self.cache.without_features("there is no space for them at another worker")
        return inputs, run.evaluator

    def interrupt(self) -> None:
        """Ends a run that is to stop, once its checkpoint is on the disk.

        Raises:
            tfbp.workers.interruption.Interrupted: always.
        """
        assert self.checkpoints  # without them nobody can request a stop
        self.checkpoints.wait()
        holds = f"{self.run.directory} holds a checkpoint."
        raise interruption.Interrupted(f"Stopped on request. {holds}")

    def _progress(self, split: str) -> Callable[[int, int], None]:
        """Returns what reports how many of a split's features are there."""
        shown = Count(f"features of {split}") if self.run.workers.is_chief else None

        def report(done: int, total: int) -> None:
            if shown:
                shown(done, total)
            if self.checkpoints and self.stop_requested():
                self.interrupt()
            self.run.workers.check_alive()

        return report

    def _metrics(self, inputs: PhaseInputs, evaluator: Evaluator) -> dict[str, dict]:
        """Returns the metrics of each split, from features where the last phase learned from them.

        Those of augmented examples are not the ones that count.
        """
        run = self.run
        cached = {"train": inputs.train, "validation": inputs.validation}
        if run.splits.train.is_augmented:
            del cached["train"]
        return {
            name: run.task.evaluate(evaluator(features, run.batch_size), examples)
            if (features := cached.get(name))
            else run.evaluate(examples)
            for name, examples in run.splits.parts().items()
        }


class PhaseTraining(loop.Hooks):
    """One phase of a run, from a position in it to its end.

    Args:
        training: what the phases share.
        position: where the run stands.
        state: of the checkpoint that `position` is from; None: the model is as it stands there.
    """

    inputs: PhaseInputs
    evaluator: Evaluator

    def __init__(self, training: Training, position: Position, state: State | None):
        self._training, self._run, self._state = training, training.run, state
        run = self._run
        self._phase = run.phases[position.phase]
        self._began = time.perf_counter()
        self._frozen = compile(run, self._phase)
        _warn_of_statistics(run, self._frozen)
        if state is not None:
            run_state.restore(run.model, position, state, run.strategy)
        self._proof = proving.Proof(self._frozen, position.before)
        self._position = dataclasses.replace(position, before=self._proof.before)
        self._stopping: EarlyStopping | None = None
        if self._phase.early_stopping is not None:
            best = state.best if state else ()
            self._stopping = EarlyStopping(
                self._frozen, self._phase.early_stopping, position.early_stopping, best
            )
        self._steps = batches.steps_per_epoch(run.splits.train.size, run.batch_size)
        self._batching = batches.Batching(
            run.batch_size,
            run.settings.seed,
            self._phase.accumulate,
            run.task.class_weights_for(run.splits.train),
        )
        self._flow: GradientFlow | None = None
        if run.settings.gradients:
            self._flow = phase_callbacks.gradient_flow(run, self._phase, self._batching)
        # How many steps share a call depends on the machine: who acts on them sees each update.
        watch = 1 if any(map(loop.acts_on_batches, training.callbacks)) else run.settings.gradients
        own = phase_callbacks.own(run, position.phase, self._steps, self._flow)
        callbacks = keras.callbacks.CallbackList(
            [*own, *training.callbacks],
            model=run.model,
            epochs=self._phase.epochs,
            steps=self._steps,
            verbose=0,
        )
        super().__init__(callbacks, watch)

    def train(self) -> Position:
        """Trains the phase; returns the position behind it, which has been saved."""
        self.inputs, self.evaluator = self._training.learn_from(self._position.phase, self._frozen)
        done = self._fit()
        self._settle()
        proof = self._proof.check()
        self._proof.check_workers(self._run.workers, self._phase.name)
        return self._finish(done, proof)

    def _fit(self) -> int:
        """Returns the steps of the phase that are done."""
        run = self._run
        if self._state is not None and not self._position.step:
            self._recall()
        try:
            return loop.train(
                self.inputs.model,
                self.inputs.train,
                run.strategy,
                self,
                self._batching,
                epochs=self._phase.epochs,
                start=self._position.step,
                on_nan=run.settings.on_nan,
            )
        except loop.Diverged as error:
            raise loop.Diverged(f"In phase {self._phase.name!r}: {error}") from error

    def resume(self) -> None:
        """Undoes what callbacks did at a beginning that was none."""
        if self._state is None or not self._position.step:
            return
        run_state.restore(self._run.model, self._position, self._state, self._run.strategy)
        self._recall()
        if self._flow and self._position.gradients:
            self._flow.set_state(self._position.gradients)
        self._run.model.stop_training = self._position.stopped

    def validate(self) -> dict[str, float]:
        """Returns the metrics of an epoch, and stops the phase where they say so."""
        run = self._run
        if self.inputs.validation is None:
            return {}
        with run.model.optimizer.averaged():
            values = self.evaluator(self.inputs.validation, run.batch_size)
            assert run.splits.validation
            metrics = run.task.evaluate(values, run.splits.validation)
            # No reports: what can be shown beside the loss.
            numbers = {name: each for name, each in metrics.items() if not isinstance(each, dict)}
            if self._stopping:
                self._stopping.judge(numbers["loss"])
                run.model.stop_training |= self._stopping.stopped
        return numbers

    def after_call(self, step: int) -> None:
        """Saves a checkpoint where one is due, or the run is to stop."""
        run, checkpoints = self._run, self._training.checkpoints
        if not checkpoints:
            return
        stop, due = run.workers.any(self._training.stop_requested(), checkpoints.due())
        if not stop and not due:
            return
        fixed, stopping = self._frozen.fixed, self._stopping
        remembered, arrays = callback_state.take(self._training.callbacks, fixed)
        here = dataclasses.replace(
            self._position,
            step=step,
            history=tuple(run.history),
            early_stopping=stopping.state if stopping else None,
            stopped=bool(run.model.stop_training),
            callbacks=remembered,
            gradients=self._flow.get_state() if self._flow else None,
        )
        best = stopping.weights if stopping else ()
        checkpoints.save(run.model, here, fixed=fixed, best=best, callbacks=arrays)
        if stop:
            self._training.interrupt()

    def _recall(self) -> None:
        if self._position.callbacks is not None and self._state is not None:
            callback_state.give(
                self._training.callbacks, self._position.callbacks, self._state.callbacks
            )

    def _settle(self) -> None:
        """Leaves in the model the weights that the phase is to end with."""
        model, name = self._run.model, self._phase.name
        if model.optimizer.scales_loss and not model.optimizer.iterations.numpy():
            raise proving.ProofFailed(
                f"No update was made in phase {name!r}: the gradients of every batch overflowed in "
                "float16, and loss scaling left them out. Train longer, or in mixed_bfloat16."
            )
        model.optimizer.settle()
        if self._stopping:
            self._stopping.restore()
        proving.check_finite(self._frozen, name)

    def _finish(self, done: int, proof: dict[str, Any]) -> Position:
        """Records the phase, and saves the position behind it."""
        run, checkpoints, stopping = self._run, self._training.checkpoints, self._stopping
        record = {
            "name": self._phase.name,
            "trained": list(self._frozen.trainable),
            "parameters": self._frozen.parameters,
            "epochs": done // self._steps,
            "steps": done,
            "skipped_updates": run.model.optimizer.skipped,
            "seconds": round(time.perf_counter() - self._began, 3),
            "proof": proof,
            "proof_seconds": round(self._proof.seconds, 3),
            "features": self.inputs.features,
        }
        if stopping:
            record["stopped_epoch"] = stopping.epochs if stopping.stopped else None
            record["best_epoch"] = stopping.best_epoch
        remembered, arrays = (
            callback_state.take(self._training.callbacks, self._frozen.fixed)
            if checkpoints
            else (None, [])
        )
        behind = Position(
            phase=self._position.phase + 1,
            history=tuple(run.history),
            phases=(*self._position.phases, record),
            before=self._proof.after,
            callbacks=remembered,
        )
        if checkpoints:
            checkpoints.save(run.model, behind, callbacks=arrays)
        return behind


def _warn_of_statistics(run: Run, frozen: freezing.Frozen) -> None:
    apart = [
        path for path in frozen.statistics if not getattr(frozen.trainable[path], "synchronized", 1)
    ]
    if apart and run.strategy.num_replicas_in_sync > 1:
        logging.warning(
            "%s: statistics of each device's part of a batch alone, so that the result depends on "
            "the number of devices. Build such layers with `synchronized=True`.",
            ", ".join(apart),
        )
