"""Tensors as the JSON of a REST answer, number for number as TensorFlow Serving writes them."""

import base64
import itertools
import json
import math
from collections.abc import Mapping

import numpy as np

from tfbp.serving.signature import BINARY
from tfbp.serving.status import invalid


def rows(outputs: Mapping[str, np.ndarray]) -> str:
    """Returns the answer to `instances`: `{"predictions": [ … ]}`, a value or object for each row.

    Raises:
        StatusError: outputs without rows, or of different numbers of them.
    """
    count = 0
    for name, value in outputs.items():
        if not value.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if not len(value):
            raise invalid(f"Tensor name: {name} has invalid batch size: 0")
        if count and count != len(value):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(value)} expecting: {count}"
            )
        count = len(value)
    columns = {name: _nested(name, value, value.ndim - 1) for name, value in outputs.items()}
    if len(columns) == 1:
        (texts,) = columns.values()
    else:
        keys = [json.dumps(name, ensure_ascii=False) for name in columns]
        texts = [
            "{" + ", ".join(f"{key}: {one}" for key, one in zip(keys, row, strict=True)) + "}"
            for row in zip(*columns.values(), strict=True)
        ]
    return f'{{"predictions": [{", ".join(texts)}]}}'


def columns(outputs: Mapping[str, np.ndarray]) -> str:
    """Returns the answer to `inputs`: `{"outputs": … }`, a tensor or an object of tensors."""
    texts = {name: _nested(name, value, value.ndim)[0] for name, value in outputs.items()}
    if len(texts) == 1:
        (text,) = texts.values()
    else:
        pairs = (f"{json.dumps(name, ensure_ascii=False)}: {one}" for name, one in texts.items())
        text = "{" + ", ".join(pairs) + "}"
    return f'{{"outputs": {text}}}'


def _nested(name: str, array: np.ndarray, depth: int) -> list[str]:
    """Returns JSON texts of an array's values, its last `depth` dimensions put into lists."""
    texts = _values(name, array)
    outer = math.prod(array.shape[: array.ndim - depth])
    sizes = array.shape[array.ndim - depth :]
    for number in range(depth, 0, -1):
        size = sizes[number - 1]
        parts = iter(texts)
        count = outer * math.prod(sizes[: number - 1])
        texts = [f"[{', '.join(itertools.islice(parts, size))}]" for _ in range(count)]
    return texts


def _values(name: str, array: np.ndarray) -> list[str]:
    values = array.ravel().tolist()
    kind = array.dtype.kind
    if kind == "O":
        binary = name.endswith(BINARY)
        return [_string(value, binary) for value in values]
    if kind == "b":
        return ["true" if value else "false" for value in values]
    if kind in "iu":
        return list(map(str, values))
    if array.dtype not in (np.float32, np.float64):
        raise invalid(f"Failed to write JSON value for tensor type: {array.dtype.name}")
    # Six digits where they read back as the same number, else as many as always do.
    texts = [f"{value:g}" for value in values]
    with np.errstate(over="ignore"):  # rounded up beyond the largest float32
        again = np.array(texts, np.float64).astype(array.dtype)
    for index in np.flatnonzero(again != array.ravel()):
        digits = 9 if array.dtype == np.float32 else 17
        texts[index] = f"{values[index]:.{digits}g}"
    return [_decimal(text) for text in texts]


def _decimal(text: str) -> str:
    if text in _NOT_JSON:
        return _NOT_JSON[text]
    return text if "." in text or "e" in text else f"{text}.0"


# Not JSON, but what the API says: Python's parser and JavaScript read them.
_NOT_JSON = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _string(value: bytes | str, binary: bool) -> str:
    content = value if isinstance(value, bytes) else value.encode()
    if binary:
        return f'{{"b64": "{base64.b64encode(content).decode()}"}}'
    # TensorFlow Serving writes the bytes as they are, which JSON does not allow.
    return json.dumps(content.decode(errors="replace"), ensure_ascii=False)
