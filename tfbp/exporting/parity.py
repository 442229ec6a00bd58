"""The gate before an export is published: it holds the trained model's variables, bit for bit, and
in a fresh process answers like the model, up to the rounding of the model's own arithmetic.

It calls every signature, and answers the export's own warm-up requests.

The process loads the SavedModel as TensorFlow Serving does, by `tf.compat.v1.saved_model.loader`
and tensor names, without the model's code and without a GPU:

    python -m tfbp.exporting.parity SAVED_MODEL REQUESTS ANSWERS
"""

import collections
import contextlib
import contextvars
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfbp import fingerprint
from tfbp.errors import CheckFailed
from tfbp.exporting import layout, warmup
from tfbp.finding import listed

# Signature → input or output → array.
Tensors = Mapping[str, Mapping[str, np.ndarray]]
# The same, for each request.
Answers = list[dict[str, dict[str, np.ndarray]]]

# Bounds of what is allowed in float32, as shares of an output's largest magnitude.
LEAST_TOLERANCE, MOST_TOLERANCE = 1e-5, 5e-4


class ParityError(CheckFailed):
    """An exported model does not answer like the model that it was made from."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A trained model's own answers, see `tfbp.exporting.reference`.

    Attributes:
        compiled: to each request, by traced functions.
        eager: to each request, operation by operation.
        rounding: how far floats of these, and of smaller batches, are apart: the largest share of
            an output's largest magnitude.
    """

    compiled: Answers
    eager: Answers
    rounding: float


def fresh_process(folder: str | os.PathLike, requests: Sequence[Tensors]) -> Answers:
    """Sends requests to a SavedModel in a fresh process, which replays its warm-up file first.

    Raises:
        ParityError: it cannot be loaded, or does not take the requests.
    """
    package = pathlib.Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

    def ask(*files: str) -> str:
        command = [sys.executable, "-m", "tfbp.exporting.parity", *files]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        return process.stderr if process.returncode else ""

    return by_files(folder, requests, ask)


def by_files(
    folder: str | os.PathLike, requests: Sequence[Tensors], ask: Callable[[str, str, str], str]
) -> Answers:
    """Hands requests to another process, and takes its answers.

    Args:
        folder: the SavedModel.
        requests: for it.
        ask: takes the SavedModel's path and those of the two files, has the other process call
            `answer_file` with them, and returns what went wrong, or "".

    Raises:
        ParityError: something went wrong.
    """
    with tempfile.TemporaryDirectory() as exchange:
        sent, answered = (os.path.join(exchange, name) for name in ("sent.npz", "answered.npz"))
        _save(sent, requests)
        wrong = ask(os.path.abspath(folder), sent, answered)
        if wrong:
            raise ParityError(f"A fresh process cannot use the export:\n{wrong[-2000:]}")
        return _load(answered)


def answer_file(folder: str, sent: str, answered: str) -> None:
    """Answers the requests in the file `sent`, and writes the file `answered`."""
    _save(answered, this_process(folder, _load(sent)))


def this_process(folder: str | os.PathLike, requests: Sequence[Tensors]) -> Answers:
    """Does the same in this process: it is what runs in the fresh one.

    Raises:
        Exception: TensorFlow's own, where the SavedModel does not load or take the requests.
    """
    folder = pathlib.Path(folder)
    has_warmup = (folder / layout.WARMUP).exists()
    warm_up = list(warmup.read(folder)) if has_warmup else []
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))

        def run(name: str, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            signature = loaded.signature_def[name]
            if request.keys() != signature.inputs.keys():
                raise ValueError(
                    f"`{name}` must take {sorted(request)}. Received: {sorted(signature.inputs)}."
                )
            feeds = {signature.inputs[key].name: value for key, value in request.items()}
            fetches = {key: output.name for key, output in signature.outputs.items()}
            return session.run(fetches, feeds)

        for name, request in warm_up:
            run(name, request)
        return [
            {name: run(name, request) for name, request in round_.items()} for round_ in requests
        ]


# What answers the requests of `check`.
Answering = Callable[[str | os.PathLike, Sequence[Tensors]], Answers]
_answering: contextvars.ContextVar[Answering] = contextvars.ContextVar(
    "answering", default=fresh_process
)


@contextlib.contextmanager
def answered_by(answering: Answering) -> Iterator[None]:
    """Within it, `check` compares the answers of `answering` in place of a fresh process's."""
    before = _answering.set(answering)
    try:
        yield
    finally:
        _answering.reset(before)


def check(
    folder: str | os.PathLike,
    requests: Sequence[Tensors],
    reference: Reference,
    tolerance: float = LEAST_TOLERANCE,
) -> dict:
    """Compares the answers of a SavedModel, in a fresh process, with those of the trained model.

    A test may give another process by `answered_by`.

    Args:
        folder: the SavedModel.
        requests: inputs of each signature.
        reference: the trained model's answers to each request.
        tolerance: how far floats may differ, as a share of the largest magnitude of that output.
            Integers and strings must be among the trained model's own; where more is allowed than
            float32 needs, they may turn on floats that differ so much, and only their types and
            shapes are compared.

    Returns:
        For a JSON file: `tolerance`, the model's own `rounding`, the largest `difference`, and the
        largest of each output in `signatures`.

    Raises:
        ParityError: a signature or output is missing, or differs: says which, and by how much.
    """
    answers = _answering.get()(folder, requests)
    largest: dict[str, dict[str, float]] = {}
    for answer, compiled, eager in zip(answers, reference.compiled, reference.eager, strict=True):
        for signature, outputs in compiled.items():
            answered, differences = answer[signature], largest.setdefault(signature, {})
            if answered.keys() != outputs.keys():
                raise ParityError(
                    f"The export's signature `{signature}` must answer {sorted(outputs)}. "
                    f"Received: {sorted(answered)}."
                )
            for name, value in outputs.items():
                output, own = f"`{name}` of `{signature}`", (value, eager[signature][name])
                apart = _compare(output, answered[name], own, tolerance)
                differences[name] = max(apart, differences.get(name, 0.0))
    return {
        "tolerance": tolerance,
        "rounding": reference.rounding,
        "difference": max(value for outputs in largest.values() for value in outputs.values()),
        "signatures": largest,
    }


def check_variables(folder: str | os.PathLike, fingerprints: Sequence[tuple[str, str]]) -> None:
    """Compares the variables of a SavedModel with those of the trained model, bit for bit.

    Args:
        folder: the SavedModel.
        fingerprints: path and `fingerprint.of_array` of each variable that must be in it.

    Raises:
        ParityError: some are not: says which.
    """
    file = tf.train.load_checkpoint(os.fspath(pathlib.Path(folder) / layout.VARIABLES))
    arrays = map(file.get_tensor, file.get_variable_to_shape_map())
    held = collections.Counter(
        fingerprint.of_arrays(each for each in arrays if isinstance(each, np.ndarray))
    )
    missing = []
    for path, expected in fingerprints:
        held[expected] -= 1
        if held[expected] < 0:
            missing.append(path)
    if missing:
        raise ParityError(
            f"The export must hold the model's {len(fingerprints)} variables bit for bit. "
            f"It does not hold {listed(missing)}."
        )


def tolerance(rounding: float) -> float:
    """Returns how far an export in float32 may differ from a model of some rounding.

    Two computations that are each off by that much are apart by up to twice as much.
    """
    return min(MOST_TOLERANCE, max(LEAST_TOLERANCE, 2 * rounding))


def difference(one: np.ndarray, other: np.ndarray, largest: float | None = None) -> float:
    """Returns the largest difference between two arrays of one shape, as a share of a magnitude.

    Args:
        largest: the magnitude; None: the largest one of `other`.
    """
    largest = float(np.abs(other).max(initial=0)) if largest is None else largest
    return float(np.abs(one - other).max(initial=0) / (largest or 1))


def _compare(name: str, answered: np.ndarray, own: Sequence[np.ndarray], tolerance: float) -> float:
    """Returns the difference from the first of the model's own answers; 0 for equal strings."""
    expected = own[0]
    if (answered.dtype, answered.shape) != (expected.dtype, expected.shape):
        raise ParityError(
            f"The export must answer {name} as {expected.dtype} {list(expected.shape)}. "
            f"Received: {answered.dtype} {list(answered.shape)}."
        )
    if expected.dtype.kind != "f":
        # Where two of the model's own orders of computation decide otherwise, either is right.
        wrong = np.argwhere(np.all([answered != each for each in own], axis=0))
        if len(wrong) and tolerance <= MOST_TOLERANCE:
            first = tuple(wrong[0])
            raise ParityError(
                f"The export must answer {name} like the model, and {len(wrong)} of "
                f"{expected.size} entries differ. Received: {answered[first]!r} for "
                f"{expected[first]!r}."
            )
        return 0.0
    apart = difference(answered, expected)
    # "not at most" rather than "more than", so that NaN is refused too.
    if not apart <= tolerance:
        raise ParityError(
            f"The export must answer {name} like the model, to {tolerance:g} of its largest "
            f"magnitude. It differs by {apart:.3g}."
        )
    return apart


def _save(path: str, rounds: Sequence[Tensors]) -> None:
    # Serialized by TensorFlow, since NumPy writes strings of any length by pickle only.
    contents = {"rounds": np.array(len(rounds))}
    for number, tensors in enumerate(rounds):
        for signature, values in tensors.items():
            for name, value in values.items():
                tensor = tf.constant(value)
                content = np.frombuffer(tf.io.serialize_tensor(tensor).numpy(), np.uint8)
                contents[f"{number}/{signature}/{name}/{tensor.dtype.name}"] = content
    # No name is an option of savez: all but `rounds` have a slash.
    np.savez(path, **contents)  # type: ignore[arg-type]


def _load(path: str) -> Answers:
    with np.load(path) as file:
        contents = dict(file)
    rounds: list[dict] = [{} for _ in range(contents.pop("rounds"))]
    for key, content in contents.items():
        number, signature, name, dtype = key.split("/")
        value = tf.io.parse_tensor(content.tobytes(), tf.as_dtype(dtype)).numpy()
        rounds[int(number)].setdefault(signature, {})[name] = value
    return rounds


if __name__ == "__main__":
    answer_file(*sys.argv[1:])
