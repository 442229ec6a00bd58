"""Takes a run through its phases, from where it stands, and to its result."""

import platform
import time
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfbp.caching.cache import FeatureCache, Source
from tfbp.resuming import callbacks as callback_state
from tfbp.resuming import state as run_state
from tfbp.resuming.checkpoints import Checkpoints
from tfbp.resuming.state import Place
from tfbp.running import directory as run_directory
from tfbp.running import phases as phase_training
from tfbp.running.run import Run
from tfbp.training import loop, optimizer
from tfbp.workers import interruption


def train(it: Run, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Trains `it` from where it stands, and fills its history and result.

    Raises:
        tfbp.workers.interruption.Interrupted: it was asked to stop, and has left a checkpoint.
    """
    began = time.perf_counter()
    callbacks = keras.tree.flatten(list(callbacks))
    with FeatureCache(it.cache, it.model, it.splits, it.task, it.phases, it.seed) as cache:
        if it.directory is None:
            done, metrics = _train_phases(it, None, cache, callbacks, lambda: False)
        else:
            callback_state.warn_of_unknown(callbacks)
            folder = it.directory / run_directory.CHECKPOINTS
            saving = Checkpoints(folder, it.checkpoint_seconds, it.strategy)
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
        if it.workers.any(asked())[0]:
            phase_training.interrupt(it, checkpoints)
    if state is not None:  # Stopped after the last phase: the weights are the checkpoint's.
        frozen = phase_training.compile(it, it.phases[-1])
        run_state.restore(it.model, place, state, it.strategy)
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
