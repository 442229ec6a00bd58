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
from tfbp.caching.cache import Outlook
from tfbp.commands import flags
from tfbp.reporting.table import table
from tfbp.running.plan import Group, PhasePlan
from tfbp.settings import Fields, field
from tfbp.training import rules

SHOWN = 3  # of the tensors at a cut


@dataclasses.dataclass(frozen=True)
class PlanFlags(Fields):
    """What `plan` takes beside a recipe's own flags."""

    time: bool = field(False, "estimate time and memory, from a few steps of each phase")


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    module, config = flags.recipe_and_config(
        recipes_folder, arguments, about=__doc__, also=PlanFlags
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
    head = (
        f"{phase.name}: {length}, {rules.text(phase.optimizer)}, {phase.schedule} rate{_rest(plan)}"
    )
    rows = [("", "layers", "trains", "frozen", "statistics", "learning rate")]
    counts = [_counts(group) for group in plan.groups]
    names = [*(group.name for group in plan.groups), "total"]
    rates = [*(_range(group.rates) for group in plan.groups), ""]
    total = tuple(map(sum, zip(*counts, strict=True)))
    for name, numbers, rate in zip(names, [*counts, total], rates, strict=True):
        layers, trains, frozen, statistics = (f"{number:,}" for number in numbers)
        rows.append((name, layers, trains, frozen, statistics, rate))
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


def _rest(plan: PhasePlan) -> str:
    """Returns the settings that stand nowhere else in the text and are not at their default, or
    are not the recipe's own.
    """
    shown = ("name", "trainable", "epochs", "learning_rate", "optimizer", "schedule")
    text = ""
    for item in dataclasses.fields(plan.phase):
        value = getattr(plan.phase, item.name)
        if item.name in plan.overridden:
            off = "off" if value is None else value
            text += f", {item.name} {off} (the recipe's phase: {plan.overridden[item.name]})"
        elif item.name not in shown and value != item.default:
            text += f", {item.name} {value}"
    return text
