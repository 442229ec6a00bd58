"""Several workers against one: VGG16 on 32 × 32 images, nothing cached, 128 images a worker.

    python benchmarks/workers.py [--workers=2] [--steps=4] [--turns=3]

Each worker is a process on one core of its own, on the loopback; the one that is compared with has
one core too, so twice the workers have twice the cores and twice the images (weak scaling). The
pace is that of the epochs after the first. The share of the all-reduce is the time of one sum of as
many floats as the gradient has, alone, of a step. What the machine allows is measured by processes
that run at the same time and know nothing of each other ("apart"): cores share memory and caches.
LoRA (rank 4, all convolutions) and the table for other networks are for comparison: there the step
is the measured one of one worker, and the sum of B bytes over N workers of W bytes/s takes
2 (N - 1) / N · B / W (ring: Patarasuk & Yuan 2009, sec. 2), not overlapped with anything, without
latencies.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import turns
from one_worker import TRAINED

from tfbp.commands import launch
from tfbp.reporting.table import table
from tfbp.settings import field

DUE = {"head": 1.8, "LoRA": None, "everything": 1.5}
GBIT = 1e9 / 8  # bytes
NETWORKS = (10, 100)
CLUSTERS = (8, 64)


@dataclasses.dataclass(frozen=True)
class Flags(turns.Flags):
    workers: int = field(2, "that are compared with one, a core each", low=2)
    each: int = field(128, "images of a step on each worker", low=1)
    steps: int = field(4, "of an epoch", low=1)
    epochs: int = field(3, "of each side", low=2)


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    launch.cores(settings.workers, 1)  # refuses what this machine does not have
    outcomes = measure(settings)
    print(
        f"VGG16, 32 × 32, {settings.each} images a worker and step, {settings.steps} steps an "
        f"epoch, {settings.epochs} epochs\n"
    )
    print(turns.report(outcomes, goals(settings, outcomes)))
    print(f"\n{estimate(outcomes)}")


def measure(settings: Flags) -> turns.Outcomes:
    sides = {}
    for trained in TRAINED:
        for count in (1, settings.workers):
            sides[_side(trained, count)] = functools.partial(_run, settings, trained, count)
        sides[_apart(settings, trained)] = functools.partial(_run_apart, settings, trained)
    return turns.by_turns(sides, settings.turns)


def goals(settings: Flags, outcomes: turns.Outcomes) -> list[turns.Goal]:
    found = []
    for trained, least in DUE.items():
        one, several = (_side(trained, count) for count in (1, settings.workers))
        ratio = turns.ratio(outcomes, several, one, "images a second")
        found.append(turns.Goal(f"{several} / 1 worker, images a second", ratio, least=least))
        apart = turns.ratio(outcomes, _apart(settings, trained), one, "images a second")
        found.append(turns.Goal(f"{_apart(settings, trained)} / 1 worker", apart))
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


def _apart(settings: Flags, trained: str) -> str:
    return f"{trained}, {settings.workers} apart"


def _run(settings: Flags, trained: str, count: int) -> turns.Outcome:
    """Trains with so many workers, and returns what the chief has measured."""
    return _started(settings, trained, launch.configs(count), count)[0]


def _run_apart(settings: Flags, trained: str) -> turns.Outcome:
    """Trains in as many processes of one worker each, and returns the images of all together."""
    alone = [config for _ in range(settings.workers) for config in launch.configs(1)]
    found = _started(settings, trained, alone, 1)
    return {"images a second": sum(each["images a second"] for each in found)}


def _started(
    settings: Flags, trained: str, configs: Sequence[str], together: int
) -> list[turns.Outcome]:
    """Runs a process for each TF_CONFIG; so many train together. Returns what each has measured."""
    batch_size = settings.each * together
    asked = {
        "trained": trained,
        "images": batch_size * settings.steps,
        "batch_size": batch_size,
        "epochs": settings.epochs,
    }
    command = [sys.executable, str(pathlib.Path(__file__).with_name("one_worker.py"))]
    with contextlib.ExitStack() as stack:
        started = []
        for config, own in zip(configs, launch.cores(len(configs), 1), strict=True):
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
    return [json.loads(each.splitlines()[-1]) for each in printed]


if __name__ == "__main__":
    main()
