"""Tensors as the JSON of a REST answer, byte for byte as TensorFlow Serving writes them."""

import base64
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from tfbp.serving import json_text
from tfbp.serving.json_tensor import Array, name
from tfbp.serving.signature import BINARY
from tfbp.serving.status import invalid

# Not JSON, but what the API says: Python's parser and JavaScript read them.
_NOT_JSON = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_INTEGERS = {"int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"}


def rows(outputs: Mapping[str, Array]) -> str:
    """Returns the answer to `instances`: `{"predictions": [ … ]}`, a value or object for each row.

    Raises:
        StatusError: there are no outputs, or ones without rows, or of different numbers of them.
    """
    _check_any(outputs)
    count = -1
    for key, value in outputs.items():
        if not value.ndim:
            raise invalid(f"Tensor name: {key} has no shape information ")
        if count not in (-1, len(value)):
            raise invalid(
                f"Tensor name: {key} has inconsistent batch size: {len(value)} expecting: {count}"
            )
        count = len(value)
    named = len(outputs) > 1
    columns = {}
    for key, value in outputs.items():
        texts = _values(key, value, 1 + named + value.ndim)
        for size in value.shape[:0:-1]:
            texts = [json_text.line(part) for part in _parts(texts, size)]
        # Without values the lists that hold none are left out above.
        columns[key] = texts if value.size else [_empty(value.shape[1:])] * count
    if not named:
        (texts,) = columns.values()
        return json_text.member("predictions", json_text.rows(texts, 1))
    objects = [
        json_text.members(list(zip(columns, row, strict=True)), 2)
        for row in zip(*columns.values(), strict=True)
    ]
    return json_text.member("predictions", json_text.lines(objects, 1))


def columns(outputs: Mapping[str, Array]) -> str:
    """Returns the answer to `inputs`: `{"outputs": … }`, a tensor or an object of tensors.

    Raises:
        StatusError: there are no outputs.
    """
    _check_any(outputs)
    named = len(outputs) > 1
    texts = [(key, _column(key, value, 1 + named)) for key, value in outputs.items()]
    text = json_text.members(texts, 1) if named else texts[0][1]
    return json_text.member("outputs", text)


def classifications(labels: Array, scores: Array) -> str:
    """Returns the answer to `:classify`: for each example a list of [label, score].

    Args:
        labels: [examples, classes], bytes.
        scores: [examples, classes], float32.
    """
    texts = [string(label) for label in labels.ravel()]
    pairs = [json_text.line([*pair]) for pair in zip(texts, decimals(scores), strict=True)]
    lists = [json_text.line(part) for part in _parts(pairs, labels.shape[1])]
    return json_text.member("results", json_text.rows(lists or ["[]"] * len(labels), 1))


def regressions(values: Array) -> str:
    """Returns the answer to `:regress`: for each example a number.

    Args:
        values: [examples] or [examples, 1], float32.
    """
    return json_text.member("results", json_text.line(decimals(values)))


def decimals(array: Array) -> list[str]:
    """Returns the floats of an array: six digits where they read back as the same number, else 9
    for float32 and 17 for float64."""
    values = array.ravel().tolist()
    texts = [f"{value:g}" for value in values]
    with np.errstate(over="ignore"):  # rounded up beyond the largest float32
        again = np.array(texts, np.float64).astype(array.dtype)
    digits = 9 if array.dtype == np.float32 else 17
    for index in np.flatnonzero(again != array.ravel()):
        texts[index] = f"{values[index]:.{digits}g}"
    return [_decimal(text) for text in texts]


def string(value: bytes | str) -> str:
    """Returns a string in quotes. TensorFlow Serving writes bytes that are no UTF-8 as they are,
    which JSON does not allow: here each is U+FFFD."""
    return json_text.string(value if isinstance(value, str) else value.decode(errors="replace"))


def _check_any(outputs: Mapping[str, Array]) -> None:
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")


def _column(key: str, array: Array, level: int) -> str:
    texts = _values(key, array, level + array.ndim)
    if not array.size:
        return _empty_lines(array.shape, level)
    for depth in range(array.ndim - 1, -1, -1):
        size = array.shape[depth]
        texts = [json_text.lines(part, level + depth) for part in _parts(texts, size)]
    return texts[0]


def _parts(texts: Sequence[str], size: int) -> list[list[str]]:
    rest = iter(texts)
    return [list(itertools.islice(rest, size)) for _ in range(len(texts) // size if size else 0)]


def _empty(shape: Sequence[int]) -> str:
    """Returns nested lists that hold no value."""
    return json_text.line([_empty(shape[1:])] * shape[0]) if shape else ""


def _empty_lines(shape: Sequence[int], level: int) -> str:
    if not shape[0]:
        return "[]"
    return json_text.lines([_empty_lines(shape[1:], level + 1)] * shape[0], level)


def _values(key: str, array: Array, level: int) -> list[str]:
    """Returns the values of an array, which are `level` containers deep."""
    if array.dtype.kind == "O":
        if not key.endswith(BINARY):
            return [string(value) for value in array.ravel()]
        encoded = (base64.b64encode(value).decode() for value in array.ravel())
        return [json_text.member("b64", f'"{text}"', level) for text in encoded]
    if not array.size:
        return []
    if array.dtype.kind == "b":
        return ["true" if value else "false" for value in array.ravel()]
    if array.dtype.name in _INTEGERS:
        return list(map(str, array.ravel().tolist()))
    if array.dtype not in (np.float32, np.float64):
        raise invalid(f"Failed to write JSON value for tensor type: {name(array.dtype.name)}")
    return decimals(array)


def _decimal(text: str) -> str:
    if text in _NOT_JSON:
        return _NOT_JSON[text]
    return text if "." in text or "e" in text else f"{text}.0"
