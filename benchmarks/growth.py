"""Time and memory of frozen work as the images become more: tfbp's head training, cold.

    python benchmarks/growth.py [--sizes=500,1000,2000,4000,8000] [--turns=3]

Each size runs in a process of its own, from an empty cache: VGG16 on random 32 × 32 images, the
head trained. Prints seconds (from the call of `fit` to its return) and the largest resident memory
of the process (VmHWM, the imports, the model and the images in it); how far the times are from one
straight line (least squares of the relative distance), and how much the memory grows.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import turns
import vgg

from tfbp.settings import field
from tfbp.training.phase import Phase

WITHIN = 0.1  # of the line, and of the smallest memory


@dataclasses.dataclass(frozen=True)
class Flags(turns.Flags):
    sizes: tuple[int, ...] = field((500, 1000, 2000, 4000, 8000), "images", low=10)
    epochs: int = field(10, "of the head alone", low=1)
    alone: bool = field(False, "measure the first size in this process, and print JSON")


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    if settings.alone:
        print(json.dumps(once(settings)))
        return
    outcomes = turns.by_turns(
        {f"{size:,} images": _apart(settings, size) for size in settings.sizes}, settings.turns
    )
    print(f"VGG16, 32 × 32, random images, batch 32, {settings.epochs} epochs of the head\n")
    print(turns.report(outcomes, goals(settings.sizes, outcomes)))


def once(settings: Flags) -> turns.Outcome:
    """Trains on the first size, and returns seconds and the largest memory so far, MB."""
    phases = [Phase("head", "head.*", epochs=settings.epochs, learning_rate=1e-3)]
    with tempfile.TemporaryDirectory() as folder:
        outcome = vgg.ours(vgg.Flags(), _images(settings.sizes[0]), phases, folder)
    return {"seconds": outcome["seconds"], "peak memory, MB": _peak()}


def _images(count: int) -> vgg.Images:
    """Returns noise, drawn as the bytes that it is: the peak is to be training's."""
    numbers = np.random.default_rng(0)
    x = numbers.integers(0, 256, (count, vgg.SIZE, vgg.SIZE, 3), np.uint8)
    y = np.arange(count) % len(vgg.CLASSES)
    return vgg.Images(x, y, x[:10], y[:10])


def goals(sizes: tuple[int, ...], outcomes: turns.Outcomes) -> list[turns.Goal]:
    def medians(column):
        return np.array([turns.median(outcomes, side, column) for side in outcomes])

    seconds, memory = medians("seconds"), medians("peak memory, MB")
    # Relative distances: a line through the times, each row divided by its time.
    rows = np.stack([np.ones(len(sizes)), sizes], axis=1) / seconds[:, np.newaxis]
    (start, each), *_ = np.linalg.lstsq(rows, np.ones(len(sizes)))
    far = np.max(np.abs(rows @ (start, each) - 1))
    return [
        turns.Goal("largest distance from the line, relative", float(far), most=WITHIN),
        turns.Goal("seconds of the line at no images", float(start)),
        turns.Goal("milliseconds of the line for one image more", float(1000 * each)),
        turns.Goal(
            "largest memory / smallest", float(memory.max() / memory.min()), most=1 + WITHIN
        ),
    ]


def _apart(settings: Flags, size: int):
    command = [
        sys.executable,
        __file__,
        "--alone",
        f"--sizes={size}",
        f"--epochs={settings.epochs}",
    ]

    def side() -> turns.Outcome:
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(ended.stdout.splitlines()[-1])

    return side


def _peak() -> float:
    """Returns the largest resident memory of this process so far, MB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("There is no VmHWM in /proc/self/status.")


if __name__ == "__main__":
    main()
