"""Numbered versions of an export, each there whole and proven, or not at all."""

import json
import os
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

from tfbp import storage
from tfbp.data.examples import Examples
from tfbp.errors import mistake
from tfbp.exporting import parity, savedmodel
from tfbp.tasks.task import Signature, Task

# Held-out examples that the export must answer like the model.
EXAMPLES = 8


def next_version(folder: str | os.PathLike) -> int:
    """Returns the number after the largest version in a folder: after its largest integer name."""
    folder = pathlib.Path(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return 1 + max((int(name) for name in names if name.isdecimal()), default=0)


def check_writable(folder: str | os.PathLike) -> None:
    """Refuses an export folder in which nothing can be written. It leaves nothing behind.

    Raises:
        tfbp.UserError: the folder, or the nearest one above it that exists, takes no file.
    """
    path = pathlib.Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise mistake(
            "export_dir", f"must be a folder that can be written ({error.strerror})", str(folder)
        ) from error


def export(
    model: keras.Model,
    task: Task,
    examples: Examples,
    folder: str | os.PathLike,
    *,
    details: dict,
) -> tuple[pathlib.Path, dict]:
    """Exports a trained model as the next version in a folder.

    It is written beside, must answer examples like the model in a fresh process, and is then
    renamed: a server that watches the folder never sees a version that is incomplete or wrong.

    Args:
        model: what the task's signatures call.
        task: says what the signatures are.
        examples: held-out ones, to compare the answers on.
        folder: receives the version, `<folder>/1` at first.
        details: JSON values that say where the model comes from, for `assets.extra/tfbp.json`.

    Returns:
        The folder of the version, and what `parity.check` returns.

    Raises:
        tfbp.UserError: the folder cannot be written, or the task has no signature for the model.
        parity.ParityError: the export does not answer like the model. Nothing is published.
    """
    folder = pathlib.Path(folder)
    check_writable(folder)
    # On the CPU, like the process that the answers are compared with: GPUs round otherwise.
    with tf.device("CPU:0"), savedmodel.portable(model):
        signatures = task.signatures(model, examples)
        requests = task.samples(examples, EXAMPLES)
        expected = {
            name: _answer(signature, requests[name]) for name, signature in signatures.items()
        }
    while True:
        version = folder / str(next_version(folder))
        try:
            with storage.publish(version) as beside:
                savedmodel.write(model, signatures, beside)
                proof = parity.check(beside, requests, expected)
                about = json.dumps(details | {"parity": proof}, indent=2, ensure_ascii=False)
                extra = beside / "assets.extra"
                extra.mkdir()
                for name, text in (task.assets() | {"tfbp.json": about + "\n"}).items():
                    (extra / name).write_text(text, encoding="utf-8")
            return version, proof
        except FileExistsError:
            # Another run has published this version meanwhile: take the next one.
            if not version.exists():
                raise


def _answer(signature: Signature, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = {
        name: tf.constant(request[name], spec.dtype) for name, spec in signature.inputs.items()
    }
    return {name: value.numpy() for name, value in signature.function(**inputs).items()}
