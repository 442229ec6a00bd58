"""The gate before an export is published: a fresh process must answer like the trained model.

The process loads the SavedModel as TensorFlow Serving does, by `tf.compat.v1.saved_model.loader`
and tensor names, without the model's code and without a GPU:

    python -m tfbp.exporting.parity SAVED_MODEL REQUESTS ANSWERS
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

# Signature → input or output → array.
Tensors = Mapping[str, Mapping[str, np.ndarray]]

TOLERANCE = 1e-5


class ParityError(RuntimeError):
    """An exported model does not answer like the model that it was made from."""


def check(
    folder: str | os.PathLike,
    requests: Tensors,
    expected: Tensors,
    tolerance: float = TOLERANCE,
) -> dict:
    """Compares the answers of a SavedModel, in a fresh process, with those of the trained model.

    Args:
        folder: the SavedModel.
        requests: what to ask, for each signature.
        expected: what the trained model answers to it.
        tolerance: how far floats may differ, as a share of the largest magnitude of that output.
            Integers and strings must be equal.

    Returns:
        For a JSON file: `tolerance`, the largest `difference`, and the difference of each output
        in `signatures`.

    Raises:
        ParityError: a signature or output is missing, or differs: says which, and by how much.
    """
    answers = ask(folder, requests)
    signatures: dict[str, dict[str, float]] = {}
    for signature, outputs in expected.items():
        answered = answers[signature]
        if answered.keys() != outputs.keys():
            raise ParityError(
                f"The export's signature `{signature}` must answer {sorted(outputs)}. "
                f"Received: {sorted(answered)}."
            )
        signatures[signature] = {
            name: _compare(f"`{name}` of `{signature}`", answered[name], value, tolerance)
            for name, value in outputs.items()
        }
    worst = max(value for outputs in signatures.values() for value in outputs.values())
    return {"tolerance": tolerance, "difference": worst, "signatures": signatures}


def ask(folder: str | os.PathLike, requests: Tensors) -> dict[str, dict[str, np.ndarray]]:
    """Returns what a SavedModel answers in a fresh process.

    Raises:
        ParityError: it cannot be loaded, or does not take the requests.
    """
    package = pathlib.Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with tempfile.TemporaryDirectory() as exchange:
        asked, answered = (os.path.join(exchange, name) for name in ("asked.npz", "answered.npz"))
        _save(asked, requests)
        process = subprocess.run(
            [sys.executable, "-m", "tfbp.exporting.parity", os.fspath(folder), asked, answered],
            env=environment,
            capture_output=True,
            text=True,
        )
        if process.returncode:
            raise ParityError(f"A fresh process cannot use the export:\n{process.stderr[-2000:]}")
        return _load(answered)


def _compare(name: str, answered: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """Returns the largest difference, relative to the largest magnitude; 0 for equal strings."""
    if (answered.dtype, answered.shape) != (expected.dtype, expected.shape):
        raise ParityError(
            f"The export must answer {name} as {expected.dtype} {list(expected.shape)}. "
            f"Received: {answered.dtype} {list(answered.shape)}."
        )
    if expected.dtype.kind != "f":
        wrong = np.argwhere(answered != expected)
        if len(wrong):
            first = tuple(wrong[0])
            raise ParityError(
                f"The export must answer {name} like the model, and {len(wrong)} of "
                f"{expected.size} entries differ. Received: {answered[first]!r} for "
                f"{expected[first]!r}."
            )
        return 0.0
    largest = np.abs(expected).max(initial=0)
    difference = float(np.abs(answered - expected).max(initial=0) / (largest or 1))
    # "not at most" rather than "more than", so that NaN is refused too.
    if not difference <= tolerance:
        raise ParityError(
            f"The export must answer {name} like the model, to {tolerance:g} of its largest "
            f"magnitude. It differs by {difference:.3g}."
        )
    return difference


def _save(path: str, tensors: Tensors) -> None:
    # Serialized by TensorFlow, since NumPy writes strings of any length by pickle only.
    contents = {}
    for signature, values in tensors.items():
        for name, value in values.items():
            tensor = tf.constant(value)
            content = np.frombuffer(tf.io.serialize_tensor(tensor).numpy(), np.uint8)
            contents[f"{signature}/{name}/{tensor.dtype.name}"] = content
    np.savez(path, **contents)


def _load(path: str) -> dict[str, dict[str, np.ndarray]]:
    tensors: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key, content in file.items():
            signature, name, dtype = key.split("/")
            value = tf.io.parse_tensor(content.tobytes(), tf.as_dtype(dtype)).numpy()
            tensors.setdefault(signature, {})[name] = value
    return tensors


def _answer(folder: str, requests: Tensors) -> dict[str, dict[str, np.ndarray]]:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
        answers = {}
        for name, request in requests.items():
            signature = loaded.signature_def[name]
            if request.keys() != signature.inputs.keys():
                raise ValueError(
                    f"`{name}` must take {sorted(request)}. Received: {sorted(signature.inputs)}."
                )
            feeds = {signature.inputs[key].name: value for key, value in request.items()}
            fetches = {key: output.name for key, output in signature.outputs.items()}
            answers[name] = session.run(fetches, feeds)
    return answers


if __name__ == "__main__":
    _folder, _asked, _answered = sys.argv[1:]
    _save(_answered, _answer(_folder, _load(_asked)))
