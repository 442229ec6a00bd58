"""Prints what a run would train, and trains nothing: `plan RECIPE [--flag=value …]`."""

import pathlib
from collections.abc import Sequence

from tfbp import driver
from tfbp.commands import flags
from tfbp.reporting.table import table
from tfbp.training.audit import PhasePlan


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    module, config = flags.recipe_and_config(recipes_folder, arguments, about=__doc__)
    print("\n\n".join(map(_text, driver.plan(module, config))))


def _text(plan: PhasePlan) -> str:
    phase = plan.phase
    rate = f"{phase.optimizer}, {phase.schedule} learning rate {phase.learning_rate:g}"
    head = f"{phase.name}: {phase.epochs} epochs, {plan.steps:,} steps, {rate}"
    rows = [("", "layer", "parameters")]
    for verb, layers in (("trains", plan.trainable), ("frozen", plan.frozen)):
        rows += [(verb, path, f"{count:,}") for path, count in layers.items()]
        rows.append((verb, f"total: {len(layers)} layers", f"{sum(layers.values()):,}"))
    return f"{head}\n{table(rows, numbers=[2])}"
