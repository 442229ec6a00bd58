"""Sides that are measured by turns in one run, and the table of what came of it.

outcomes = by_turns({"tfbp": ours, "plain Keras": plain}, turns=3)
goal = Goal("plain Keras / tfbp", ratio(outcomes, "plain Keras", "tfbp"), least=6)
print(report(outcomes, [goal]))
"""

import contextlib
import dataclasses
import gc
import io
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import keras

from tfbp.commands import flags
from tfbp.errors import UserError
from tfbp.reporting.table import table
from tfbp.settings import Fields, field

# What a side measures, by what it is called; None: the side is not there.
Outcome = Mapping[str, float] | None
Outcomes = Mapping[str, Sequence[Outcome]]


@dataclasses.dataclass(frozen=True)
class Flags(Fields):
    turns: int = field(3, "of each side; their median counts", low=1)


@dataclasses.dataclass(frozen=True)
class Goal:
    """A number, and the bound that it must keep: `least`, `most`, or none.

    The number is None where a side was not there.
    """

    name: str
    value: float | None
    least: float | None = None
    most: float | None = None

    def row(self) -> tuple[str, str, str, str]:
        """Returns the cells: name, number, bound, whether it is kept."""
        due = "" if self.least is None else f"≥ {self.least:g}"
        due = due if self.most is None else f"≤ {self.most:.3g}"
        if self.value is None:
            return self.name, "–", due, ""
        low = -math.inf if self.least is None else self.least
        high = math.inf if self.most is None else self.most
        kept = "yes" if low <= self.value <= high else "no"
        return self.name, f"{self.value:.3g}", due, kept if due else ""


def settings(kind: type, about: str):
    """Returns what the command line sets. It ends the program for `--help` and for a mistake."""
    try:
        found, rest = flags.parse(kind, sys.argv[1:], about=about)
        if rest:
            raise UserError(f"A benchmark takes flags alone. Received: {rest[0]!r}.")
        return found
    except flags.Help as help_:
        print(help_)
        sys.exit(0)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def by_turns(sides: Mapping[str, Callable[[], Outcome]], turns: int) -> Outcomes:
    """Calls each side once a turn, in the same order, each on a fresh Keras session."""
    found: dict[str, list[Outcome]] = {name: [] for name in sides}
    for turn in range(1, turns + 1):
        for name, side in sides.items():
            keras.utils.clear_session()
            gc.collect()
            found[name].append(side())
            print(f"turn {turn}/{turns}: {name}", file=sys.stderr, flush=True)
    return found


def seconds(call: Callable[[], object]) -> float:
    """Returns how long a call takes by the clock, in seconds. What it prints is dropped."""
    with contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        call()
        return time.perf_counter() - began


def median(outcomes: Outcomes, side: str, column: str) -> float | None:
    """Returns the median of a side over the turns; None where it was not there."""
    found = [outcome[column] for outcome in outcomes[side] if outcome and column in outcome]
    return statistics.median(found) if found else None


def ratio(outcomes: Outcomes, over: str, under: str, column: str = "seconds") -> float | None:
    """Returns the quotient of two sides' medians; None where one was not there."""
    first, second = (median(outcomes, side, column) for side in (over, under))
    return None if first is None or second is None else first / second


def report(outcomes: Outcomes, goals: Sequence[Goal]) -> str:
    """Returns two tables: the medians of each side, with all turns of the first column; and what
    is due.
    """
    columns = list(dict.fromkeys(key for each in outcomes.values() for key in each[0] or ()))
    rows = [("side", *columns, f"{columns[0]}, all turns")]
    for side, each in outcomes.items():
        if each[0] is None:
            rows.append((side, "not installed", *[""] * len(columns)))
            continue
        cells = [median(outcomes, side, column) for column in columns]
        shown = ("" if cell is None else number(cell) for cell in cells)
        rows.append((side, *shown, " ".join(number(outcome[columns[0]]) for outcome in each)))
    sides = table(rows, numbers=range(1, len(columns) + 1))
    due = table([("", "measured", "due", "kept"), *(goal.row() for goal in goals)], numbers=[1])
    return f"{sides}\n\n{due}"


def number(value: float) -> str:
    """Returns a number with four digits, or with all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
