"""Faults of the examples themselves: leaks between splits, copies, classes out of balance.

Two examples are the same when their contents are, whatever their labels; where x is no image, the
targets must be equal too: rows of a table may well repeat their features, and equal rows under
different labels are a warning. Windows of a text repeat
each other by nature, and count only where most of a split is in another.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from tfbp import fingerprint
from tfbp.data import structures
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.finding import Finding, listed
from tfbp.tasks import several
from tfbp.tasks.multi_label import MultiLabel
from tfbp.tasks.task import Task

# Largest ratio between the sizes of two classes that passes without a word.
_BALANCED = 10


def findings(splits: Splits, task: Task) -> Iterator[Finding]:
    """Yields `split-overlap`, `duplicates`, `class-missing` and `imbalance`."""
    parts = splits.parts()
    keys = {name: _keys(examples) for name, examples in parts.items()}
    for one, other in itertools.combinations(parts, 2):
        yield from _overlap(parts, keys, one, other)
        yield from _contrary_overlap(parts, keys, one, other)
    for name, examples in parts.items():
        if examples.characters_per_token is None:
            yield from _duplicates(name, examples, keys[name])
            yield from _contrary(name, examples, keys[name])
    for part in several.parts(task):
        where = f"of the output {part.name!r}: " if part.name else ""
        for finding in _of_labels(part.splits(splits), part.task):
            yield dataclasses.replace(finding, message=where + finding.message)


def _of_labels(splits: Splits, task: Task) -> Iterator[Finding]:
    parts = splits.parts()
    if isinstance(task, MultiLabel):
        yield from _labels(parts, task.classes)
    elif splits.train.labels is not None:
        names = getattr(task, "classes", None) or splits.classes or ()
        yield from _classes(parts, names)
        yield from _imbalance(splits.train, names, task)


def _keys(examples: Examples) -> np.ndarray:
    """Returns [size], dtype "S64": equal keys, equal examples."""
    x = examples.spec[0]
    if not structures.is_nested(x) and x.shape.rank == 3:
        return examples.hashes
    targets = map(np.ascontiguousarray, structures.leaves(examples.targets).values())
    rows = zip(examples.hashes.tolist(), *targets, strict=True)
    return np.array(
        [fingerprint.of_bytes(row, *(each.tobytes() for each in y)) for row, *y in rows], "S64"
    )


def _overlap(
    parts: dict[str, Examples], keys: dict[str, np.ndarray], one: str, other: str
) -> Iterator[Finding]:
    shared = np.flatnonzero(np.isin(keys[other], keys[one]))
    size, text = len(keys[other]), parts[other].characters_per_token is not None
    if not len(shared) or (text and len(shared) < size / 2):
        return
    pairs = _pairs(parts[other], keys[other], shared, parts[one], keys[one])
    yield Finding(
        "split-overlap",
        f"{len(shared)} of the {size} examples of `{other}` are in `{one}` too: {listed(pairs)}. "
        "A model is not judged by what it was trained on or chosen by: take them out of one of the "
        "two, or let `tfbp.Splits.from_arrays` or `tfbp.Splits.cut` cut by content.",
        # A text may say all that is in it twice; the very same windows are the same text.
        warning=text and not np.array_equal(keys[one], keys[other]),
    )


def _duplicates(name: str, examples: Examples, keys: np.ndarray) -> Iterator[Finding]:
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    originals = first[which].tolist()
    copies = [number for number, original in enumerate(originals) if original != number]
    if not copies:
        return
    pairs = [f"{examples.name(copy)} (as {examples.name(originals[copy])})" for copy in copies]
    message = f"{len(copies)} of the {len(keys)} examples of `{name}` are copies: {listed(pairs)}."
    if examples.labels is not None:
        labels = examples.labels
        contrary = [
            examples.name(copy) for copy in copies if labels[copy] != labels[originals[copy]]
        ]
        if contrary:
            message += f" Their labels differ at {listed(contrary)}: only one can be right."
    yield Finding("duplicates", f"{message} Leave them out, or they count twice.", warning=True)


def _contrary_overlap(
    parts: dict[str, Examples], keys: dict[str, np.ndarray], one: str, other: str
) -> Iterator[Finding]:
    """Yields what `_overlap` does of rows that are equal but for their labels."""
    known, asked = parts[one], parts[other]
    if known.labels is None or asked.labels is None:
        return
    equal = np.isin(asked.hashes, known.hashes) & ~np.isin(keys[other], keys[one])
    rows = np.flatnonzero(equal)
    if not len(rows):
        return
    pairs = _pairs(asked, asked.hashes, rows, known, known.hashes)
    yield Finding(
        "split-overlap",
        f"{len(rows)} of the {asked.size} examples of `{other}` are in `{one}` too, and their "
        f"labels contradict: {listed(pairs)}. Either the labels are wrong, or x does not hold what "
        "decides.",
        warning=True,
    )


def _contrary(name: str, examples: Examples, keys: np.ndarray) -> Iterator[Finding]:
    """Yields what `_duplicates` does of rows that are equal but for their labels."""
    labels = examples.labels
    if labels is None or keys is examples.hashes:
        return
    _, first, which = np.unique(examples.hashes, return_index=True, return_inverse=True)
    originals = first[which]
    rows = np.flatnonzero(labels != labels[originals]).tolist()
    if not rows:
        return
    pairs = [f"{examples.name(row)} (as {examples.name(int(originals[row]))})" for row in rows]
    yield Finding(
        "duplicates",
        f"{len(rows)} of the {examples.size} examples of `{name}` are equal to others, and their "
        f"labels contradict: {listed(pairs)}. Either the labels are wrong, or x does not hold what "
        "decides.",
        warning=True,
    )


def _weighing(part: str, examples: Examples) -> np.ndarray | slice:
    """Returns which examples count: of `train` those whose weight is not 0."""
    if part == "train" and examples.weights is not None:
        return np.asarray(examples.weights) > 0
    return slice(None)


def _classes(parts: dict[str, Examples], names: Sequence[str]) -> Iterator[Finding]:
    for part, examples in parts.items():
        counts = _counts(examples, names, _weighing(part, examples))
        missing = [repr(name) for name, count in zip(names, counts, strict=False) if not count]
        of_weight = "" if examples.weights is None else " with a weight above 0"
        if missing and part == "train":
            yield Finding(
                "class-missing",
                f"`train` has no example of {listed(missing)}{of_weight}: it cannot be learnt. "
                "Add examples, or leave the class out.",
            )
        elif missing:
            yield Finding(
                "class-missing",
                f"`{part}` has no example of {listed(missing)}: its results say nothing about it.",
                warning=True,
            )


def _labels(parts: dict[str, Examples], names: Sequence[str]) -> Iterator[Finding]:
    """Yields what `_classes` does, for rows of 0 and 1; others are refused by the task."""
    for part, examples in parts.items():
        if getattr(examples.targets, "shape", ())[1:] != (len(names),):
            continue
        share = examples.targets[_weighing(part, examples)].mean(axis=0)
        for count, having in ((0, "has"), (1, "lacks")):
            concerned = np.flatnonzero(share == count).tolist()
            if not concerned:
                continue
            named = [repr(names[label]) for label in concerned]
            every = f"no example of `{part}` {having} {listed(named)}: "
            if part == "train":
                told = "it cannot be learnt. Add examples, or leave the label out."
            else:
                told = "its results say nothing about it."
            yield Finding("class-missing", every + told, warning=part != "train")


def _imbalance(train: Examples, names: Sequence[str], task: Task) -> Iterator[Finding]:
    counts = _counts(train, names, _weighing("train", train))
    present = np.flatnonzero(counts)
    largest = int(present[counts[present].argmax()])
    smallest = int(present[counts[present].argmin()])
    if counts[largest] <= _BALANCED * counts[smallest]:
        return
    if task.class_weights_for(train) is not None:
        return
    titles = dict(enumerate(names))
    weights = counts.sum() / (len(present) * counts[present])
    shown = [
        f"{titles.get(label, label)}: {weight:.3g}"
        for label, weight in zip(present.tolist(), weights, strict=True)
    ]
    yield Finding(
        "imbalance",
        f"`train` has {counts[largest]} examples of {titles.get(largest, largest)!r} and "
        f"{counts[smallest]} of {titles.get(smallest, smallest)!r}. These class weights would make "
        f"up for it: {listed(shown, 10)}. `tfbp.Classification(…, class_weights='balanced')`, or "
        "`--class_weights=balanced`, applies them.",
        warning=True,
    )


def _counts(examples: Examples, names: Sequence[str], counted: np.ndarray | slice) -> np.ndarray:
    labels = examples.labels
    assert labels is not None  # as `findings` has seen
    labels = labels[counted]
    # A label outside the classes is refused by the task.
    return np.bincount(labels[labels >= 0], minlength=len(names))


def _pairs(
    asked: Examples, keys: np.ndarray, rows: np.ndarray, known: Examples, known_keys: np.ndarray
) -> list[str]:
    """Names rows of one part, each with the first example of another part that has its key."""
    order = np.argsort(known_keys, kind="stable")
    twins = order[np.searchsorted(known_keys, keys[rows], sorter=order)]
    return [
        f"{asked.name(there)} (as {known.name(here)})"
        for there, here in zip(rows.tolist(), twins.tolist(), strict=True)
    ]
