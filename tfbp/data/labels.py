"""Labels as users hand them in: whole numbers, names, or one-hot rows; and the names of classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from tfbp.data import array_like, missing, structures, tags
from tfbp.data.numbers import unboxed
from tfbp.errors import UserError, mistake

Classes = Sequence[str] | Sequence[int]
# Class names in label order; of several outputs, by the names of these.
Names = tuple[str, ...] | dict[str, tuple[str, ...]]


def separate_each(
    y: object, classes: Classes | Mapping[str, Classes] | None
) -> tuple[Any, Names | None]:
    """Separates labels and class names of an array, or of each array of a structure, whose class
    names go by the names of the arrays (`structures.joined`).

    Raises:
        tfbp.UserError: as `separate`, or there are `classes` for something else than the arrays.
    """
    of_each: dict[str, Classes] = dict(classes) if isinstance(classes, Mapping) else {}
    found: dict[str, tuple[str, ...]] = {}

    def separated(path: structures.Path, leaf: object) -> np.ndarray:
        name = structures.joined(path)
        given: Any = of_each.pop(name, None) if path else classes
        targets, names = separate(leaf, given, structures.named("y", path))
        if names is not None:
            found[name] = names
        return targets

    if not structures.is_nested(y) and isinstance(classes, Mapping):
        raise mistake("classes", "must be a list, as `y` is one array", classes)
    targets = structures.of_user("y", y, separated)
    if not structures.is_nested(targets):
        return targets, found.get("")
    if of_each or not isinstance(classes, Mapping | None):
        known = [structures.joined(path) for path in structures.leaves(targets)]
        received = next(iter(of_each), classes)
        raise mistake("classes", "must be by the name of the labels in `y`", received, known)
    return targets, found or None


def separate(
    labels: object, classes: Classes | None, argument: str = "y"
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Separates labels and class names.

    Names, [size] or [size, 1], become their positions in `classes`; without `classes` the names are
    those that occur, sorted. Whole numbers are positions in `classes` already, unless `classes` are
    whole numbers themselves: then they are looked up like names. One-hot rows become labels if they
    are whole numbers or booleans, or if there are `classes`; floats that are whole numbers do so if
    there are `classes`. Other rows of 0 and 1 of these types, and lists of names, are several
    labels each: see `tags`. A pandas categorical with an order has its categories for classes, and
    the columns of a DataFrame of such rows have names, by which `classes` order them. Values to
    predict stay as they are, and so does what is no array.

    Raises:
        tfbp.UserError: a label is missing or is not among `classes`, a name cannot be written as
            UTF-8, or there are `classes` and the labels are fractions.
    """
    if classes is not None:
        classes = in_order(classes)
    elif (categories := _ordered_categories(labels)) is not None:
        return categories
    if (lists := tags.lists(labels, argument)) is not None:
        if any(len(names) != 1 for names in lists):
            return tags.from_lists(lists, classes, argument)
        labels = [name for (name,) in lists]
    y = refuse_missing(labels, [] if classes is None else list(map(str, classes)), argument)
    if y.dtype.kind == "O" and not any(isinstance(value, (str, bytes)) for value in y.flat):
        y = unboxed(argument, y)
    if y.ndim == 2 and y.shape[1] == 1 and (y.dtype.kind != "f" or classes is not None):
        y = y[:, 0]
    if tags.are_rows(y) and (y.dtype.kind != "f" or classes is not None):
        columns = tags.columns(labels)
        if columns is not None:
            y, classes = tags.by_name(y, columns, classes)
        if not is_one_hot(y):
            return tags.from_rows(y, classes)
        y = y.argmax(axis=1)
    if y.dtype.kind in "SUOT":
        _check_names(argument, labels if isinstance(labels, list | tuple) else y.ravel().tolist())
        return _by_name(y, classes, argument)
    if classes is None:
        return y, None
    if y.dtype.kind == "f":
        fractions = np.flatnonzero((y != np.round(y)).reshape(len(y), -1).any(axis=1))
        if y.ndim != 1 or len(fractions):
            received = f"{y[fractions[0]]} (row {fractions[0]})" if len(fractions) else y.shape
            rule = "must hold whole labels, or one-hot rows, when `classes` are given"
            raise mistake(argument, rule, received)
        y = y.astype(np.int64)
    names = tuple(map(str, classes))
    if y.ndim == 1 and y.dtype.kind in "iu" and not any(isinstance(name, str) for name in classes):
        return _positions(y.tolist(), [int(name) for name in classes], argument), names
    return y, names


def in_order(classes: Classes) -> list[Any]:
    """Checks that class names have an order, which says what each label means.

    Raises:
        tfbp.UserError: they have none that lasts, as a set, or are one text.
    """
    has_order = hasattr(classes, "__getitem__") and hasattr(classes, "__len__")
    if not has_order or isinstance(classes, (str, bytes, Mapping)):
        raise mistake("classes", "must be a list of names, in the order of their labels", classes)
    return list(classes)


def _ordered_categories(labels: Any) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Labels and class names of a pandas categorical with an order, in that; None: it is none."""
    if getattr(labels, "ndim", 0) == 2 and hasattr(labels, "iloc") and labels.shape[1] == 1:
        labels = labels.iloc[:, 0]
    if not getattr(getattr(labels, "dtype", None), "ordered", False):
        return None
    codes = np.asarray(getattr(labels, "cat", labels).codes, np.int64)
    if (codes < 0).any():
        return None  # Some are missing: `refuse_missing` says so.
    names = list(map(str, labels.dtype.categories))
    used = np.unique(codes)
    if unused := [name for code, name in enumerate(names) if code not in used]:
        logging.warning(
            "No label is of the categories %s: they are no classes.", ", ".join(map(repr, unused))
        )
    return np.searchsorted(used, codes), tuple(names[code] for code in used)


def refuse_missing(values: object, classes: Sequence[str] = (), argument: str = "y") -> np.ndarray:
    """Refuses labels or targets of which some are missing; `classes` may be called like it.

    Raises:
        tfbp.UserError: some are; it says in which rows.
    """
    y = array_like.array(argument, values)
    empty = missing.mask(values)
    if classes and empty.any():
        empty &= ~np.isin(np.array(y, str), classes)
    if not empty.any():
        return y
    rows = np.flatnonzero(empty.reshape(len(y), -1).any(axis=1)) if y.ndim else [0]
    first = y[rows[0]] if y.ndim else y
    value = first if np.ndim(first) == 0 else first[empty[rows[0]]][0]
    if y.dtype.kind == "f":
        value = float(value)
    more = f" and in {len(rows) - 1:,} more" if len(rows) > 1 else ""
    mend = "Leave such rows out"
    if isinstance(value, str):
        mend += ", or name the class in `classes` if it is one"
    raise UserError(
        f"`{argument}` must hold a value in every row: it is missing in row {rows[0]}{more}. "
        f"Received: {value!r}. {mend}."
    )


def is_one_hot(rows: np.ndarray) -> bool:
    """Whether each row, of two entries or more, is 1 at one of them and 0 elsewhere."""
    if rows.ndim != 2 or rows.shape[1] < 2 or rows.dtype.kind not in "biuf":
        return False
    return bool(np.isin(rows, (0, 1)).all() and (rows.sum(axis=1) == 1).all())


def check_each(targets: Any, classes: Names | Sequence[str] | None) -> Names | None:
    """Checks that labels and class names fit each other, for an array or each of a structure.

    Returns:
        The names, those that are not given by default; None: nothing are labels.

    Raises:
        tfbp.UserError: as `default_classes` and `check_classes`.
    """
    known: dict[str, Any] = dict(classes) if isinstance(classes, Mapping) else {"": classes}
    known = {name: None if given is None else in_order(given) for name, given in known.items()}
    for path, leaf in structures.leaves(targets).items():
        name, argument = structures.joined(path), structures.named("y", path)
        if is_label(leaf):
            names = known.get(name)
            names = default_classes(leaf, argument) if names is None else tuple(names)
            check_classes(leaf, names, argument)
            known[name] = names
    if not structures.is_nested(targets):
        return None if known[""] is None else tuple(known[""])
    return {name: tuple(names) for name, names in known.items() if names is not None} or None


def is_label(targets: object) -> bool:
    """Whether targets are one class index for each example."""
    return isinstance(targets, np.ndarray) and targets.dtype == np.int64 and targets.ndim == 1


def default_classes(labels: np.ndarray, argument: str = "y") -> tuple[str, ...]:
    """The class names of labels that are 0, 1, … without a gap: "0", "1", ….

    Raises:
        tfbp.UserError: they are not; it says what mends that.
    """
    present = np.unique(labels)
    if np.array_equal(present, np.arange(len(present))):
        return tuple(map(str, present.tolist()))
    shown = ", ".join(map(str, present[:6].tolist())) + (", …" if len(present) > 6 else "")
    numbers = present.tolist() if len(present) <= 6 else "[…]"
    raise UserError(
        f"`{argument}` must hold the labels 0, 1, 2, … without a gap when there are no `classes`. "
        f"Received: {len(present):,} different numbers, {shown}. Give them as names, "
        f"`{argument}.astype(str)`, or say which numbers are classes: `classes={numbers}`. "
        "Values to predict must be floats."
    )


def check_classes(labels: np.ndarray, classes: Sequence[str], argument: str = "y") -> None:
    """Checks that labels and class names fit each other.

    Raises:
        tfbp.UserError: one class only, a name twice or one that cannot be written as UTF-8, fewer
            examples than classes, a label outside `classes`, a class without examples.
    """
    twice = [name for name in classes if list(classes).count(name) > 1]
    if twice:
        raise mistake("classes", "must differ from each other", twice[0])
    check_text("classes", classes)
    if len(classes) < 2:
        raise mistake("classes", "must be two or more", list(classes))
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        row = outside[0]
        rule = f"must hold labels from 0 to {len(classes) - 1}, one for each class (row {row})"
        raise mistake(argument, rule, int(labels[row]))
    if len(labels) < len(classes):
        raise UserError(
            f"There must be at least one example of each class. "
            f"Received: {len(labels)} examples of {len(classes)} classes."
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        rule = f"must each have an example; {classes[empty[0]]!r} has none{more}"
        raise mistake("classes", rule, list(classes))


def check_text(argument: str, names: Sequence[str]) -> None:
    """Checks that names can be written as UTF-8, as every export and log does.

    Raises:
        tfbp.UserError: one cannot: it holds half of a surrogate pair, or bytes that are no text.
    """
    for name in names:
        try:
            str(name).encode()
        except UnicodeEncodeError:
            shown = str(name) if len(str(name)) < 80 else f"{str(name)[:80]}…"
            raise mistake(argument, "must be text that UTF-8 can hold", shown) from None


def _check_names(argument: str, names: Sequence[object]) -> None:
    for row, name in enumerate(names):
        if not isinstance(name, str | bytes):
            raise mistake(argument, f"must hold names in all rows or in none (row {row})", name)


def _by_name(
    y: np.ndarray, classes: Classes | None, argument: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    if y.ndim != 1:
        raise mistake(argument, "must be one name for each example, of the shape [size]", y.shape)
    names = [_text(name) for name in y.tolist()]
    known = tuple(map(str, sorted(set(names)) if classes is None else classes))
    check_text(argument, known)
    return _positions(names, known, argument), known


def _text(name: object) -> str:
    # Bytes that are no text become what `check_text` refuses.
    return name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)


def _positions(values: Sequence, classes: Sequence, argument: str) -> np.ndarray:
    position = {name: label for label, name in enumerate(classes)}
    for row, value in enumerate(values):
        if value not in position:
            known = map(str, classes)
            raise mistake(argument, f"must hold names of `classes` (row {row})", value, known)
    return np.array([position[value] for value in values], np.int64)
