"""From examples to a verified export: the composition of all other parts.

`fit` and `run` build a run. `tfbp.running.execute` makes it whole, and `tfbp.running.phases` takes
it through its phases.
"""

import os
import pathlib
import types
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import logging

from tfbp import fit_arguments, storage
from tfbp import recipe as recipes
from tfbp.data.splits import Splits
from tfbp.errors import mistake
from tfbp.exporting import versions
from tfbp.modeling import precision
from tfbp.running import directory as run_directory
from tfbp.running import execute, same_run
from tfbp.running import plan as planning
from tfbp.running.plan import Plan
from tfbp.running.run import Run, check_splits
from tfbp.settings import DEFAULTS, Settings
from tfbp.tasks.task import Task
from tfbp.training import phase as training_phase
from tfbp.training.phase import Phase
from tfbp.workers import strategy as strategies
from tfbp.workers import workers


def fit(
    model: keras.Model,
    splits: Splits,
    task: Task,
    phases: Phase | Sequence[Phase],
    settings: Settings = DEFAULTS,
    *,
    strategy: tf.distribute.Strategy | None = None,
    callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] = (),
    backbone: keras.Model | Sequence[keras.Model] = (),
    **unknown: object,
) -> Run:
    """Audits a model, trains it through its phases, proves each, and evaluates on every split.

    Weights are drawn when the model is built: call `keras.utils.set_random_seed` before.

    Args:
        model: any built Keras model that takes what the examples yield; made inside
            `strategy.scope()` where there are several devices.
        task: `tfbp.Classification`, `tfbp.Regression` or `tfbp.LanguageModel`.
        settings: all else, see `tfbp.Settings`.
        strategy: the `tf.distribute` strategy that the model was made for; None: the one that
            `settings` names, or the current one.
        callbacks: Keras callbacks, called in every phase.
        backbone: the pretrained models that are meant to be part of `model`, for the audit.

    Raises:
        tfbp.finding.AuditFailed: the audit found errors that `settings.allow` does not name.
        tfbp.UserError: model, examples, task and phases do not fit together, or the loss diverged.
        tfbp.training.proof.ProofFailed: something frozen changed, or something did not learn.
    """
    fit_arguments.check(settings, strategy, unknown)
    strategy = strategies.resolve(settings.strategy if strategy is None else strategy)
    phases = training_phase.listed(phases)
    with workers.of(strategy).watched():
        run = Run(model, splits, task, phases, settings, strategy)
        compared = settings.workdir is not None or run.workers.count > 1
        identity = same_run.identity(run) if compared else {}
        code = same_run.of_code()
        return execute.execute(
            run, settings.workdir, identity, code, callbacks=callbacks, backbone=backbone
        )


def run(recipe: types.ModuleType, config: recipes.Config) -> Run:
    """Runs a recipe: its examples, model and phases, then the export to `config.export_dir`.

    Without `config.workdir` the run goes to `runs/<recipe>/<n>`, or goes on with the newest
    unfinished one of equal settings. A run that has ended is read.

    Args:
        recipe: a module with a recipe's parts (`from recipes import mlp`).
        config: `recipe.Config(…)`.

    Raises: what `fit` and `Run.export` raise.
    """
    recipes.check(recipe, config)
    strategy = strategies.resolve(config.strategy or "auto")
    processes, name = workers.of(strategy), recipes.name_of(recipe)
    exports = pathlib.Path(config.export_dir) / name
    code = same_run.of_code(pathlib.Path(recipe.__file__ or ""))
    with processes.watched():
        # Before there is a model: workers of other shapes would wait for each other.
        shared = {"recipe": name, "config": config.counting("run", "workers"), "source": code}
        processes.check_alike(shared)
        processes.on_chief(lambda: versions.check_writable(exports))
        built = build(recipe, config, strategy)
        for phase, replaced in recipes.overridden(recipe, config).items():
            for setting, value in replaced.items():
                given = getattr(config, setting)
                logging.info("%s: %s %s (the recipe's phase: %s)", phase, setting, given, value)
        identity = same_run.identity(built)
        workdir = processes.on_chief(lambda: _workdir(name, config, identity))
        return execute.execute(built, workdir, identity, code, exports=exports)


def _workdir(name: str, config: recipes.Config, identity: dict) -> str:
    """Returns the run's directory: what the config says, or one of its own by a number."""
    if config.workdir:
        return config.workdir
    if config.restart:  # none is in its way
        return str(run_directory.next_number(f"runs/{name}"))
    return str(run_directory.next_or_unfinished(f"runs/{name}", identity))


def plan(recipe: types.ModuleType, config: recipes.Config, *, time: bool = False) -> Plan:
    """Returns what each phase of a recipe would train, and what the audit says; trains nothing.

    Args:
        time: also take a few real steps of each phase, with a model that is then dropped, and
            estimate from them how long the phase takes and how much memory.

    Raises:
        tfbp.UserError: recipe, examples and phases do not fit together; with `time`, also where
            the loss is not finite at the start.
    """
    recipes.check(recipe, config)
    built = build(recipe, config, strategies.resolve(config.strategy or "auto", alone=True))
    return planning.of(built, recipes.overridden(recipe, config), time=time)


def load(directory: str | os.PathLike, recipes_folder: str | os.PathLike) -> Run:
    """Returns a run that has ended, rebuilt from its directory: model, splits, history, result.

    Raises:
        tfbp.UserError: the directory holds no such run, or its examples are not what they were.
    """
    identity = run_directory.read(directory)
    run_directory.read(directory, run_directory.RESULT)
    storage.verify(directory, run_directory.FILES)
    if not identity.get("recipe"):
        raise mistake("run", "must be the directory of a recipe's run", directory)
    recipe = recipes.load(identity["recipe"], recipes_folder)
    config = recipe.Config.from_json(identity["config"])
    built = build(recipe, config, strategies.resolve(config.strategy or "auto", alone=True))
    if identity["examples"] != same_run.of_examples(built.splits):
        # Its test examples may be others now, and among them some that it was trained on.
        rule = "must be a run whose data is what it was trained on; its examples have changed since"
        raise mistake("run", rule, directory)
    built.task.check(built.model, built.splits.train)
    return execute.read(built, directory)


def build(
    recipe: types.ModuleType, config: recipes.Config, strategy: tf.distribute.Strategy
) -> Run:
    """Returns the run of a recipe, untrained: its examples, task, model and phases.

    Raises:
        tfbp.UserError: they do not fit together.
    """
    keras.utils.set_random_seed(config.seed)
    phases = recipes.phases(recipe, config)
    splits = recipe.data(config)
    check_splits(splits)
    workers.of(strategy).check_alike({"examples": same_run.of_examples(splits)})
    task = recipe.task(config, splits)
    with strategy.scope(), precision.policy(config.precision):
        model = recipe.model(config, splits)
    return Run(model, splits, task, phases, config, strategy, recipes.reference(recipe))
