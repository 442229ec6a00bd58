"""Makes a run whole: reads one that has ended, or takes it from where it stands to its result.

ended? read : room → audit → claim the directory → train → finish
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from absl import logging

from tfbp import storage
from tfbp.auditing import audit
from tfbp.modeling import adapters, freezing, graph
from tfbp.resuming.checkpoints import Checkpoints
from tfbp.running import directory as run_directory
from tfbp.running import phase_callbacks, phases, same_run
from tfbp.running.run import Run


def execute(
    run: Run,
    workdir: str | None,
    identity: dict[str, Any],
    code: dict[str, str],
    *,
    exports: pathlib.Path | None = None,
    callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] = (),
    backbone: keras.Model | Sequence[keras.Model] = (),
) -> Run:
    """Returns the run with its history and result; trains what is missing of it.

    Args:
        workdir: directory of the run; None: nothing is written.
        identity: of the run, see `same_run.identity`; {} where there is nobody to compare it.
        code: what code runs, see `same_run.of_code`.
        exports: folder that receives the export; None: none is made.
        callbacks, backbone: as given to `tfbp.fit`.

    Raises: what `tfbp.fit` and `Run.export` raise.
    """
    callbacks = phase_callbacks.listed(callbacks)
    same_run.check_workers(run, identity, code, workdir)
    if workdir is not None:
        workdir = run_directory.absolute(workdir)  # a callback may change the working directory
        if not run.settings.restart and _ended(run, workdir, identity):
            logging.info("%s has ended already: nothing to do.", workdir)
            return read(run, workdir)
        _check_writable(run, workdir, exports)
    accepted = _audit(run, backbone)
    with _claimed(run, workdir, identity, code) as run.directory:
        if run.recipe and run.directory:
            flags = dataclasses.replace(run.settings, restart=False).flags_text()
            path = run.directory / run_directory.FLAGS
            run.workers.on_chief(lambda: storage.write_text(path, flags))
        phases.train(run, callbacks)
        _finish(run, accepted, exports)
    return run


def read(run: Run, directory: str | os.PathLike) -> Run:
    """Gives a run the weights, the history and the result of a directory that is whole."""
    run.directory = pathlib.Path(directory)

    def look() -> dict[str, Any]:
        storage.verify(directory, run_directory.FILES)
        run.model.load_weights(pathlib.Path(directory) / run_directory.MODEL)
        result = run_directory.read(directory, run_directory.RESULT)
        return {"result": result, "history": run_directory.history(directory)}

    ended = run.workers.on_chief(look)
    run.workers.broadcast(run.model.weights)
    run.result, run.history = ended["result"], ended["history"]
    return run


def _ended(run: Run, directory: str, identity: dict[str, Any]) -> bool:
    """Tells whether a directory holds this run, and it has ended; refuses one of another run."""

    def look() -> bool:
        run_directory.check(directory, identity)
        return run_directory.ended(directory)

    return run.workers.on_chief(look)


def _check_writable(run: Run, directory: str, exports: pathlib.Path | None) -> None:
    """Refuses a model that cannot be saved so that it loads safely, and a disk without room for it.

    Raises:
        tfbp.UserError: names the layer; or path, bytes needed and bytes free.
    """
    graph.check_writable(run.model)
    whole = sum(variable.numpy().nbytes for variable in run.model.weights)
    learning = max(
        freezing.freeze(run.model, phase.trainable, phase.batch_norm).parameters
        for phase in run.phases
    )

    def look() -> None:
        # A whole one for each phase and the model; three others, with two slots and the best.
        storage.require_space(directory, whole * (len(run.phases) + 2) + 3 * 4 * 4 * learning)
        if exports:
            storage.require_space(exports, 2 * whole)

    run.workers.on_chief(look)


def _audit(run: Run, backbone: keras.Model | Sequence[keras.Model]) -> list[dict[str, str]]:
    """Returns what the audit found and the settings accept; the rest is logged or raised."""
    findings = audit.findings(
        run.model, run.splits, run.task, run.phases, run.settings, backbone=backbone
    )
    return audit.enforce(findings, run.settings.allow)


@contextlib.contextmanager
def _claimed(
    run: Run, directory: str | None, identity: dict[str, Any], code: dict[str, str]
) -> Iterator[pathlib.Path | None]:
    """Within it the directory, if there is one, is this run's; the chief claims it for all."""
    if directory is None:
        yield None
        return
    claim = run_directory.claim(directory, identity, code, restart=run.settings.restart)
    with contextlib.ExitStack() as stack:
        run.workers.on_chief(lambda: str(stack.enter_context(claim)))
        yield pathlib.Path(directory)


def _finish(run: Run, accepted: list[dict[str, str]], exports: pathlib.Path | None) -> None:
    """Exports the model, where it is to be, and writes what remains of a run that has ended."""
    if run.recipe:
        made_by = {"recipe": pathlib.Path(run.recipe).stem, "flags": run.settings.counting("run")}
        run.result = made_by | run.result
    run.result["accepted"] = accepted
    if exports:
        run.workers.on_chief(lambda: storage.sweep(exports))
        keep_versions = getattr(run.settings, "keep_versions", 0)
        run.export(str(exports), keep_versions=keep_versions)
    if run.directory is not None:
        run.workers.on_chief(lambda: _write(run))


def _write(run: Run) -> None:
    """Writes the model and the result into the run's directory, and drops its checkpoints."""
    assert run.directory
    replacing = storage.replacing(run.directory / run_directory.MODEL)
    with replacing as path, adapters.merged(run.model):
        run.model.save(path, include_optimizer=False)
    assets = run.task.assets()
    for file, text in assets.items():
        storage.write_text(run.directory / file, text)
    run_directory.end(run.directory, run.result, list(assets))
    Checkpoints(run.directory / run_directory.CHECKPOINTS).clear()
