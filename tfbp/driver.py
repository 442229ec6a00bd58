"""One run, from examples to a verified export: the composition of all other parts.

For each phase: freeze → new optimizer → compile → train → prove. Then evaluate, and export.
"""

import dataclasses
import json
import pathlib
import platform
import time
import types
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import logging

from tfbp import fingerprint, run_directory, storage
from tfbp import recipe as recipes
from tfbp.data.examples import Examples, Splits
from tfbp.errors import mistake
from tfbp.exporting import versions
from tfbp.modeling import freezing
from tfbp.reporting.history import History
from tfbp.reporting.progress import Progress
from tfbp.reporting.tensorboard import TensorBoard
from tfbp.tasks.task import Task
from tfbp.training import batches, checkpoint, loop, optimizer
from tfbp.training import strategy as strategies
from tfbp.training.audit import PhasePlan, Proof
from tfbp.training.checkpoint import Place
from tfbp.training.phase import Phase


@dataclasses.dataclass
class Run:
    """A model, what it learns from and how; after training, with its history and result.

    Attributes:
        model, splits, task, phases, batch_size, seed: as given to `fit`.
        strategy: the `tf.distribute` strategy that the model was built for.
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
    directory: pathlib.Path | None = None
    history: list[dict] = dataclasses.field(default_factory=list)
    result: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.batch_size < 1:
            raise mistake("batch_size", "must be at least 1", self.batch_size)
        if not self.phases:
            raise mistake("phases", "must be one or more", self.phases)
        if self.batch_size > self.splits.train.size:
            logging.warning(
                "`batch_size` is cut from %d to the %d training examples.",
                self.batch_size,
                self.splits.train.size,
            )
            self.batch_size = self.splits.train.size
        for phase in self.phases:
            freezing.freeze(self.model, phase.trainable, phase.batch_norm)
        self.task.check(self.model, self.splits.train)
        self._measure = loop.Measure(self.model, self.task, self.strategy)

    def evaluate(self, examples: Examples) -> dict:
        """Returns the task's metrics on examples, "loss" first, each example counted once."""
        return self.task.evaluate(self._measure(examples, self.batch_size), examples)

    def export(self, folder: str) -> str:
        """Publishes the model as the next version in `folder`, and returns the version's path.

        Raises:
            tfbp.UserError: the folder cannot be written.
            tfbp.exporting.parity.ParityError: the export does not answer like the model.
        """
        held_out = self.splits.test or self.splits.validation or self.splits.train
        path, parity = versions.export(self.model, self.task, held_out, folder, details=self.result)
        self.result["export"] = {"path": str(path), "parity": parity}
        return str(path)


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
) -> Run:
    """Trains a model through its phases, proves each, and evaluates on every split.

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

    Raises:
        tfbp.UserError: model, examples, task and phases do not fit together, or the loss diverged.
        tfbp.training.audit.ProofFailed: something frozen changed, or something did not learn.
    """
    strategy = strategies.resolve(strategy)
    it = Run(model, splits, task, tuple(phases), batch_size, seed, strategy)
    if workdir is not None:
        asked = {
            "batch_size": batch_size,
            "examples": splits.train.fingerprint,
            "model": fingerprint.of_json([weight.shape for weight in model.weights]),
            "phases": [dataclasses.asdict(phase) for phase in phases],
            "seed": seed,
            "task": type(task).__name__,
        }
        it.directory = run_directory.claim(workdir, asked)
        if run_directory.ended(it.directory):
            return _read(it)
    _train(it, callbacks)
    _finish(it)
    return it


def run(recipe: types.ModuleType, config: recipes.Config) -> Run:
    """Runs a recipe: its examples, model and phases, then the export to `config.export_dir`.

    Without `config.workdir` the run goes to `runs/<recipe>/<n>`, or goes on with the newest
    unfinished one of equal settings. A run that has ended is read.

    Raises: what `fit` and `Run.export` raise.
    """
    name = recipes.name_of(recipe)
    asked = _asked(recipe, config)
    directory = config.workdir or run_directory.next_or_unfinished(f"runs/{name}", asked)
    run_directory.check(directory, asked)
    exports = pathlib.Path(config.export_dir) / name
    versions.check_writable(exports)
    it = _build(recipe, config)
    it.directory = run_directory.claim(directory, asked)
    if run_directory.ended(it.directory):
        logging.info("%s has ended already: nothing to do.", it.directory)
        return _read(it)
    storage.write_text(it.directory / run_directory.FLAGS, recipes.flags_text(config))
    _train(it, ())
    it.result = {"recipe": name} | it.result
    it.export(str(exports))
    _finish(it)
    return it


def plan(recipe: types.ModuleType, config: recipes.Config) -> list[PhasePlan]:
    """Returns what each phase of a recipe would train, before any training."""
    it = _build(recipe, config)
    steps = batches.steps_per_epoch(it.splits.train.size, it.batch_size)
    return [
        PhasePlan.of(phase, freezing.freeze(it.model, phase.trainable, phase.batch_norm), steps)
        for phase in it.phases
    ]


def open_run(directory: str, recipes_folder: str) -> Run:
    """Returns a run that has ended, rebuilt from its directory: model, splits, history, result.

    Raises:
        tfbp.UserError: the directory holds no such run.
    """
    asked, _ = run_directory.read(directory), run_directory.read(directory, run_directory.RESULT)
    if "recipe" not in asked:
        raise mistake("run", "must be the directory of a recipe's run", directory)
    recipe = recipes.load(asked["recipe"], recipes_folder)
    it = _build(recipe, recipes.from_settings(recipe.Config, asked["config"]))
    it.directory = pathlib.Path(directory)
    return _read(it)


def _asked(recipe: types.ModuleType, config: recipes.Config) -> dict:
    """Returns what makes a run the same run: not where it is kept or exported to."""
    settings = recipes.settings(config)
    del settings["workdir"], settings["export_dir"]
    return {"recipe": recipe.reference, "config": settings}


def _build(recipe: types.ModuleType, config: recipes.Config) -> Run:
    strategy = strategies.resolve(config.strategy)
    keras.utils.set_random_seed(config.seed)
    splits = recipe.data(config)
    task = recipe.task(config, splits)
    with strategy.scope():
        model = recipe.model(config, splits)
    phases = tuple(recipe.phases(config))
    return Run(model, splits, task, phases, config.batch_size, config.seed, strategy)


def _train(it: Run, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Trains `it` from where it stands, and fills its history and result."""
    began = time.perf_counter()
    checkpoints = it.directory and checkpoint.Checkpoints(it.directory / run_directory.CHECKPOINTS)
    place, state = (checkpoints and checkpoints.newest()) or (Place(), None)
    it.history = list(place.history)
    done = list(place.phases)
    while place.phase < len(it.phases):
        done.append(_train_phase(it, place, state, checkpoints, callbacks))
        place, state = Place(place.phase + 1, 0, tuple(it.history), tuple(done)), None
        if checkpoints:
            checkpoints.save(it.model, place)
    if state is not None:  # Stopped after the last phase: the weights are the checkpoint's.
        _compile(it, it.phases[-1])
        checkpoint.restore(it.model, place, state)
    # The model goes back to its owner as plain Keras compiles it: it saves and loads without tfbp.
    with it.strategy.scope():
        it.model.compile(it.model.optimizer.rule, loss=it.task.loss(), metrics=it.task.metrics())
    splits = {"train": it.splits.train, "validation": it.splits.validation, "test": it.splits.test}
    splits = {name: examples for name, examples in splits.items() if examples is not None}
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


def _compile(it: Run, phase: Phase) -> freezing.Frozen:
    frozen = freezing.freeze(it.model, phase.trainable, phase.batch_norm)
    steps = phase.epochs * batches.steps_per_epoch(it.splits.train.size, it.batch_size)
    with it.strategy.scope():
        it.model.compile(
            optimizer=optimizer.build(phase, steps),
            loss=it.task.loss(),
            metrics=it.task.metrics(),
        )
    loop.build(it.model, it.splits.train, it.strategy)
    return frozen


def _train_phase(it: Run, place: Place, state, checkpoints, callbacks) -> dict:
    """Trains one phase from `place`, and returns its record for the result."""
    phase = it.phases[place.phase]
    began = time.perf_counter()
    frozen = _compile(it, phase)
    if state is not None:
        checkpoint.restore(it.model, place, state)
    proof = Proof(frozen, place.before)
    place = dataclasses.replace(place, before=proof.before)
    steps = batches.steps_per_epoch(it.splits.train.size, it.batch_size)

    def save_if_due(step: int) -> None:
        if checkpoints and checkpoints.due():
            checkpoints.save(
                it.model, dataclasses.replace(place, step=step, history=tuple(it.history))
            )

    loop.train(
        it.model,
        it.splits.train,
        it.strategy,
        epochs=phase.epochs,
        batch_size=it.batch_size,
        seed=it.seed,
        start=place.step,
        callbacks=_callbacks(it, place.phase, steps, callbacks),
        validate=it.splits.validation and (lambda: _numbers(it.evaluate(it.splits.validation))),
        after_call=save_if_due,
    )
    return {
        "name": phase.name,
        "trained": list(frozen.trainable),
        "parameters": frozen.parameters,
        "epochs": phase.epochs,
        "steps": phase.epochs * steps,
        "seconds": round(time.perf_counter() - began, 3),
        "proof": proof.check(),
    }


def _callbacks(it: Run, index: int, steps: int, callbacks) -> keras.callbacks.CallbackList:
    phase = it.phases[index]
    own = [_Rows(phase.name, it.history)]
    if it.directory:
        own.append(History(it.directory / run_directory.HISTORY, it.history))
        own.append(TensorBoard(it.directory / run_directory.TENSORBOARD / phase.name))
    own.append(Progress(phase.name, index + 1, len(it.phases), phase.epochs, steps))
    return keras.callbacks.CallbackList(
        [*own, *callbacks], model=it.model, epochs=phase.epochs, steps=steps, verbose=0
    )


class _Rows(keras.callbacks.Callback):
    """Adds a row to the history for each epoch."""

    def __init__(self, phase: str, rows: list[dict]):
        super().__init__()
        self._phase, self._rows = phase, rows

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = round(time.perf_counter() - self._began, 3)
        self._rows.append({"phase": self._phase, "epoch": epoch + 1, "seconds": seconds, **logs})


def _numbers(metrics: dict) -> dict[str, float]:
    """Returns what can be shown beside the loss: no reports."""
    return {name: value for name, value in metrics.items() if not isinstance(value, dict)}


def _finish(it: Run) -> None:
    """Writes the model and `result.json` into the run's directory, and drops its checkpoints."""
    if it.directory is None:
        return
    it.model.save(it.directory / run_directory.MODEL, include_optimizer=False)
    for file, text in it.task.assets().items():
        storage.write_text(it.directory / file, text)
    text = json.dumps(it.result, indent=2) + "\n"
    storage.write_text(it.directory / run_directory.RESULT, text)
    checkpoint.Checkpoints(it.directory / run_directory.CHECKPOINTS).clear()


def _read(it: Run) -> Run:
    """Gives `it` the weights, the history and the result of its directory."""
    it.model.load_weights(it.directory / run_directory.MODEL)
    it.result = run_directory.read(it.directory, run_directory.RESULT)
    it.history = run_directory.history(it.directory)
    return it
