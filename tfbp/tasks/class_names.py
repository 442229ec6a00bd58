"""The names of classes, and numbers that are given by them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfbp.data import labels
from tfbp.errors import mistake


def names_of(classes: Any, rule: str, least: int = 1) -> tuple[str, ...]:
    """Returns names in label order.

    Args:
        classes: the names, a list or a tuple; whole numbers are names as text.
        rule: what they must be.
        least: how many there must be.

    Raises:
        tfbp.UserError: they are too few or not different, have no order, or are one text.
    """
    names = tuple(map(str, labels.in_order(classes)))
    if len(names) < least or len(set(names)) < len(names):
        raise mistake("classes", rule, classes)
    return names


def check_factor(argument: str, name: object, value: Any, *, zero: bool = False) -> None:
    """Refuses what is no finite number above 0, or at least 0 with `zero`.

    Raises:
        tfbp.UserError: names what the number is for.
    """
    rule = f"must be {'at least' if zero else 'above'} 0 and finite, for {name!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise mistake(argument, "must be a number that " + rule.replace("must be", "is"), value)
    if not (value > 0 or (zero and value == 0)) or not value < float("inf"):
        raise mistake(argument, rule, value)


def weights_by_name(weights: Mapping[Any, Any], classes: Sequence[str]) -> dict[str, float]:
    """Returns class weights by name.

    Args:
        weights: name or number → weight. Where all names are whole numbers, a number is a name;
            else it is a label, from 0.
        classes: the names, in label order.

    Raises:
        tfbp.UserError: a class is unknown or named twice, or its weight is no number above 0.
    """
    numbered = all(name.removeprefix("-").isdecimal() for name in classes)
    by_name: dict[str, float] = {}
    for key, weight in weights.items():
        name = key
        if isinstance(key, (int, np.integer)):
            if numbered:
                name = str(int(key))
            elif 0 <= key < len(classes):
                name = classes[int(key)]
            else:
                rule = f"must be for the labels 0 to {len(classes) - 1}, or name classes"
                raise mistake("class_weights", rule, key)
        if name not in classes:
            raise mistake("class_weights", "must name classes", name, classes)
        if name in by_name:
            raise mistake("class_weights", "must give each class one weight", name)
        check_factor("class_weights", name, weight)
        by_name[name] = float(weight)
    return by_name
