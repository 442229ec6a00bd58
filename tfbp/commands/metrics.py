"""Metrics as text."""

from collections.abc import Mapping

from tfbp.reporting.table import table


def of_splits(splits: Mapping[str, Mapping]) -> str:
    """Formats a table with a row for each split and a column for each metric that is a number."""
    names = list(dict.fromkeys(name for values in splits.values() for name in _numbers(values)))
    rows = [("", *names)]
    for split, values in splits.items():
        rows.append((split, *(_text(values[name]) if name in values else "" for name in names)))
    return table(rows, numbers=range(1, len(names) + 1))


def of_classes(report: Mapping) -> str:
    """Formats a report of classes: precision, recall and F1 of each, and their means."""
    means = {"(mean)": report["macro"], "(mean by support)": report["weighted"]}
    if "micro" in report:
        means["(all together)"] = report["micro"]
    return of_splits({**report["per_class"], **means})


def _numbers(values: Mapping) -> list[str]:
    return [name for name, value in values.items() if isinstance(value, int | float)]


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"
