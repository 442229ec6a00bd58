"""Runs the benchmarks of speed, one after the other, and writes `benchmarks/RESULTS.md`.

    python benchmarks/results.py [--data=folder:PATH] [--weights=FILE] [--torch_python=PYTHON]

Each runs in a process of its own with the flags that are given here and that it knows. A benchmark
that fails is named in the file, and makes the exit code 1. Run it on a machine that does nothing
else.
"""

import ast
import dataclasses
import datetime
import importlib
import os
import pathlib
import platform
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf
import torch_sides
import turns

import tfbp
from tfbp.settings import field

HERE = pathlib.Path(__file__).parent
BENCHMARKS = (
    "head_swap",
    "two_phase",
    "views",
    "growth",
    "small_steps",
    "language_model",
    "overhead",
    "input",
    "start",
    "workers",
)


@dataclasses.dataclass(frozen=True)
class Flags(turns.Flags):
    only: tuple[str, ...] = field(BENCHMARKS, "benchmarks to run", choices=BENCHMARKS)
    data: str = field("random", "images: random, or folder:PATH, where they count")
    weights: str = field("random", "of VGG16: random, or a file")
    torch_python: str = field("", "the Python that has PyTorch; default: this one")
    out: str = field(str(HERE / "RESULTS.md"), "the file to write")


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    sections, failed = [], []
    for name in settings.only:
        print(f"{name} …", flush=True)
        text = measured(name, settings)
        print(f"{text}\n", flush=True)
        failed += [] if text else [name]
        sections.append(section(name, text))
        # After each: hours are not lost to the last one.
        write(pathlib.Path(settings.out), about(settings), sections)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


def measured(name: str, settings: Flags) -> str:
    """Returns what a benchmark prints; "" where it fails, with its reason on standard error."""
    known = {item.name for item in dataclasses.fields(importlib.import_module(name).Flags)}
    given = {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}
    options = [f"--{key}={value}" for key, value in given.items() if key in known]
    command = [sys.executable, str(HERE / f"{name}.py"), *options]
    ended = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    return "" if ended.returncode else ended.stdout.strip()


def section(name: str, text: str) -> str:
    """Returns the part of the file that is about one benchmark."""
    docstring = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")))
    title, _, rest = docstring.partition("\n\n")
    command, _, explained = rest.partition("\n\n")
    shown = f"```\n{text}\n```" if text else "It failed: there are no figures."
    return f"## {name}\n\n{title}\n\n`{command.strip()}`\n\n{explained}\n\n{shown}\n"


def about(settings: Flags) -> str:
    """Returns machine, date and versions, a line each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    torch = torch_sides.version(settings.torch_python) or "not installed"
    versions = {
        "tfbp": tfbp.__version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "NumPy": np.__version__,
        "PyTorch": torch,
        "Python": platform.python_version(),
    }
    devices = len(tf.config.list_physical_devices("GPU"))
    lines = [
        f"- machine: {processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB, "
        f"{f'{devices} GPUs' if devices else 'no GPU'}, {platform.system()}",
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
    ]
    return "\n".join(lines)


def processor() -> str:
    """Returns the name of the processor, as Linux gives it."""
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(path: pathlib.Path, about: str, sections: list[str]) -> None:
    head = (
        "# Results\n\nWritten by `make bench`. All sides of a table are measured by turns in one "
        "run; medians count.\n"
    )
    path.write_text("\n".join([head, f"{about}\n", *sections]), encoding="utf-8")


if __name__ == "__main__":
    main()
