"""Before training, the plan: what each phase would train, at what rate, for how long."""

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from tfbp.auditing import audit
from tfbp.caching.cache import FeatureCache, Outlook
from tfbp.finding import Finding
from tfbp.modeling import freezing, paths
from tfbp.modeling.freezing import Frozen
from tfbp.running import phases
from tfbp.running.run import Run
from tfbp.training import batches, loop, optimizer
from tfbp.training.phase import Phase

# Steps that an estimate times at least, after the first call, which traces.
TIMED = 2


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers with weights, of one nested model, whose names begin alike.

    Attributes:
        name: the path of its only layer, or how their paths begin, and "*": `vgg16/block5_conv*`.
        layers: number of layers.
        trains: number of values that learn.
        frozen: number of values that may not change.
        statistics: number of values that training moves without learning them, such as the moving
            averages of a BatchNormalization.
        rates: the (peak) learning rates that occur, lowest first; none where nothing learns.
    """

    name: str
    layers: int
    trains: int
    frozen: int
    statistics: int
    rates: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a phase is estimated to take.

    Attributes:
        seconds: the first step, which traces, the others at the pace of two timed ones, and the
            validation after each epoch at the pace of two timed batches.
        memory: bytes: the most that this process has held in main memory up to the end of the
            timed steps. All of a run's parts are in it: examples that are held there, weights,
            the optimizer's state, activations. The memory of a GPU is not.
    """

    seconds: float
    memory: int


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """What a phase would train.

    Attributes:
        phase: its settings.
        overridden: of these, name → the recipe's own value, which the config gives another.
        groups: all layers that have weights, in the order of the graph.
        steps: batches in the whole phase.
        updates: updates in the whole phase: one for each `phase.accumulate` batches of an epoch.
        features: what a cache of features would do in it.
        cost: the estimate of what it takes, without a cache; None: there is none.
    """

    phase: Phase
    overridden: Mapping[str, object]
    groups: tuple[Group, ...]
    steps: int
    updates: int
    features: Outlook
    cost: Cost | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would do, before any training.

    Attributes:
        phases: what each phase would train.
        findings: what the audit says of it, errors first, without what is accepted.
    """

    phases: tuple[PhasePlan, ...]
    findings: tuple[Finding, ...]


def of(run: Run, overridden: Mapping[str, Mapping[str, object]], *, time: bool = False) -> Plan:
    """Returns the plan of a run.

    Args:
        overridden: name of a phase → see `PhasePlan`.
        time: whether to estimate the cost of each phase, by a few steps of it: weights move.

    Raises:
        tfbp.UserError: with `time`, where the loss is not finite at the start.
    """
    findings = audit.audit(run.model, run.splits, run.task, run.phases, run.settings)
    plans = (
        of_phase(run, index, overridden.get(phase.name, {}), time=time)
        for index, phase in enumerate(run.phases)
    )
    return Plan(tuple(plans), tuple(findings))


def of_phase(
    run: Run, index: int, overridden: Mapping[str, object], *, time: bool = False
) -> PhasePlan:
    """Returns the plan of one phase of a run, see `of`."""
    phase, size, cost = run.phases[index], run.splits.train.size, None
    frozen = freezing.freeze(run.model, phase.trainable, phase.batch_norm)
    with FeatureCache(run.settings, run.model, run.splits, run.task, run.phases) as cache:
        features = cache.outlook(index, frozen)
    if time:
        frozen = phases.compile(run, phase)
        cost = _estimate(run, phase)
    return PhasePlan(
        phase,
        overridden,
        groups(run.model, frozen, optimizer.rates(phase, frozen)),
        phase.epochs * batches.steps_per_epoch(size, run.batch_size),
        phase.epochs * batches.updates_per_epoch(size, run.batch_size, phase.accumulate),
        features,
        cost,
    )


def groups(model: keras.Model, frozen: Frozen, rates: Mapping[str, float]) -> tuple[Group, ...]:
    """Returns the layers of a model that have weights, in groups.

    Args:
        frozen: how a phase divides the model.
        rates: path → rate of the layers that learn.
    """
    members: dict[str, dict[str, keras.layers.Layer]] = {}
    for path, layer in paths.with_weights(model).items():
        members.setdefault(_group(path), {})[path] = layer
    return tuple(_summary(each, frozen, rates) for each in members.values())


def _group(path: str) -> str:
    """Returns what layers of a group share: the nesting models, and the name up to the word that
    carries the first number, a last one left out: `vgg16/block5_conv1` → `vgg16/block5`,
    `body/stage_0_block_1_norm` → `body/stage_0`, `head_2` → `head`, `stem_conv` → `stem`.
    """
    parents, slash, name = path.rpartition("/")
    words = name.split("_")
    while len(words) > 1 and words[-1].isdecimal():
        words.pop()
    numbered = (i for i, word in enumerate(words) if any(map(str.isdecimal, word)))
    return parents + slash + "_".join(words[: next(numbered, 0) + 1])


def _summary(
    layers: dict[str, keras.layers.Layer], frozen: Frozen, rates: Mapping[str, float]
) -> Group:
    learning = [_size(frozen.learning.get(path, ())) for path in layers]
    statistics = [_size(frozen.statistics.get(path, ())) for path in layers]
    every = [_size(layer.weights) for layer in layers.values()]
    found = sorted({rates[path] for path in layers if path in rates})
    return Group(
        _shared(layers) + "*" if len(layers) > 1 else next(iter(layers)),
        len(layers),
        trains=sum(learning),
        frozen=sum(every) - sum(learning) - sum(statistics),
        statistics=sum(statistics),
        rates=tuple(found),
    )


def _size(variables: Iterable[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def _shared(names: Iterable[str]) -> str:
    """Returns the longest beginning that all names have."""
    low, high = min(names), max(names)  # of all, these two differ first
    pairs = enumerate(zip(low, high, strict=False))
    return low[: next((i for i, (one, other) in pairs if one != other), len(low))]


def _estimate(run: Run, phase: Phase) -> Cost:
    """Takes a few steps of a phase, and returns what the whole of it would take.

    Args:
        run: its model is compiled for the phase, and built. Its weights move.

    Raises:
        tfbp.training.loop.Diverged: the loss of these steps is not finite.
    """
    timer, splits, batch_size = _Timer(), run.splits, run.batch_size
    loop.train(
        run.model,
        splits.train,
        run.strategy,
        loop.Hooks(keras.callbacks.CallbackList([timer], model=run.model)),
        batches.Batching(batch_size, accumulate=phase.accumulate),
        epochs=1 + TIMED,  # where an epoch is but one step, the timer has as many as it needs
    )
    steps = phase.epochs * batches.steps_per_epoch(splits.train.size, batch_size)
    seconds = timer.first + max(0, steps - timer.traced) * timer.seconds / timer.steps
    if splits.validation:
        size = splits.validation.size
        few = splits.validation.take(np.arange(min(size, TIMED * batch_size)))
        run.evaluator(few, batch_size)  # traces
        began = time.perf_counter()
        run.evaluator(few, batch_size)
        seconds += phase.epochs * (time.perf_counter() - began) * size / few.size
    return Cost(seconds, _peak())


class _Timer(keras.callbacks.Callback):
    """Times the first call of a loop, of one update, and the next until there are enough steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.traced = 0.0, 0
        self.seconds, self.steps = 0.0, 0

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self._step, self._began = batch, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        seconds, steps = time.perf_counter() - self._began, batch + 1 - self._step
        if not self.traced:
            self.first, self.traced = seconds, steps
            return
        self.seconds += seconds
        self.steps += steps
        self.model.stop_training = self.steps >= TIMED


def _peak() -> int:
    """Returns the largest resident set of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, kilobytes on Linux
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
