"""Bodies that hold one list of numbers, read without a Python object for each number.

Most requests are such: `{"instances": [[0.5, 1.5]]}`. Whatever is anything else, or wrong, is left
to `json_document`, which reads and explains it exactly. What is read here it would read alike.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import simdjson

from tfbp.serving.json_tensor import FLOATS, INTEGERS, Array

_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{},:"\\'))
# What is around the list: it is the only member, or there is one with a string before or behind it.
_AROUND = {b'{"":}', b'{"":"","":}', b'{"":,"":""}'}
# simdjson's kinds of numbers.
_WIDE = {"d": np.float64, "i": np.int64, "u": np.uint64}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A document with one list of numbers, and perhaps one string.

    Attributes:
        key: of the list.
        strings: key → the string.
        shape: of the list.
    """

    key: str
    strings: dict[str, str]
    shape: tuple[int, ...]
    _list: Any

    def array(self, dtype: str) -> Array | None:
        """Returns the numbers as an array; None where not all of them are numbers of the type."""
        if dtype not in FLOATS and dtype not in INTEGERS:
            return None
        kind = "d" if dtype in FLOATS else "u" if dtype == "uint64" else "i"
        try:
            values: Array = np.frombuffer(self._list.as_buffer(of_type=kind), _WIDE[kind])
        except (TypeError, ValueError, RuntimeError):
            return None
        if len(values) != math.prod(self.shape):  # An empty list looks like one of one number.
            return None
        if dtype in INTEGERS:
            limits = np.iinfo(dtype)
            if values.min() < limits.min or values.max() > limits.max:
                return None
        with np.errstate(over="ignore"):  # to infinity, as a cast in C does
            return values.astype(dtype, copy=False).reshape(self.shape)


def read(body: bytes, max_depth: int) -> Numbers | None:
    """Returns the document of a body; None where it is not of this kind, or nests deeper."""
    structure = body.translate(None, _NO_STRUCTURE)
    start, end = structure.find(b"["), structure.rfind(b"]") + 1
    if structure[:start] + structure[end:] not in _AROUND:
        return None
    shape = _shape(structure[start:end], max_depth - 1)
    if shape is None:
        return None
    try:
        document: Any = simdjson.Parser().parse(body)
        members = {key: document[key] for key in document.keys()}  # noqa: SIM118
    except (ValueError, RuntimeError):  # one of UTF-8, one of integers below 64 bits
        return None
    strings = {key: value for key, value in members.items() if isinstance(value, str)}
    lists = {key: value for key, value in members.items() if isinstance(value, simdjson.Array)}
    if len(lists) != 1 or len(lists) + len(strings) != structure.count(b":"):
        return None
    ((key, numbers),) = lists.items()
    return Numbers(key, strings, shape, numbers)


def _shape(brackets: bytes, max_depth: int) -> tuple[int, ...] | None:
    """Returns the shape of lists of which only brackets and commas are left; None for ragged ones.

    What lists of the shape look like is written anew, level by level from inside, and compared.
    """
    depth = len(brackets) - len(brackets.lstrip(b"["))
    if depth > max_depth:
        return None
    part, shape = b"", []
    for level in range(1, depth + 1):
        end = brackets.find(b"]" * level) + level
        size = (end - (depth - level) - 1) // (len(part) + 1)
        part = b"[" + b",".join([part] * size) + b"]"
        shape.append(size)
    return tuple(reversed(shape)) if part == brackets else None
