"""Prints the metrics of an ended run: `evaluate RUN [--split=test] [--json]`."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from tfbp import driver
from tfbp.commands import flags, metrics
from tfbp.errors import mistake
from tfbp.settings import Fields, field


@dataclasses.dataclass(frozen=True)
class EvaluateFlags(Fields):
    split: str = field("test", "which examples", choices=("train", "validation", "test"))
    json: bool = field(False, "print one JSON object")


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    settings, rest = flags.parse(EvaluateFlags, arguments, about=__doc__)
    if len(rest) != 1:
        raise mistake("RUN", "must be one run's directory", " ".join(rest))
    run = driver.load(rest[0], recipes_folder)
    examples = getattr(run.splits, settings.split)
    if examples is None:
        raise mistake("split", "must be one that the run's data has", settings.split)
    values = run.evaluate(examples)
    if settings.json:
        print(json.dumps(values, ensure_ascii=False))
        return
    print(metrics.of_splits({f"{settings.split} ({examples.size})": values}))
    for name, report in values.items():  # "report", or of several outputs "species_report"
        if isinstance(report, dict):
            title = name.removesuffix("report").rstrip("_")
            print(f"\n{title}\n" if title else "")
            print(metrics.of_classes(report))
