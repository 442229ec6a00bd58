"""Prints the recipes, a line each: `list`."""

import pathlib
from collections.abc import Sequence

from tfbp import recipe
from tfbp.commands import flags
from tfbp.errors import mistake
from tfbp.reporting.table import table
from tfbp.settings import Fields


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    _, rest = flags.parse(Fields, arguments, about=__doc__)
    if rest:
        raise mistake("list", "must be called without arguments", rest[0])
    summaries = recipe.summaries(recipes_folder)
    if summaries:
        print(table(list(summaries.items())))
