"""Numbered versions of an export, each there whole and proven, or not at all."""

import json
import os
import pathlib
import tempfile

import keras
import tensorflow as tf

from tfbp import fingerprint, storage
from tfbp.data.examples import Examples
from tfbp.errors import mistake
from tfbp.exporting import card, inspection, layout, parity, reference, savedmodel, warmup
from tfbp.exporting.reference import Answer
from tfbp.modeling import adapters, precision
from tfbp.tasks.task import Signature, Task

# Held-out examples in each request that the export must answer like the model.
BATCHES = (1, 3, 32)


def next_version(folder: str | os.PathLike) -> int:
    """Returns the number after the largest version in a folder: after its largest integer name."""
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    return 1 + max((layout.number(name) or 0 for name in names), default=0)


def check_writable(folder: str | os.PathLike) -> None:
    """Refuses an export folder in which nothing can be written. It leaves nothing behind.

    Raises:
        tfbp.UserError: the folder, or the nearest one above it that exists, takes no file.
    """
    path = pathlib.Path(folder).absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
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
    keep: int = 0,
) -> tuple[pathlib.Path, dict]:
    """Exports a trained model as the next version in a folder.

    It is written beside, must answer examples like the model in a fresh process, and is then
    renamed: a server that watches the folder never sees a version that is incomplete or wrong.

    Args:
        model: what the task's signatures call.
        task: says what the signatures are.
        examples: held-out ones, to compare the answers on.
        folder: receives the version, `<folder>/1` at first; its name is the model's.
        details: JSON values that say where the model comes from, for `assets.extra/tfbp.json`.
        keep: the newest versions that stay in the folder, at least 1; 0: all.

    Returns:
        The folder of the version, and what `parity.check` returns, with the sizes of the `batches`.

    Raises:
        tfbp.UserError: the folder cannot be written, or the task has no signature for the model.
        parity.ParityError: the export does not answer like the model. Nothing is published.
    """
    folder = pathlib.Path(folder)
    check_writable(folder)
    signatures, requests, own = _tried(model, task, examples)
    tolerance = _tolerance(model, own.rounding)
    while True:
        version = folder / str(next_version(folder))
        try:
            with storage.publish(version) as beside:
                savedmodel.write(model, signatures, beside)
                warmup.write(beside, folder.name, requests[0])
                parity.check_variables(beside, fingerprints(model))
                proof = {"batches": list(BATCHES)} | parity.check(beside, requests, own, tolerance)
                types = _types(beside, requests[0], own.compiled[0])
                contents = details | {"signatures": types, "parity": proof}
                _describe(beside, f"{folder.name}, version {version.name}", task, contents)
            break
        except FileExistsError:
            # Another run has published this version meanwhile: take the next one.
            if not version.exists():
                raise
    if keep:
        for old in list(layout.versions(folder).values())[:-keep]:
            storage.remove(old)
    return version, proof


def _tried(
    model: keras.Model, task: Task, examples: Examples
) -> tuple[dict[str, Signature], list[dict[str, Answer]], parity.Reference]:
    """Returns the signatures, requests to them, and what the trained model answers."""
    with savedmodel.portable(model):
        # On the CPU, like the process that the answers are compared with: GPUs round otherwise.
        with tf.device("CPU:0"):
            signatures = task.signatures(model, examples)
            requests = [
                {name: signature.request(count) for name, signature in signatures.items()}
                for count in BATCHES
            ]
        own = reference.answers(signatures, requests)
    for tensors in (*requests, *own.compiled, *own.eager):
        # The default has its name beside its own.
        tensors.setdefault("serving_default", next(iter(tensors.values())))
    return signatures, requests, own


def _tolerance(model: keras.Model, rounding: float) -> float:
    """Returns how far the export's floats may be off, see `parity.check`.

    Raises:
        parity.ParityError: the model's own answers are further apart than rounding explains.
    """
    most = precision.tolerance(model, parity.MOST_TOLERANCE)
    # "not at most" rather than "more than", so that NaN is refused too.
    if not rounding <= most:
        raise parity.ParityError(
            "The model must answer alike when it is called eagerly and traced as for a server, to "
            f"{most:g} of the largest magnitude. It differs by {rounding:.3g}: look for code that "
            "asks how it is run."
        )
    return precision.tolerance(model, parity.tolerance(rounding))


def fingerprints(model: keras.Model) -> list[tuple[str, str]]:
    """Returns path and fingerprint of each weight, as an export holds it."""
    with adapters.merged(model):
        return [(weight.path, fingerprint.of_array(weight)) for weight in model.weights]


def _describe(folder: pathlib.Path, title: str, task: Task, contents: dict) -> None:
    """Writes what an export carries beside its SavedModel, the warm-up requests excepted."""
    assets = task.assets()
    labels = assets.get(layout.LABELS.name, "").splitlines()
    assets[layout.DETAILS.name] = json.dumps(contents, indent=2, ensure_ascii=False)
    assets[layout.CARD.name] = card.text(title, contents, labels)
    for name, text in assets.items():
        (folder / layout.EXTRA / name).write_text(text, encoding="utf-8")


def _types(
    folder: pathlib.Path, inputs: parity.Tensors, outputs: parity.Tensors
) -> inspection.Signatures:
    """Returns the types of a SavedModel's signatures, in the order of the task."""
    types = inspection.signatures(folder)
    return {
        name: {
            "inputs": {key: types[name]["inputs"][key] for key in inputs[name]},
            "outputs": {key: types[name]["outputs"][key] for key in outputs[name]},
        }
        for name in inputs
    }
