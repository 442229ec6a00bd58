"""Prints what a run would train, phase by phase: `plan RECIPE [--time] [--flag=value …]`.

For groups of layers: how many values train, are frozen, or are statistics that training moves, and
the learning rate; and what part of the model is computed only once for each example, because the
phase cannot change it, and how much disk that takes. `--time` adds how long each phase would take
without that, and how much memory: it takes a few steps with a model that is then dropped. What the
audit finds follows. Nothing is written.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from tfbp import driver
from tfbp import recipe as recipes
from tfbp.caching.cache import Outlook
from tfbp.commands import flags
from tfbp.reporting.table import table
from tfbp.running.plan import Group, PhasePlan
from tfbp.training.phase import Phase

SHOWN = 3  # of the tensors at a cut


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `plan` takes beside a recipe's own flags."""

    time: bool = recipes.field(False, "estimate time and memory, from a few steps of each phase")


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    module, config = flags.recipe_and_config(
        recipes_folder, arguments, about=__doc__, also=Settings
    )
    plan = driver.plan(module, config, time=config.time)
    print("\n\n".join(map(_text, plan.phases)))
    for finding in plan.findings:
        kind = "warning" if finding.warning else "error, unless it is accepted"
        print(f"\n{finding.id} ({kind}): {finding.message}")


def _text(plan: PhasePlan) -> str:
    phase = plan.phase
    length = f"{phase.epochs:,} epochs, {plan.steps:,} steps"
    if plan.updates != plan.steps:
        length += f", {plan.updates:,} updates"
    head = f"{phase.name}: {length}, {phase.optimizer}, {phase.schedule} rate{_rest(phase)}"
    rows = [("", "layers", "trains", "frozen", "statistics", "learning rate")]
    total = Group(
        "total",
        *(
            sum(getattr(group, name) for group in plan.groups)
            for name in ("layers", "trains", "frozen", "statistics")
        ),
        rates=(),
    )
    rows += [
        (group.name, *(f"{count:,}" for count in _counts(group)), _range(group.rates))
        for group in (*plan.groups, total)
    ]
    lines = [head, table(rows, numbers=[1, 2, 3, 4])]
    lines.append(_features(plan.features))
    if plan.cost:
        lines.append(
            f"about {plan.cost.seconds:,.1f} s with validation, and "
            f"{plan.cost.memory / 2**20:,.0f} MiB of main memory for all of the process so far"
            + (", if each epoch computed all of it" if plan.features.cached else "")
        )
    return "\n".join(lines)


def _features(outlook: Outlook) -> str:
    if not outlook.cut:
        return f"features are not cached: {outlook.obstacle}"
    where = ", ".join(outlook.cut[-SHOWN:])
    if len(outlook.cut) > SHOWN:
        where = f"{len(outlook.cut):,} tensors, the last of them {where}"
    size = f"{outlook.rows:,} rows of {outlook.bytes / 1e6:,.1f} MB in all"
    shared = f"{outlook.saves:.1%} of a forward pass, up to {where}"
    if not outlook.cached:
        return f"features are not cached: {outlook.obstacle} ({shared}: {size})"
    text = f"{shared}, computed once for each example: {size}"
    return f"{text}; {outlook.obstacle}" if outlook.obstacle else text


def _counts(group: Group) -> tuple[int, ...]:
    return group.layers, group.trains, group.frozen, group.statistics


def _range(rates: Sequence[float]) -> str:
    return " to ".join(f"{rate:g}" for rate in dict.fromkeys((*rates[:1], *rates[-1:])))


def _rest(phase: Phase) -> str:
    """Returns the settings that stand nowhere else in the text and are not at their default."""
    said = ("name", "trainable", "epochs", "learning_rate", "optimizer", "schedule")
    return "".join(
        f", {item.name} {getattr(phase, item.name)}"
        for item in dataclasses.fields(phase)
        if item.name not in said and getattr(phase, item.name) != item.default
    )
