"""From examples to a verified export: the composition of all other parts.

audit → for each phase: freeze, compile, train, prove (`tfbp.running.fitting`) → evaluate → export
"""

import contextlib
import dataclasses
import os
import pathlib
import types
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf
from absl import logging

from tfbp import recipe as recipes
from tfbp import storage
from tfbp.auditing import audit
from tfbp.caching import cache as feature_cache
from tfbp.caching.cache import FeatureCache
from tfbp.data.splits import Splits
from tfbp.errors import mistake
from tfbp.exporting import versions
from tfbp.finding import Finding
from tfbp.modeling import adapters, freezing, graph
from tfbp.resuming import checkpoints as run_checkpoints
from tfbp.running import directory as run_directory
from tfbp.running import fitting, same_run
from tfbp.running import phases as phase_training
from tfbp.running import plan as planning
from tfbp.running.run import Run
from tfbp.tasks.task import Task
from tfbp.training.phase import Phase
from tfbp.workers import strategy as strategies
from tfbp.workers import workers


def fit(
    model: keras.Model,
    splits: Splits,
    task: Task,
    phases: Sequence[Phase],
    *,
    workdir: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    strategy: str | tf.distribute.Strategy | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    gradients: int = 0,
    checkpoint_seconds: float = 60.0,
    restart: bool = False,
    on_nan: str = "stop",
    cache: bool = True,
    cache_dir: str | None = None,
    cache_gb: float = 10.0,
    cached_views: int = 0,
    cache_half: bool = False,
    allow: Sequence[str] = (),
    backbone: keras.Model | Sequence[keras.Model] = (),
) -> Run:
    """Audits a model, trains it through its phases, proves each, and evaluates on every split.

    Args:
        model: any built Keras model that takes what the examples yield; made inside
            `strategy.scope()` where there are several devices.
        task: `tfbp.Classification`, `tfbp.Regression` or `tfbp.LanguageModel`.
        workdir: directory for checkpoints, history, logs, model and result; a run that was stopped
            goes on from there, one that has ended is read. None: nothing is written.
        batch_size: examples per global batch, cut to the size of the training split.
        seed: of the order of the examples and of their augmentation. Weights and dropout are drawn
            when the model is built: call `keras.utils.set_random_seed` before.
        callbacks: Keras callbacks, told of every phase.
        gradients: at each so manieth update the norms of gradients and updates are logged, see
            `tfbp.gradients.flow`; 0: never. The weights end the same, bit for bit.
        checkpoint_seconds: from one checkpoint in `workdir` to the next.
        restart: begin anew; the run that is in `workdir` is kept beside, as `<workdir>.1`.
        on_nan: at a loss or gradient that is NaN or infinite "stop", or "skip" that update; the
            tenth of a phase stops the run all the same.
        cache: whether what a phase cannot change is computed once for each example, where that
            pays, and kept on disk for other phases and runs. The weights end alike.
        cache_dir: folder of the caches; None: `tfbp` in $XDG_CACHE_HOME, or in ~/.cache.
        cache_gb: what all caches there may take together, in 10⁹ bytes; the least recently used
            ones make room for others. Examples without room are computed each time.
        cached_views: views of each augmented training example that epochs cycle through, so that
            they can be cached; 0: each epoch has its own.
        cache_half: store features as float16: half the room, 11 binary digits.
        allow: ids of the audit's findings that are accepted: ("random-frozen",); what was found
            stands in the result under "accepted".
        backbone: the pretrained models that are meant to be part of `model`, for the audit.

    Raises:
        tfbp.finding.AuditFailed: the audit found errors that `allow` does not name.
        tfbp.UserError: model, examples, task and phases do not fit together, or the loss diverged.
        tfbp.training.proof.ProofFailed: something frozen changed, or something did not learn.
    """
    strategy = strategies.resolve(strategy)
    phases = (phases,) if isinstance(phases, Phase) else tuple(phases)
    settings = batch_size, seed, strategy, gradients, checkpoint_seconds, on_nan
    caching = feature_cache.Settings(cache, cache_dir or "", cache_gb, cached_views, cache_half)
    with workers.of(strategy).watched():
        it = Run(model, splits, task, phases, *settings, caching)
        asked, source = {}, same_run.of_code()
        if workdir is not None or it.workers.count > 1:
            asked = same_run.of_fit(it)
        beside = {"source": source, "gradients": gradients, "workdir": workdir is not None}
        same_run.check_workers(it, asked | beside)
        if workdir is not None and not restart and _ended(it, workdir, asked):
            return _read(it, workdir)
        if workdir is not None:
            _check_writable(it, workdir)
        accepted = _audit(it, allow, backbone)
        with _claimed(it, workdir, asked, source, restart) as it.directory:
            fitting.train(it, callbacks)
            it.result["accepted"] = accepted
            if workdir is not None:
                it.workers.on_chief(lambda: _finish(it))
        return it


def run(recipe: types.ModuleType, config: recipes.Config) -> Run:
    """Runs a recipe: its examples, model and phases, then the export to `config.export_dir`.

    Without `config.workdir` the run goes to `runs/<recipe>/<n>`, or goes on with the newest
    unfinished one of equal settings. A run that has ended is read.

    Raises: what `fit` and `Run.export` raise.
    """
    strategy = strategies.resolve(config.strategy)
    with workers.of(strategy).watched():
        return _run(recipe, config, strategy)


def _run(recipe: types.ModuleType, config: recipes.Config, strategy: tf.distribute.Strategy) -> Run:
    name = recipes.name_of(recipe)
    exports = pathlib.Path(config.export_dir) / name
    source = same_run.of_code(pathlib.Path(recipe.__file__))
    its = workers.of(strategy)
    # Before there is a model: workers of other shapes would wait for each other.
    its.check_alike({"recipe": name, "config": same_run.of_command(config), "source": source})
    its.on_chief(lambda: versions.check_writable(exports))
    it = _build(recipe, config, strategy)
    asked = same_run.of_recipe(recipe, config) | same_run.of_run(it)
    same_run.check_workers(it, same_run.of_run(it))
    restart = config.restart
    directory = its.on_chief(lambda: str(_directory(name, config, asked)))
    if not restart and _ended(it, directory, asked):
        logging.info("%s has ended already: nothing to do.", directory)
        return _read(it, directory)
    _check_writable(it, directory, exports)
    accepted = _audit(it, config.allow)
    with _claimed(it, directory, asked, source, restart) as it.directory:
        flags = recipes.flags_text(dataclasses.replace(config, restart=False))
        its.on_chief(lambda: storage.write_text(it.directory / run_directory.FLAGS, flags))
        fitting.train(it, ())
        its.on_chief(lambda: storage.sweep(exports))
        it.result = {"recipe": name, "flags": asked["config"]} | it.result | {"accepted": accepted}
        it.export(str(exports), keep_versions=config.keep_versions)
        its.on_chief(lambda: _finish(it))
    return it


def _directory(name: str, config: recipes.Config, asked: dict) -> str | os.PathLike:
    """Returns the run's directory: what the config says, or one of its own by a number."""
    if config.workdir:
        return config.workdir
    if config.restart:  # none is in its way
        return run_directory.next_number(f"runs/{name}")
    return run_directory.next_or_unfinished(f"runs/{name}", asked)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would do, before any training.

    Attributes:
        phases: what each phase would train.
        findings: what the audit says of it, errors first, without what is accepted.
    """

    phases: tuple[planning.PhasePlan, ...]
    findings: tuple[Finding, ...]


def plan(recipe: types.ModuleType, config: recipes.Config, *, time: bool = False) -> Plan:
    """Returns what each phase of a recipe would train, and what the audit says; trains nothing.

    Args:
        time: also take a few real steps of each phase, with a model that is then dropped, and
            estimate from them how long the phase takes and how much memory.

    Raises:
        tfbp.UserError: recipe, examples and phases do not fit together; with `time`, also where
            the loss is no number at the start.
    """
    it = _build(recipe, config, strategies.resolve(config.strategy, alone=True))
    found = audit.audit(it.model, it.splits, it.task, it.phases, allow=config.allow)
    numbers = range(len(it.phases))
    return Plan(tuple(_plan_phase(it, number, time) for number in numbers), tuple(found))


def _plan_phase(it: Run, number: int, time: bool) -> planning.PhasePlan:
    phase, size, batch_size, cost = it.phases[number], it.splits.train.size, it.batch_size, None
    frozen = freezing.freeze(it.model, phase.trainable, phase.batch_norm)
    with FeatureCache(it.cache, it.model, it.splits, it.task, it.phases, it.seed) as cache:
        features = cache.outlook(number, frozen)
    if time:
        frozen = phase_training.compile(it, phase)
        cost = planning.estimate(
            it.model, it.splits, it.strategy, phase.epochs, batch_size, it.evaluate
        )
    return planning.PhasePlan.of(
        phase,
        it.model,
        frozen,
        size=size,
        batch_size=batch_size,
        features=features,
        cost=cost,
    )


def open_run(directory: str, recipes_folder: str) -> Run:
    """Returns a run that has ended, rebuilt from its directory: model, splits, history, result.

    Raises:
        tfbp.UserError: the directory holds no such run, or its examples are not what they were.
    """
    asked, _ = run_directory.read(directory), run_directory.read(directory, run_directory.RESULT)
    storage.verify(directory, run_directory.FILES)
    if "recipe" not in asked:
        raise mistake("run", "must be the directory of a recipe's run", directory)
    recipe = recipes.load(asked["recipe"], recipes_folder)
    config = recipes.from_settings(recipe.Config, asked["config"])
    it = _build(recipe, config, strategies.resolve(config.strategy, alone=True))
    if asked["examples"] != same_run.of_examples(it.splits):
        # Its test examples may be others now, and among them some that it was trained on.
        rule = "must be a run whose data is what it was trained on; its examples have changed since"
        raise mistake("run", rule, directory)
    it.task.check(it.model, it.splits.train)
    return _read(it, directory)


def _ended(it: Run, directory: str | os.PathLike, asked: dict) -> bool:
    """Tells whether a directory holds this run, and it has ended; refuses one of another run."""

    def look() -> bool:
        run_directory.check(directory, asked)
        return run_directory.ended(directory)

    return it.workers.on_chief(look)


@contextlib.contextmanager
def _claimed(
    it: Run, directory: str | os.PathLike | None, asked: dict, source: dict, restart: bool
) -> Iterator[pathlib.Path | None]:
    """Within it the directory, if there is one, is this run's; the chief claims it for all."""
    if directory is None:
        yield None
        return
    claim = run_directory.claim(directory, asked, source, restart=restart)
    with contextlib.ExitStack() as stack:
        it.workers.on_chief(lambda: str(stack.enter_context(claim)))
        yield pathlib.Path(directory)


def _build(
    recipe: types.ModuleType, config: recipes.Config, strategy: tf.distribute.Strategy
) -> Run:
    keras.utils.set_random_seed(config.seed)
    splits = recipe.data(config)
    workers.of(strategy).check_alike({"examples": same_run.of_examples(splits)})
    task = recipe.task(config, splits)
    with strategy.scope(), _precision(config.precision):
        model = recipe.model(config, splits)
    phases = recipes.phases(recipe, config)
    settings = config.batch_size, config.seed, strategy, config.gradients
    saving = config.checkpoint_seconds, config.on_nan
    where = config.cache_dir, config.cache_gb
    caching = feature_cache.Settings(config.cache, *where, config.cached_views, config.cache_half)
    return Run(model, splits, task, phases, *settings, *saving, caching)


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    """Within it, layers are made with this dtype policy of Keras."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _audit(it: Run, allow, backbone=()) -> list[dict[str, str]]:
    """Returns what the audit found and `allow` accepts; the rest is logged or raised."""
    found = audit.findings(it.model, it.splits, it.task, it.phases, allow=allow, backbone=backbone)
    return audit.enforce(found, allow)


def _check_writable(
    it: Run, directory: str | os.PathLike, exports: pathlib.Path | None = None
) -> None:
    """Refuses a model that cannot be saved so that it loads safely, and a disk without room for it.

    Raises:
        tfbp.UserError: names the layer; or path, bytes needed and bytes free.
    """
    graph.check_writable(it.model)
    whole = sum(variable.numpy().nbytes for variable in it.model.weights)
    learning = max(
        freezing.freeze(it.model, phase.trainable, phase.batch_norm).parameters
        for phase in it.phases
    )

    def look() -> None:
        # A whole one for each phase and the model; three others, with two slots and the best.
        storage.require_space(directory, whole * (len(it.phases) + 2) + 3 * 4 * 4 * learning)
        if exports:
            storage.require_space(exports, 2 * whole)

    it.workers.on_chief(look)


def _finish(it: Run) -> None:
    """Writes the model and the result into the run's directory, and drops its checkpoints."""
    with storage.replacing(it.directory / run_directory.MODEL) as path, adapters.merged(it.model):
        it.model.save(path, include_optimizer=False)
    assets = it.task.assets()
    for file, text in assets.items():
        storage.write_text(it.directory / file, text)
    run_directory.end(it.directory, it.result, list(assets))
    run_checkpoints.Checkpoints(it.directory / run_directory.CHECKPOINTS).clear()


def _read(it: Run, directory: str | os.PathLike) -> Run:
    """Gives `it` the weights, the history and the result of a directory that is whole."""
    it.directory = pathlib.Path(directory)

    def look() -> dict:
        storage.verify(directory, run_directory.FILES)
        it.model.load_weights(it.directory / run_directory.MODEL)
        result = run_directory.read(it.directory, run_directory.RESULT)
        return {"result": result, "history": run_directory.history(it.directory)}

    found = it.workers.on_chief(look)
    it.workers.share(it.model.weights)
    it.result, it.history = found["result"], found["history"]
    return it
