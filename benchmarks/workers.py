"""Several workers against one: VGG16 on 32 × 32 images, nothing cached, 128 images a worker.

    python benchmarks/workers.py [--workers=2] [--steps=4] [--turns=3]

Each worker is a process on one core of its own, on the loopback; the one that is compared with has
one core too, so twice the workers have twice the cores and twice the images (weak scaling). The
pace is that of the epochs after the first. The share of the all-reduce is the time of one sum of as
many floats as the gradient has, alone, of a step. LoRA (rank 4, all convolutions) and the table for
other networks are for comparison: there the step is the measured one of one worker, and the sum of
B bytes over N workers of W bytes/s takes 2 (N - 1) / N · B / W (ring: Patarasuk & Yuan 2009,
sec. 2), not overlapped with anything, without latencies.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import turns
from one_worker import TRAINED

from tfbp import recipe
from tfbp.commands import launch
from tfbp.reporting.table import table

DUE = {"head": 1.8, "LoRA": None, "everything": 1.5}
GBIT = 1e9 / 8  # bytes
NETWORKS = (10, 100)
CLUSTERS = (8, 64)


@dataclasses.dataclass(frozen=True)
class Settings(turns.Settings):
    workers: int = recipe.field(2, "that are compared with one, a core each", low=2)
    each: int = recipe.field(128, "images of a step on each worker", low=1)
    steps: int = recipe.field(4, "of an epoch", low=1)
    epochs: int = recipe.field(3, "of each side", low=2)


def main() -> None:
    settings = turns.settings(Settings, __doc__)
    launch.cores(settings.workers, 1)  # refuses what this machine does not have
    outcomes = measure(settings)
    print(
        f"VGG16, 32 × 32, {settings.each} images a worker and step, {settings.steps} steps an "
        f"epoch, {settings.epochs} epochs\n"
    )
    print(turns.report(outcomes, goals(settings, outcomes)))
    print(f"\n{estimate(outcomes)}")


def measure(settings: Settings) -> turns.Outcomes:
    return turns.by_turns(
        {
            _side(trained, count): lambda trained=trained, count=count: _run(
                settings, trained, count
            )
            for trained in TRAINED
            for count in (1, settings.workers)
        },
        settings.turns,
    )


def goals(settings: Settings, outcomes: turns.Outcomes) -> list[turns.Goal]:
    found = []
    for trained, least in DUE.items():
        one, several = (_side(trained, count) for count in (1, settings.workers))
        ratio = turns.ratio(outcomes, several, one, "images a second")
        found.append(turns.Goal(f"{several} / 1 worker, images a second", ratio, least=least))
        taken = turns.median(outcomes, several, "all-reduce, s")
        share = taken / turns.median(outcomes, several, "seconds a step")
        found.append(turns.Goal(f"{several}, share of the all-reduce", share))
    return found


def estimate(outcomes: turns.Outcomes) -> str:
    """Returns a table: by paper, images a second of many workers over that many times one's."""
    rows = [("by paper, of N times one worker's pace", *_columns())]
    for trained in TRAINED:
        step = turns.median(outcomes, _side(trained, 1), "seconds a step")
        size = turns.median(outcomes, _side(trained, 1), "gradient, MB") * 1e6
        shares = [
            step / (step + ring(size, count, gbit * GBIT))
            for count in CLUSTERS
            for gbit in NETWORKS
        ]
        rows.append((f"{trained}: {size / 1e6:.3g} MB", *(f"{share:.1%}" for share in shares)))
    return table(rows, numbers=range(1, len(rows[0])))


def ring(size: float, workers: int, speed: float) -> float:
    """Returns the seconds of an all-reduce of `size` bytes at `speed` bytes/s each way."""
    return 2 * (workers - 1) / workers * size / speed


def _columns() -> list[str]:
    return [f"{count} × {gbit} Gbit/s" for count in CLUSTERS for gbit in NETWORKS]


def _side(trained: str, count: int) -> str:
    return f"{trained}, {count} worker{'s' if count > 1 else ''}"


def _run(settings: Settings, trained: str, count: int) -> turns.Outcome:
    """Trains with so many workers, and returns what the chief has measured."""
    batch_size = settings.each * count
    asked = {
        "trained": trained,
        "images": batch_size * settings.steps,
        "batch_size": batch_size,
        "epochs": settings.epochs,
    }
    command = [sys.executable, str(pathlib.Path(__file__).with_name("one_worker.py"))]
    with contextlib.ExitStack() as stack:
        started = []
        for config, own in zip(launch.configs(count), launch.cores(count, 1), strict=True):
            process = subprocess.Popen(
                [*command, json.dumps(asked)],
                env={**os.environ, "TF_CONFIG": config, "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.kill)  # does nothing where it has ended
            os.sched_setaffinity(process.pid, own)
            started.append(process)
        printed = [process.communicate()[0] for process in started]
        for process in started:
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, process.args)
    return json.loads(printed[0].splitlines()[-1])


if __name__ == "__main__":
    main()
