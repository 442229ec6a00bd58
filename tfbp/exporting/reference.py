"""The trained model's own answers to the requests that its export must answer alike.

They are computed as a server computes them, by traced functions, and in other orders too: eagerly,
and in smaller batches. How far these are apart is the rounding of this very model's arithmetic.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfbp.exporting.parity import MOST_TOLERANCE, Reference, Tensors, difference
from tfbp.tasks.task import Signature

# Rows of the largest request that are answered in a smaller batch, and one by one, too.
_ROWS = 3

# Input or output → array.
Answer = dict[str, np.ndarray]


def answers(signatures: Mapping[str, Signature], requests: Sequence[Tensors]) -> Reference:
    """Answers requests by the trained model, and measures its rounding.

    Args:
        signatures: by name; they are traced here.
        requests: to each signature, the largest batch last.
    """
    for signature in signatures.values():
        _ = signature.traced  # before a device is named, which would stay in the graph
    # On the CPU, like the process that the answers are compared with: GPUs round otherwise.
    with tf.device("CPU:0"):
        compiled = [
            {name: signature.compiled(request[name]) for name, signature in signatures.items()}
            for request in requests
        ]
        eager = [
            {name: signature.answer(request[name]) for name, signature in signatures.items()}
            for request in requests
        ]
        apart = [
            difference(values[name][output], value)
            for one, values in zip(compiled, eager, strict=True)
            for name, outputs in one.items()
            for output, value in outputs.items()
            if value.dtype.kind == "f"
        ]
        for name, signature in signatures.items():
            apart += _between_batches(signature, requests[-1][name], compiled[-1][name])
    return Reference(compiled, eager, float(np.max(apart, initial=0.0)))


def _between_batches(
    signature: Signature, request: Mapping[str, np.ndarray], answer: Mapping[str, np.ndarray]
) -> Iterator[float]:
    """Yields how far the first rows of an answer are from those of smaller batches."""
    batched = [name for name, spec in signature.inputs.items() if spec.shape.rank]
    count = min((len(request[name]) for name in batched), default=0)
    for rows in (slice(0, _ROWS), *(slice(row, row + 1) for row in range(_ROWS))):
        if rows.stop >= count:
            continue
        piece = signature.compiled(
            {name: value[rows] if name in batched else value for name, value in request.items()}
        )
        for name, value in answer.items():
            # An answer whose shape depends on the neighbours cannot be compared by rows.
            if value.dtype.kind == "f" and value[rows].shape == piece[name].shape:
                apart = difference(piece[name], value[rows], largest=float(np.abs(value).max()))
                # More is no rounding: the model mixes the rows of a batch, as is its right.
                if apart <= MOST_TOLERANCE:
                    yield apart
