"""Structures of tensors: one tensor alone, or dicts and tuples of them, nested at will.

A leaf's path are the keys and positions that lead to it: ("text", "ids") of `x["text"]["ids"]`, and
() of one tensor alone. Dicts count as equal whatever the order of their keys.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp.data import array_like
from tfbp.errors import mistake

Path = tuple[str | int, ...]


def of_user(argument: str, given: object, function: Callable[[Path, Any], Any]) -> Any:
    """Calls a function on each leaf, with its path, of what a user hands in.

    A dict is a structure, and so is a tuple of arrays or of structures. All else is a leaf: a list
    is an array, as NumPy takes it.

    Args:
        argument: what an error calls the whole.

    Raises:
        tfbp.UserError: an empty structure, a key that is no text, or a leaf that is no array.
    """
    return _of_user(argument, given, function, ())


def _of_user(argument: str, given: Any, function: Callable[[Path, Any], Any], path: Path) -> Any:
    if isinstance(given, Mapping):
        if not given:
            raise mistake(named(argument, path), "must hold at least one array", given)
        for key in given:
            if not isinstance(key, str) or not key:
                raise mistake(named(argument, path), "must have names for its keys", key)
        return {
            key: _of_user(argument, part, function, (*path, key)) for key, part in given.items()
        }
    if _is_tuple(given):
        return tuple(
            _of_user(argument, part, function, (*path, number)) for number, part in enumerate(given)
        )
    array_like.check(named(argument, path), given)
    return function(path, given)


def _is_tuple(given: object) -> bool:
    """Whether a value is a tuple of arrays, not one of numbers, which is an array itself."""
    return (
        isinstance(given, tuple)
        and bool(given)
        and all(
            isinstance(part, Mapping) or _is_tuple(part) or len(getattr(part, "shape", ())) > 0
            for part in given
        )
    )


def is_nested(structure: Any) -> bool:
    """Whether a structure is more than one tensor alone."""
    return isinstance(structure, dict | tuple)


def leaves(structure: Any) -> dict[Path, Any]:
    """The leaves by path, in the order of `tf.nest` and `keras.tree`: keys in theirs, sorted."""
    return {tuple(path): leaf for path, leaf in keras.tree.flatten_with_path(structure)}


def each(function: Callable[..., Any], *structures: Any) -> Any:
    """Calls a function on the leaves of structures that are alike, and returns its results so."""
    return keras.tree.map_structure(function, *structures)


def each_with_path(function: Callable[[Path, Any], Any], structure: Any) -> Any:
    """Calls a function on each leaf, with its path, and returns its results in the structure."""
    results = [function(path, leaf) for path, leaf in leaves(structure).items()]
    return keras.tree.pack_sequence_as(structure, results)


def batched(specs: Any) -> Any:
    """The `tf.TensorSpec`s of a batch of any size, of those of one example."""
    return each(lambda spec: tf.TensorSpec([None, *spec.shape], spec.dtype), specs)


def size(structure: Any) -> int:
    """The number of examples: the length of each leaf."""
    return len(keras.tree.flatten(structure)[0])


def named(argument: str, path: Path) -> str:
    """What an error calls a leaf: `x["text"][0]`."""
    return argument + "".join(f"[{key}]" if isinstance(key, int) else f'["{key}"]' for key in path)


def joined(path: Path) -> str:
    """A leaf's path in one word: "text_ids"; "" of one tensor alone."""
    return "_".join(map(str, path))


def described(structure: Any) -> str:
    """What an error says of specs or arrays: "float32 [4]", "ids: int32 [8], mask: bool [8]"."""
    return ", ".join(
        (f"{'/'.join(map(str, path))}: " if path else "")
        + f"{getattr(leaf.dtype, 'name', leaf.dtype)} {list(leaf.shape)}"
        for path, leaf in leaves(structure).items()
    )


def check_sizes(argument: str, structure: Any, of: tuple[str, Any]) -> None:
    """Checks that all leaves have as many rows as the first leaf of another structure.

    Args:
        of: what an error calls that structure, and the structure.

    Raises:
        tfbp.UserError: names both leaves.
    """
    other, model = of
    path, first = next(iter(leaves(model).items()))
    for own, leaf in leaves(structure).items():
        if len(leaf) != len(first):
            rule = f"must have one row for each of the {len(first)} rows of `{named(other, path)}`"
            raise mistake(named(argument, own), rule, len(leaf))


def take(structure: Any, rows: np.ndarray) -> Any:
    """The rows of each array."""
    return each(lambda leaf: leaf[rows], structure)
