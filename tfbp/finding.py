"""A finding of the audit, before any training."""

import dataclasses
from collections.abc import Sequence

from tfbp.errors import UserError

IDS = (
    "weights-not-loaded",
    "random-frozen",
    "not-connected",
    "classifier-below",
    "no-gradient",
    "dead-layer",
    "exploding",
    "statistics-move",
    "loss-mismatch",
    "preprocessing",
    "rounded-input",
    "split-overlap",
    "duplicates",
    "near-copies",
    "class-missing",
    "imbalance",
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that would silently go wrong.

    Attributes:
        id: stable name, by which it can be accepted: "random-frozen".
        message: names the layer or example concerned, and the remedy.
        warning: True where training may go on; else it is an error.
    """

    id: str
    message: str
    warning: bool = False


class AuditFailed(UserError):
    """The audit has errors among its findings that were not accepted."""


def listed(names: Sequence[str], limit: int = 4) -> str:
    """Returns names in a line, a long list cut: "a, b, c, d and 9 more"."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
