"""SHA-256 of bytes, arrays and settings: the one notion of "the same"."""

import hashlib
import json
from collections.abc import Iterable
from concurrent import futures

import numpy as np
import numpy.typing as npt


def of_bytes(*parts: bytes | memoryview) -> str:
    """Returns the hex SHA-256 of `parts`, each after its length, so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def of_array(array: npt.ArrayLike) -> str:
    """Returns the hex SHA-256 of an array's dtype, shape and contents.

    An array in C order is hashed in place, without a copy. Text of any length, bytes or str, is
    hashed entry by entry.
    """
    array = np.asarray(array)
    head = f"{array.dtype.str}{array.shape}".encode()
    if array.dtype.kind == "O":  # the bytes of such an array are addresses
        entries = (each if isinstance(each, bytes) else each.encode() for each in array.flat)
        return of_bytes(head, *entries)
    return of_bytes(head, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def of_arrays(arrays: Iterable[npt.ArrayLike]) -> list[str]:
    """Applies `of_array` to each array, on all cores: hashlib releases the GIL."""
    with futures.ThreadPoolExecutor() as pool:
        return list(pool.map(of_array, arrays))


def of_json(value: object) -> str:
    """Returns the hex SHA-256 of a JSON value, independent of the order of its keys."""
    return of_bytes(json.dumps(value, sort_keys=True, default=str).encode())
