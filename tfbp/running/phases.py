"""One phase of a run: freeze → new optimizer → compile → train → prove."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
from absl import logging

from tfbp import fingerprint
from tfbp.caching.cache import FeatureCache, Source
from tfbp.gradients.flow import GradientFlow
from tfbp.modeling import freezing
from tfbp.reporting.history import History, Rows
from tfbp.reporting.progress import Count, Progress
from tfbp.reporting.tensorboard import TensorBoard
from tfbp.resuming import callbacks as callback_state
from tfbp.resuming import state as run_state
from tfbp.resuming.checkpoints import Checkpoints
from tfbp.resuming.state import Place, State
from tfbp.running import directory as run_directory
from tfbp.running.run import Run
from tfbp.training import batches, loop, optimizer
from tfbp.training import proof as proving
from tfbp.training.early_stopping import EarlyStopping
from tfbp.training.phase import Phase
from tfbp.workers import interruption


def compile(it: Run, phase: Phase) -> freezing.Frozen:
    """Freezes and compiles a run's model for a phase, with a new optimizer."""
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


def train(
    it: Run,
    place: Place,
    state: State | None,
    checkpoints: Checkpoints | None,
    cache: FeatureCache,
    callbacks: Sequence[keras.callbacks.Callback],
    asked: Callable[[], bool],
) -> tuple[Place, Source, loop.Measure]:
    """Trains one phase from `place`.

    Args:
        state: of the checkpoint that `place` is from; None: the model is as it stands there.
        asked: tells whether the run is to stop.

    Returns:
        The place behind it, which has been saved; what it has learned from; what measures that.
    """
    phase = it.phases[place.phase]
    began = time.perf_counter()
    frozen = compile(it, phase)
    _warn_of_statistics(it, frozen)
    if state is not None:
        run_state.restore(it.model, place, state, it.strategy)
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
    source, measure = learn_from(it, place.phase, frozen, cache, checkpoints, asked)

    def recall() -> None:
        if place.callbacks is not None:
            callback_state.give(callbacks, place.callbacks, state.callbacks)

    def resume() -> None:
        """Undoes what callbacks did at a beginning that was none."""
        if state is None or not place.step:
            return
        run_state.restore(it.model, place, state, it.strategy)
        recall()
        if flow and place.gradients:
            flow.set_state(place.gradients)
        it.model.stop_training = place.stopped

    def save_if_due(step: int) -> None:
        if not checkpoints:
            return
        stop, due = it.workers.any(asked(), checkpoints.due())
        if not stop and not due:
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
            interrupt(it, checkpoints)

    if state is not None and not place.step:
        recall()
    try:
        done = loop.train(
            source.model,
            source.train,
            it.strategy,
            epochs=phase.epochs,
            batch_size=it.batch_size,
            seed=it.seed,
            start=place.step,
            callbacks=told,
            validate=source.validation and (lambda: _validate(it, source, measure, stopping)),
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
    _check_equal(it, phase, proof.after)
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
        "features": source.features,
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
    return behind, source, measure


def learn_from(
    it: Run,
    index: int,
    frozen: freezing.Frozen,
    cache: FeatureCache,
    checkpoints: Checkpoints | None,
    asked: Callable[[], bool],
) -> tuple[Source, loop.Measure]:
    """Returns what a phase learns from, and what measures that.

    Args:
        frozen: how the phase divides the model, whose weights are those that it begins with.
        asked: tells whether the run is to stop.
    """

    def progress(split: str) -> Callable[[int, int], None]:
        shown = Count(f"features of {split}") if it.workers.is_chief else None

        def told(done: int, total: int) -> None:
            if shown:
                shown(done, total)
            if checkpoints and asked():
                interrupt(it, checkpoints)
            it.workers.check_alive()

        return told

    source = cache.source(index, frozen, progress)
    (whole,) = it.workers.any(source.model is it.model)
    if not whole:
        return source, loop.Measure(source.model, it.task, it.strategy)
    if source.model is not it.model:  # Workers that train other graphs would wait for each other.
        source = cache.whole("there is no room at another worker")
    return source, it.measure


def _acts_on_batches(callback: keras.callbacks.Callback) -> bool:
    names = "on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end"
    plain = keras.callbacks.Callback
    return any(
        getattr(getattr(callback, name), "__func__", None) is not getattr(plain, name)
        for name in names
    )


def _warn_of_statistics(it: Run, frozen: freezing.Frozen) -> None:
    apart = [
        path for path in frozen.statistics if not getattr(frozen.trainable[path], "synchronized", 1)
    ]
    if apart and it.strategy.num_replicas_in_sync > 1:
        logging.warning(
            "%s: statistics of each device's part of a batch alone, so that the result depends on "
            "the number of devices. Build such layers with `synchronized=True`.",
            ", ".join(apart),
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


def _check_equal(it: Run, phase: Phase, after: proving.Fingerprints) -> None:
    """Refuses weights that are not the same on all workers."""
    found = it.workers.gather(fingerprint.of_json(after).encode())
    if len(set(found)) > 1:
        wrong = [str(worker) for worker, each in enumerate(found) if each != found[0]]
        raise proving.ProofFailed(
            f"After phase {phase.name!r} workers have other weights than worker 0: "
            f"{', '.join(wrong)}."
        )


def interrupt(it: Run, checkpoints: Checkpoints) -> None:
    """Ends a run that was asked to stop, once its checkpoint is on the disk.

    Raises:
        tfbp.workers.interruption.Interrupted: always.
    """
    checkpoints.wait()
    raise interruption.Interrupted(f"Stopped on request. {it.directory} holds a checkpoint.")


def _validate(
    it: Run, source: Source, measure: loop.Measure, stopping: EarlyStopping | None
) -> dict[str, float]:
    """Returns the metrics of an epoch, and stops the phase where they say so."""
    with it.model.optimizer.averaged():
        measured = measure(source.validation, it.batch_size)
        metrics = _numbers(it.task.evaluate(measured, it.splits.validation))
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
    if it.directory and it.workers.is_chief:
        own.append(History(it.directory / run_directory.HISTORY, it.history))
        own.append(TensorBoard(it.directory / run_directory.TENSORBOARD / phase.name))
    if it.workers.is_chief:
        own.append(Progress(phase.name, index + 1, len(it.phases), phase.epochs, steps))
    return keras.callbacks.CallbackList(
        [*own, *callbacks], model=it.model, epochs=phase.epochs, steps=steps, verbose=0
    )


def _gradient_flow(it: Run, phase: Phase) -> GradientFlow:
    logs = it.directory and it.workers.is_chief
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
        folder=it.directory / run_directory.TENSORBOARD / phase.name if logs else None,
    )


def _numbers(metrics: dict) -> dict[str, float]:
    """Returns what can be shown beside the loss: no reports."""
    return {name: value for name, value in metrics.items() if not isinstance(value, dict)}
