"""What watches a phase of a run while it trains: history, progress, TensorBoard, gradient norms."""

from typing import Any

import keras

from tfbp.errors import mistake
from tfbp.gradients.flow import GradientFlow
from tfbp.reporting.history import History, Rows
from tfbp.reporting.progress import Progress
from tfbp.reporting.tensorboard import TensorBoard
from tfbp.running import directory
from tfbp.running.run import Run
from tfbp.training import batches, own_step
from tfbp.training.phase import Phase


def own(
    run: Run, index: int, steps: int, flow: GradientFlow | None
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks of a phase that are not the user's.

    Args:
        index: of the phase.
        steps: of an epoch.
        flow: logs the norms of gradients; None: nothing does.
    """
    phase = run.phases[index]
    callbacks: list[keras.callbacks.Callback] = [Rows(phase.name, run.history)]
    if flow:
        callbacks.append(flow)
    if run.directory and run.workers.is_chief:
        callbacks.append(History(run.directory / directory.HISTORY, run.history))
        folder = run.directory / directory.TENSORBOARD / phase.name
        callbacks.append(TensorBoard(folder, run.splits.train.spec[0]))
    if run.workers.is_chief:
        callbacks.append(Progress(phase.name, index + 1, len(run.phases), phase.epochs, steps))
    return callbacks


def listed(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Returns callbacks as they are given, one alone or several, as a list.

    Raises:
        tfbp.UserError: what is given is no callback.
    """
    flat = keras.tree.flatten(callbacks)
    for callback in flat:
        if not isinstance(callback, keras.callbacks.Callback):
            raise mistake("callbacks", "must be Keras callbacks", callback)
    return flat


def gradient_flow(run: Run, phase: Phase, batching: batches.Batching) -> GradientFlow:
    """Returns what logs the norms of the gradients of a phase."""
    folder = None
    if run.directory and run.workers.is_chief:
        folder = run.directory / directory.TENSORBOARD / phase.name
    return GradientFlow(
        phase,
        run.settings.gradients,
        read=batches.reader(run.splits.train, batching),
        weighed=own_step.weighed_by(run.splits.train, batching.class_weights, run.strategy),
        loss=run.task.loss(),
        strategy=run.strategy,
        rows=run.history,
        folder=folder,
    )
