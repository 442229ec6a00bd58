"""Scores of decisions, as scikit-learn defines them; a ratio without a denominator is 0."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divides arrays of one shape; 0 where `whole` is."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) > 0)


def of_counts(
    right: np.ndarray, support: np.ndarray, predicted: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns precision, recall and F1, [classes], from how often each class was rightly predicted,
    was there, and was predicted.
    """
    return {
        "precision": ratio(right, predicted),
        "recall": ratio(right, support),
        "f1": ratio(2 * right, support + predicted),
    }


def by_class(
    classes: Sequence[str], scores: Mapping[str, np.ndarray], support: np.ndarray
) -> dict[str, Any]:
    """Returns a report: the scores of each class with its support, `macro`, their plain mean, and
    `weighted`, their mean by support.
    """
    per_class = {
        name: {score: float(values[label]) for score, values in scores.items()}
        | {"support": int(support[label])}
        for label, name in enumerate(classes)
    }
    weights = support if support.any() else np.ones(len(support))
    return {
        "per_class": per_class,
        "macro": {score: float(values.mean()) for score, values in scores.items()},
        "weighted": {
            score: float(np.average(values, weights=weights)) for score, values in scores.items()
        },
    }


def report(
    classes: Sequence[str], target: np.ndarray, chosen: np.ndarray, precisions: Sequence[float]
) -> dict[str, Any]:
    """Returns the report of several labels.

    Args:
        target, chosen: bool [size, classes].
        precisions: the average precision of each class.
    """
    right, support = (target & chosen).sum(axis=0), target.sum(axis=0)
    predicted = chosen.sum(axis=0)
    scores = of_counts(right, support, predicted)
    scores["average_precision"] = np.array(precisions)
    micro = of_counts(*(counts.sum(keepdims=True) for counts in (right, support, predicted)))
    return {
        **by_class(classes, scores, support),
        "micro": {score: float(values[0]) for score, values in micro.items()},
    }


def average_precision(target: np.ndarray, score: np.ndarray) -> float:
    """Returns Σ (recall_n - recall_{n-1}) · precision_n over the thresholds that part the scores,
    highest first; 0 where nothing is to be found.

    Args:
        target: bool [size].
        score: [size].
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # of equal scores
    found = np.cumsum(target[order])[last]
    if not found[-1]:
        return 0.0
    steps = np.diff(found, prepend=0) / found[-1]
    return float((steps * found / (last + 1)).sum())
