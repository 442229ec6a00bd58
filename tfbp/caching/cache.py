"""The outputs of a frozen prefix are computed once for each example; the phases learn from these.

with FeatureCache(settings, model, splits, task, phases) as cache:
    inputs = cache.inputs(index, frozen)  # the model is frozen for the phase, its weights are there
    loop.train(inputs.model, inputs.train, …)  # as with the model and its examples
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Self

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfbp import fingerprint
from tfbp.caching import budget, features
from tfbp.caching import examples as cached_examples
from tfbp.caching.examples import CachedExamples
from tfbp.caching.features import Features
from tfbp.caching.prefix import OnFeatures, Prefix, find
from tfbp.caching.row_file import Progress
from tfbp.data import structures
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError
from tfbp.modeling import freezing, keras_graph
from tfbp.modeling.freezing import Frozen
from tfbp.settings import Settings
from tfbp.tasks.task import Task
from tfbp.training.phase import Phase
from tfbp.version import __version__

# When a cache pays, estimated from what was measured on 2 cores: VGG16's forward pass, rows of
# 2 to 64 KB from the page cache, and tracing, opening, and checking of a cache of 1,400 examples.
MULTIPLY_ADDS_PER_SECOND = 6e10
BYTES_PER_SECOND = 1e9
SECONDS_TO_OPEN = 0.5
_CHANGES = "augmentation makes each epoch's images anew; `cached_views=K` keeps K of each"


@dataclasses.dataclass(frozen=True)
class PhaseInputs:
    """What a phase trains and validates on: features, or the examples themselves.

    Attributes:
        model: takes their x; all else of it is the whole model's.
        train, validation: the examples.
        features: "cut", "saves" and "rows" as of an `Outlook`; or "obstacle".
    """

    model: keras.Model | OnFeatures
    train: Examples
    validation: Examples | None
    features: dict[str, object]


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What caching would do in a phase.

    Attributes:
        cut: paths of the layers, or names of the operations, that make the features.
        saves: share of a forward pass's multiply-adds that is made only once for an example.
        rows: examples, and views of them, that are cached.
        bytes: their size on disk.
        cached: whether they are.
        obstacle: why they are not, or not all; "": they are.
    """

    cut: tuple[str, ...] = ()
    saves: float = 0.0
    rows: int = 0
    bytes: int = 0
    cached: bool = False
    obstacle: str = ""


class FeatureCache:
    """The feature caches of one run, which are let go of at the end of the `with` block.

    Args:
        settings: of the run; `seed` is that of its augmentation.
        model, splits, task, phases: of the run. Only what trains or validates is cached: test
            examples are seen once.
    """

    def __init__(
        self,
        settings: Settings,
        model: keras.Model,
        splits: Splits,
        task: Task,
        phases: Sequence[Phase],
    ):
        self._settings, self._seed = settings, settings.seed
        self._model, self._task, self._phases = model, task, phases
        self._train, self._validation = splits.train, splits.validation
        self._open: dict[str, Features] = {}
        self._described: dict[int, str] = {}
        self._later: dict[int, Prefix] = {}  # of later phases, as they will be then

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._keep(())

    def inputs(
        self,
        index: int,
        frozen: Frozen,
        progress: Callable[[str], Progress] = lambda name: lambda done, total: None,
    ) -> PhaseInputs:
        """Computes the features of a phase that are not there yet, and returns its inputs.

        Features at the cuts of later phases are computed in the same pass, where these cuts come
        before this one's and nothing in front of them changes until then.

        Args:
            index: of the phase.
            frozen: returned by `freezing.freeze` for it; the model's weights are those that the
                phase begins with.
            progress: from the name of a split to a callback, which gets the number of features
                that are there, and of all.
        """
        if self._settings.cache and self._changes:  # Whatever the model is.
            return self.without_features(_CHANGES)
        prefix, obstacle = self._prefix(index, frozen)
        if prefix is None or obstacle:
            return self.without_features(obstacle)
        chain = [prefix, *self._prefixes_inside(index, prefix)]
        parts = [part for part in (self._train, self._validation) if part]
        self._keep({self._key(each, part) for each in chain for part in parts})
        try:
            for part in parts:  # The features of this phase come first.
                self._opened(prefix, part)
            train = self._filled(self._train, chain, progress("train"))
            validation = self._validation and self._filled(
                self._validation, chain, progress("validation")
            )
        except UserError as error:
            logging.warning("Features are not cached. %s", error)
            return self.without_features(str(error))
        if not train.filled:
            return self.without_features("there is no space for them")
        summary = {"cut": list(prefix.cut), "saves": prefix.saves, "rows": train.filled}
        return PhaseInputs(prefix.training_model(self._model), train, validation, summary)

    def without_features(self, obstacle: str) -> PhaseInputs:
        """Returns the model and the examples themselves, and why."""
        self._keep(())
        return PhaseInputs(self._model, self._train, self._validation, {"obstacle": obstacle})

    def outlook(self, index: int, frozen: Frozen) -> Outlook:
        """Says what `inputs` would do for a phase. Nothing is computed or written."""
        prefix, obstacle = self._find(index, frozen)
        if prefix is None:
            return Outlook(obstacle=obstacle)
        parts = [part for part in (self._train, self._validation) if part]
        rows = sum(map(cached_examples.rows, parts))
        size = features.row_bytes(prefix.specs, half=self._settings.cache_half)
        if obstacle:
            return Outlook(prefix.cut, prefix.saves, rows, rows * size, obstacle=obstacle)
        limit = self._settings.cache_gb * features.GB
        try:
            fits = min(rows, budget.available(folder_of(self._settings), "planned", limit) // size)
        except UserError as error:
            return Outlook(prefix.cut, prefix.saves, rows, rows * size, obstacle=str(error))
        if fits < rows:
            obstacle = f"only {fits:,} fit, the others are computed each time"
        return Outlook(prefix.cut, prefix.saves, rows, rows * size, fits > 0, obstacle)

    def _find(self, index: int, frozen: Frozen) -> tuple[Prefix | None, str]:
        """Returns the prefix of a phase, and why it is not to be cached; "": it is."""
        if not self._settings.cache:
            return None, "the cache is off"
        prefix = find(self._model, frozen, self._train.spec[0])
        if prefix is None:
            return None, "no part of the model gives the same in each epoch"
        return prefix, self._obstacle(index, prefix)

    def _prefix(self, index: int, frozen: Frozen) -> tuple[Prefix | None, str]:
        """Returns the same as `_find`, which an earlier phase may have done already."""
        known = self._later.pop(index, None)
        return (known, "") if known else self._find(index, frozen)

    def _obstacle(self, index: int, prefix: Prefix) -> str:
        """Returns why a prefix is not worth caching in a phase; "": it is."""
        if self._changes:
            return _CHANGES
        if self._task_reads_x:
            return "the task measures what the model is given, which would be features"
        readings: float = self._phases[index].epochs
        rows = cached_examples.rows(self._train)
        if self._train.views:
            readings /= self._train.views
        elif index == len(self._phases) - 1:
            readings += 1  # The result measures the training examples once more.
        if readings <= 1:
            return "each example is read only once"
        if seconds_saved(prefix, self._settings.cache_half, rows, readings) <= 0:
            return "reading it would take longer than computing it"
        return ""

    @property
    def _changes(self) -> bool:
        return self._train.is_augmented and not self._train.views

    @functools.cached_property
    def _task_reads_x(self) -> bool:
        x, y = structures.batched(self._train.spec)
        graph = keras_graph.graph_of(self._model)
        assert graph is not None  # or there would be no prefix
        outputs = keras_graph.graph_ends(graph)["outputs"]
        if not structures.is_nested(outputs):  # a tensor, or a list of one
            (outputs,) = self._model.outputs
        outputs = structures.each(lambda each: tf.TensorSpec(each.shape, each.dtype), outputs)
        measure = tf.function(self._task.per_example, autograph=False)
        metrics = measure.get_concrete_function(x, y, outputs)
        given = metrics.inputs[: len(structures.leaves(x))]
        return any(tensor.consumers() for tensor in given)

    def _prefixes_inside(self, index: int, prefix: Prefix) -> list[Prefix]:
        """Returns the prefixes of later phases that this phase's one contains, and all between."""
        later, between = [], [prefix]
        for number in range(index + 1, len(self._phases)):
            other, obstacle = self._prefix(number, self._freeze(number))
            if other is None or obstacle:
                break
            if all(each.contains(other) for each in between):
                later.append(other)
                self._later[number] = other
            between.append(other)
        self._freeze(index)
        return later

    def _freeze(self, index: int) -> Frozen:
        phase = self._phases[index]
        return freezing.freeze(self._model, phase.trainable, phase.batch_norm)

    def _filled(
        self, examples: Examples, chain: Sequence[Prefix], progress: Progress
    ) -> CachedExamples:
        """Returns the examples' features at the first prefix of a chain; those at the others are
        computed too, if there is space for them.

        The smallest prefix is applied to the examples, each next one to the features before.
        """
        first, *rest = chain
        caches: dict[Prefix, Features] = {first: self._opened(first, examples)}
        for each in rest:
            cache = self._opened(each, examples)
            if cache.fits == cache.count:
                caches[each] = cache
            else:
                self._keep(self._open.keys() - {self._key(each, examples)})
        earlier: tuple[Prefix, Features] | None = None
        for each in sorted(caches, key=lambda each: each.multiply_adds):
            compute = self._computing(each, examples, earlier)
            caches[each].fill(compute, progress)
            if not self._settings.cache_half:  # Rounded once, not once for each cut.
                earlier = each, caches[each]
        return CachedExamples(examples, first, caches[first], self._seed)

    def _opened(self, prefix: Prefix, examples: Examples) -> Features:
        key = self._key(prefix, examples)
        if key not in self._open:
            settings = self._settings
            self._open[key] = Features(
                folder_of(settings),
                key,
                cached_examples.rows(examples),
                prefix.specs,
                limit_gb=settings.cache_gb,
                half=settings.cache_half,
            )
        return self._open[key]

    def _keep(self, keys: Collection[str]) -> None:
        """Lets go of the caches that are open, but for some."""
        for key in self._open.keys() - set(keys):
            self._open.pop(key).close()

    def _key(self, prefix: Prefix, examples: Examples) -> str:
        if id(examples) not in self._described:
            self._described[id(examples)] = cached_examples.fingerprint_of_x(examples, self._seed)
        computed = prefix.fingerprint, self._described[id(examples)]
        return fingerprint.of_json([__version__, tf.__version__, keras.__version__, *computed])

    def _computing(
        self, prefix: Prefix, examples: Examples, earlier: tuple[Prefix, Features] | None
    ) -> Callable[[np.ndarray], list[tf.Tensor]]:
        """Returns a function from rows to their features, by earlier ones where there are any."""
        compiled = {"jit_compile": self._model.jit_compile, "reduce_retracing": True}
        rows = tf.TensorSpec([None], tf.int64)
        apply = tf.function(prefix.features, autograph=False, **compiled)

        @tf.function(input_signature=[rows], autograph=False)
        def whole(rows: tf.Tensor) -> list[tf.Tensor]:
            return apply(cached_examples.read_x(examples, rows, self._seed), training=False)

        if earlier is None:
            return whole
        before, cache = earlier
        apply_rest = tf.function(prefix.beyond(before), autograph=False, **compiled)

        @tf.function(input_signature=[rows], autograph=False)
        def rest(rows: tf.Tensor) -> list[tf.Tensor]:
            return apply_rest(cache.read(rows), training=False)

        return lambda rows: (rest if rows[-1] < cache.filled else whole)(rows)


def folder_of(settings: Settings) -> pathlib.Path:
    """Returns the folder of the caches: `cache_dir`, or `tfbp` in $XDG_CACHE_HOME or ~/.cache."""
    if settings.cache_dir:
        return pathlib.Path(settings.cache_dir)
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(caches) / "tfbp"


def seconds_saved(prefix: Prefix, half: bool, rows: int, readings: float) -> float:
    """Returns the time that a cache saves, by estimate, when each row is read some times."""
    computing = prefix.multiply_adds / MULTIPLY_ADDS_PER_SECOND
    reading = features.row_bytes(prefix.specs, half=half) / BYTES_PER_SECOND
    # It is computed once all the same, then written, and read back to be checked.
    return rows * ((readings - 1) * computing - (readings + 2) * reading) - SECONDS_TO_OPEN
