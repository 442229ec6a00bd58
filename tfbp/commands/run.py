"""Trains, evaluates and exports: `run RECIPE [--flag=value …]`.

A run that was stopped goes on when the same command is given again; one that has ended is read.
SIGTERM and Ctrl-C stop it with a checkpoint and the exit code 75. Of several workers each is given
the same command (see `launch`).
"""

import os
import pathlib
from collections.abc import Sequence

from tfbp import driver
from tfbp.commands import flags, metrics
from tfbp.exporting import forked_process
from tfbp.reporting.table import table
from tfbp.workers import interruption


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    with forked_process.ready(), interruption.install():
        module, config = flags.recipe_and_config(recipes_folder, arguments, about=__doc__)
        run = driver.run(module, config)
    if not run.workers.is_chief:
        return
    assert run.directory
    places = [
        ("run", f"{os.path.relpath(run.directory)} ({run.result['seconds']:.1f} s)"),
        ("export", run.result["export"]["path"]),
    ]
    print(f"\n{metrics.of_splits(run.result['metrics'])}\n\n{table(places)}")
