"""What `:classify` and `:regress` take as serialized `tf.train.Example` messages.

A feature is a list of strings, of floats or of integers, by its first value. The messages are
written field by field (tensorflow/core/example/feature.proto): they are few, and the process that
reads large bodies does without TensorFlow.
"""

from typing import Any

import numpy as np

from tfbp.serving.json_tensor import Array, is_binary, json_type, string_of
from tfbp.serving.status import invalid

# The name that such a signature's only input has (tensorflow/cc/saved_model/signature_constants.h).
INPUT = "inputs"

# The fields of `Feature`, and their names in messages.
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3
_KINDS = {_BYTES: "bytes", _FLOATS: "float", _INTEGERS: "int64"}


def serialized(value: Any) -> bytes:
    """Returns the `Example` that a JSON object of features stands for.

    Raises:
        StatusError: it is no object, or a feature holds what no feature can hold.
    """
    if type(value) is not dict:
        raise invalid(f"Example must be JSON object but got JSON {json_type(value)}")
    features = b"".join(
        _field(1, _field(1, _text(name)) + _field(2, _feature(name, content)))
        for name, content in value.items()
    )
    return _field(1, features)


def of_input(message: Any) -> dict[str, Array]:
    """Returns the inputs of a signature from an `Input` message, serialized.

    Raises:
        StatusError: it holds no examples.
    """
    kind = message.WhichOneof("kind")
    context = b""
    if kind == "example_list_with_context":
        context = message.example_list_with_context.context.SerializeToString()
    entries = getattr(message, kind).examples if kind else []
    if not entries:
        raise invalid("Input is empty.")
    array = np.empty(len(entries), object)
    # Two messages behind each other are one that has the fields of both.
    array[:] = [context + entry.SerializeToString() for entry in entries]
    return {INPUT: array}


def _feature(name: str, content: Any) -> bytes:
    values = content if type(content) is list else [content]
    kinds: list[int] = []
    for value in values:
        kind = _kind(name, value)
        if kinds and kind != kinds[0]:
            raise invalid(
                f"Unexpected element type in feature: {name} expecting type: {_KINDS[kinds[0]]}"
            )
        if kind == _INTEGERS and value >= 2**63:
            raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        kinds.append(kind)
    if not kinds:
        return b""
    if kinds[0] == _BYTES:
        return _field(_BYTES, b"".join(_field(1, string_of(value)) for value in values))
    if kinds[0] == _FLOATS:
        with np.errstate(over="ignore"):  # to infinity, as a cast in C does
            packed = np.array(values, np.float64).astype("<f4").tobytes()
    else:
        packed = b"".join(_varint(int(value) % 2**64) for value in values)
    return _field(kinds[0], _field(1, packed))


def _kind(name: str, value: Any) -> int:
    if type(value) is str or is_binary(value):
        return _BYTES
    if type(value) is bool or (type(value) is int and -(2**63) <= value < 2**64):
        return _INTEGERS
    if type(value) in (int, float):  # An integer that large is a double to rapidjson.
        return _FLOATS
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {json_type(value)}")


def _field(number: int, content: bytes) -> bytes:
    """Returns a field of bytes (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _text(name: str) -> bytes:
    return name.encode("utf-8", "replace")
