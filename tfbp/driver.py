"""One run, from examples to a verified export: the composition of all other parts.

For each phase: freeze → new optimizer → compile → train → prove. Then evaluate, and export.
"""

import contextlib
import dataclasses
import json
import pathlib
import platform
import time
import types
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf
from absl import logging

from tfbp import fingerprint, run_directory, storage
from tfbp import recipe as recipes
from tfbp.auditing import audit
from tfbp.data.examples import Examples, Splits
from tfbp.errors import mistake
from tfbp.exporting import versions
from tfbp.modeling import adapters, freezing
from tfbp.reporting.gradients import GradientFlow
from tfbp.reporting.history import History
from tfbp.reporting.progress import Progress
from tfbp.reporting.tensorboard import TensorBoard
from tfbp.tasks.task import Task
from tfbp.training import batches, checkpoint, loop, optimizer
from tfbp.training import plan as planning
from tfbp.training import proof as proving
from tfbp.training import strategy as strategies
from tfbp.training.checkpoint import Place
from tfbp.training.early_stopping import EarlyStopping
from tfbp.training.phase import Phase


@dataclasses.dataclass
class Run:
    """A model, what it learns from and how; after training, with its history and result.

    Attributes:
        model, splits, task, phases, batch_size, seed: as given to `fit`.
        strategy: the `tf.distribute` strategy that the model was built for.
        gradients: updates from one log of gradient norms to the next; 0: none.
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
    directory: pathlib.Path | None = None
    history: list[dict] = dataclasses.field(default_factory=list)
    result: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.batch_size < 1:
            raise mistake("batch_size", "must be at least 1", self.batch_size)
        if not isinstance(self.gradients, int) or self.gradients < 0:
            raise mistake("gradients", "must be zero or a positive whole number", self.gradients)
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
            frozen = freezing.freeze(self.model, phase.trainable, phase.batch_norm)
            optimizer.rates(phase, frozen)
            if phase.early_stopping is not None and self.splits.validation is None:
                rule = "must be None where there are no validation examples"
                raise mistake("early_stopping", rule, phase.early_stopping)
        self._measure = loop.Measure(self.model, self.task, self.strategy)

    def evaluate(self, examples: Examples) -> dict:
        """Returns the task's metrics on examples, "loss" first, each example counted once."""
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
            `tfbp.reporting.gradients`; 0: never. The weights end the same, bit for bit.
        allow: ids of the audit's findings that are accepted: ("random-frozen",); what was found
            stands in the result under "accepted".
        backbone: the pretrained models that are meant to be part of `model`, for the audit.

    Raises:
        tfbp.auditing.finding.AuditFailed: the audit found errors that `allow` does not name.
        tfbp.UserError: model, examples, task and phases do not fit together, or the loss diverged.
        tfbp.training.proof.ProofFailed: something frozen changed, or something did not learn.
    """
    strategy = strategies.resolve(strategy)
    it = Run(model, splits, task, tuple(phases), batch_size, seed, strategy, gradients)
    if workdir is not None:
        weights = task.class_weights_for(splits.train)
        asked = {
            "batch_size": batch_size,
            "examples": splits.train.fingerprint,
            "model": fingerprint.of_json([weight.shape for weight in model.weights]),
            "phases": [dataclasses.asdict(phase) for phase in phases],
            "seed": seed,
            "task": type(task).__name__,
            "loss": task.loss().get_config(),
            "class_weights": None if weights is None else weights.tolist(),
        }
        run_directory.check(workdir, asked)
        if run_directory.ended(workdir):
            it.directory = pathlib.Path(workdir)
            return _read(it)
    accepted = _audit(it, allow, backbone)
    if workdir is not None:
        it.directory = run_directory.claim(workdir, asked)
    _train(it, callbacks)
    it.result["accepted"] = accepted
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
    if run_directory.ended(directory):
        logging.info("%s has ended already: nothing to do.", directory)
        it.directory = pathlib.Path(directory)
        return _read(it)
    accepted = _audit(it, config.allow)
    it.directory = run_directory.claim(directory, asked)
    storage.write_text(it.directory / run_directory.FLAGS, recipes.flags_text(config))
    _train(it, ())
    it.result = {"recipe": name, "flags": asked["config"]} | it.result | {"accepted": accepted}
    it.export(str(exports), keep_versions=config.keep_versions)
    _finish(it)
    return it


def plan(
    recipe: types.ModuleType, config: recipes.Config, *, time: bool = False
) -> list[planning.PhasePlan]:
    """Returns what each phase of a recipe would train, before any training.

    Args:
        time: also take a few real steps of each phase, with a model that is then dropped, and
            estimate from them how long the phase takes and how much memory.

    Raises:
        tfbp.UserError: recipe, examples and phases do not fit together; with `time`, also where
            the loss is no number at the start.
    """
    it = _build(recipe, config)
    it.task.check(it.model, it.splits.train)
    return [_plan_phase(it, phase, time) for phase in it.phases]


def _plan_phase(it: Run, phase: Phase, time: bool) -> planning.PhasePlan:
    size, batch_size, cost = it.splits.train.size, it.batch_size, None
    if time:
        frozen = _compile(it, phase)
        cost = planning.estimate(
            it.model, it.splits, it.strategy, phase.epochs, batch_size, it.evaluate
        )
    else:
        frozen = freezing.freeze(it.model, phase.trainable, phase.batch_norm)
    return planning.PhasePlan.of(
        phase, it.model, frozen, size=size, batch_size=batch_size, cost=cost
    )


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
    it.task.check(it.model, it.splits.train)
    it.directory = pathlib.Path(directory)
    return _read(it)


def _asked(recipe: types.ModuleType, config: recipes.Config) -> dict:
    """Returns what makes a run the same run: not where it is kept, what its audit may find or what
    is logged.
    """
    settings = recipes.settings(config)
    for name in ("workdir", "export_dir", "keep_versions", "allow"):
        del settings[name]
    del settings["gradients"]
    return {"recipe": recipe.reference, "config": settings}


def _build(recipe: types.ModuleType, config: recipes.Config) -> Run:
    strategy = strategies.resolve(config.strategy)
    keras.utils.set_random_seed(config.seed)
    splits = recipe.data(config)
    task = recipe.task(config, splits)
    with strategy.scope(), _precision(config.precision):
        model = recipe.model(config, splits)
    phases = recipes.phases(recipe, config)
    settings = config.batch_size, config.seed, strategy, config.gradients
    return Run(model, splits, task, phases, *settings)


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


def _train(it: Run, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Trains `it` from where it stands, and fills its history and result."""
    began = time.perf_counter()
    checkpoints = it.directory and checkpoint.Checkpoints(it.directory / run_directory.CHECKPOINTS)
    place, state = (checkpoints and checkpoints.newest()) or (Place(), None)
    it.history = list(place.history)
    done = list(place.phases)
    while place.phase < len(it.phases):
        record, after = _train_phase(it, place, state, checkpoints, callbacks)
        done.append(record)
        place = Place(place.phase + 1, 0, tuple(it.history), tuple(done), before=after)
        state = None
        if checkpoints:
            checkpoints.save(it.model, place)
    if state is not None:  # Stopped after the last phase: the weights are the checkpoint's.
        _compile(it, it.phases[-1])
        checkpoint.restore(it.model, place, state)
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
        "phases": done,
        "metrics": {name: it.evaluate(examples) for name, examples in splits.items()},
        "seconds": round(time.perf_counter() - began, 3),
    }


def _compile(it: Run, phase: Phase) -> freezing.Frozen:
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


def _train_phase(
    it: Run, place: Place, state, checkpoints, callbacks
) -> tuple[dict, proving.Fingerprints]:
    """Trains one phase from `place`; returns its record for the result, and the fingerprints."""
    phase = it.phases[place.phase]
    began = time.perf_counter()
    frozen = _compile(it, phase)
    if state is not None:
        checkpoint.restore(it.model, place, state)
    proof = proving.Proof(frozen, place.before)
    place = dataclasses.replace(place, before=proof.before)
    stopping = None
    if phase.early_stopping is not None:
        best = state[checkpoint.BEST] if state else ()
        stopping = EarlyStopping(frozen, phase.early_stopping, place.early_stopping, best)
    steps = batches.steps_per_epoch(it.splits.train.size, it.batch_size)

    def save_if_due(step: int) -> None:
        if not (checkpoints and checkpoints.due()):
            return
        here = dataclasses.replace(place, step=step, history=tuple(it.history))
        if stopping:
            here = dataclasses.replace(here, early_stopping=stopping.state)
        checkpoints.save(it.model, here, stopping.weights if stopping else ())

    done = loop.train(
        it.model,
        it.splits.train,
        it.strategy,
        # One that has stopped already has nothing left to train.
        epochs=stopping.epochs if stopping and stopping.stopped else phase.epochs,
        batch_size=it.batch_size,
        seed=it.seed,
        start=place.step,
        callbacks=_callbacks(it, place.phase, steps, callbacks),
        validate=it.splits.validation and (lambda: _validate(it, stopping)),
        after_call=save_if_due,
        watch=it.gradients,
        class_weights=it.task.class_weights_for(it.splits.train),
    )
    it.model.optimizer.settle()
    if stopping:
        stopping.restore()
    proved = proof.check()
    record = {
        "name": phase.name,
        "trained": list(frozen.trainable),
        "parameters": frozen.parameters,
        "epochs": done // steps,
        "steps": done,
        "seconds": round(time.perf_counter() - began, 3),
        "proof": proved,
        "proof_seconds": round(proof.seconds, 3),
    }
    if stopping:
        record["stopped_epoch"] = stopping.epochs if stopping.stopped else None
        record["best_epoch"] = stopping.best_epoch
    return record, proof.after


def _validate(it: Run, stopping: EarlyStopping | None) -> dict[str, float]:
    """Returns the metrics of an epoch, and stops the phase where they say so."""
    with it.model.optimizer.averaged():
        metrics = _numbers(it.evaluate(it.splits.validation))
        if stopping:
            stopping.judge(metrics["loss"])
            it.model.stop_training |= stopping.stopped
    return metrics


def _callbacks(it: Run, index: int, steps: int, callbacks) -> keras.callbacks.CallbackList:
    phase = it.phases[index]
    own = [_Rows(phase.name, it.history)]
    if it.gradients:
        own.append(_gradient_flow(it, phase))
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
    with adapters.merged(it.model):
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
