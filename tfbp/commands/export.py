"""Publishes the model of an ended run as the next version.

export RUN [--export_dir=…] [--keep_versions=N]
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from tfbp import driver
from tfbp.commands import flags
from tfbp.errors import mistake
from tfbp.exporting import forked_process
from tfbp.settings import Fields, field


@dataclasses.dataclass(frozen=True)
class ExportFlags(Fields):
    export_dir: str = field("saved_models", "folder that receives <recipe>/<version>")
    keep_versions: int = field(0, "newest versions that stay there; 0: all", low=0)


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    settings, rest = flags.parse(ExportFlags, arguments, about=__doc__)
    if len(rest) != 1:
        raise mistake("RUN", "must be one run's directory", " ".join(rest))
    with forked_process.ready():
        run = driver.load(rest[0], recipes_folder)
        folder = pathlib.Path(settings.export_dir) / run.result["recipe"]
        print(run.export(str(folder), keep_versions=settings.keep_versions))
