"""Kills runs, starts them again with the same command, and compares their ends bit for bit.

    python benchmarks/kills.py --kills=50

For each recipe one run is left alone. Then the same command runs in another directory and is
killed (SIGKILL) in turn at a random moment of its life, while it writes a checkpoint, and while it
exports; each time it is started again. A run that gets to its end is compared with the one that was
left alone, and another begins, until all kills are done. The last line is the sum of all differing
bits: of weights, of history (times apart), of metrics, and of what every signature answers.
"""

import argparse
import csv
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
# Checkpoints come as fast as they can be written, so that a kill falls into one, or close to one.
SETTINGS = ("--checkpoint_seconds=0", "--batch_size=8", "--accumulate=2", "--early_stopping=2")
RECIPES = {
    "vgg16": (
        "--data=random?shape=32,32,3&classes=3&count=160",
        *("--weights=random", "--allow=random-frozen", "--last_block=2", "--hidden=16"),
        *("--dropout=0.5", "--flip", "--shift=0.2", "--cached_views=2", "--ema=0.9"),
        *("--head_epochs=4", "--tune_epochs=4"),
    ),
    "lstm_lm": (
        *("--data=text:README.md", "--tokens=char", "--steps=16", "--epochs=4"),
        *("--units=32", "--embedding=16"),
        "--dropout=0.3",
    ),
}
MOMENTS = ("at random", "in a checkpoint", "in the export")


class Job:
    """A command that runs a recipe; its run's directory, exports and cache are in one folder."""

    def __init__(self, folder: pathlib.Path, recipe: str, flags: tuple[str, ...]):
        self.run, self.exports = folder / "run", folder / "exports" / pathlib.Path(recipe).stem
        self.cache = folder / "cache"
        places = f"--workdir={self.run}", f"--export_dir={folder / 'exports'}"
        places += (f"--cache_dir={self.cache}",)
        self.arguments = ["run", recipe, *flags, *places]
        self.log = folder / "log"
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "recipes", *self.arguments]
        with open(self.log, "ab") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def finish(self) -> None:
        if self.start().wait():
            raise RuntimeError(self.log.read_text())

    def kill(self, moment: str, seconds: float) -> bool:
        """Starts the command and kills it; returns whether it came to that before its end.

        Args:
            moment: one of `MOMENTS`.
            seconds: from the start on; else from the first checkpoint or export that is begun, and
                then inside a checkpoint, that one or a later one.
        """
        left = self._unfinished(moment)  # by a kill before
        process = self.start()
        due = time.monotonic() + seconds if moment == "at random" else None
        while process.poll() is None:
            writing = bool(self._unfinished(moment) - left)
            if due is None and writing:
                due = time.monotonic() + seconds
            if due and time.monotonic() >= due and (writing or moment != "in a checkpoint"):
                process.kill()
                break
            time.sleep(0.001)
        code = process.wait()
        if code > 0:
            raise RuntimeError(self.log.read_text())
        return code < 0

    def _unfinished(self, moment: str) -> set[str]:
        """Returns the names of what is being written."""
        folder = self.exports if moment == "in the export" else self.run / "checkpoints"
        try:
            return {name for name in os.listdir(folder) if name.endswith(".tmp")}
        except FileNotFoundError:
            return set()


def differing_bits(job: Job, other: Job) -> int:
    """Returns how many bits differ at the end of two runs."""
    return sum(
        _bits(ours, theirs)
        for ours, theirs in itertools.zip_longest(_end(job), _end(other), fillvalue=())
    )


def _bits(ours, theirs) -> int:
    import numpy as np

    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.dtype.kind in "OSU":
        return int((ours != theirs).sum()) if ours.shape == theirs.shape else ours.size + 1
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return 8 * max(ours.nbytes, theirs.nbytes, 1)
    ours, theirs = (
        np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (ours, theirs)
    )
    return int(np.unpackbits(ours ^ theirs).sum())


def _end(job: Job):
    """Yields everything that a run has come to."""
    import keras
    import tensorflow as tf

    from tfbp.exporting import warmup

    model = keras.models.load_model(job.run / "model.keras", compile=False)
    yield from model.get_weights()  # not the seeds of dropout, which loading draws anew
    with open(job.run / "history.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield [text for name, text in row.items() if name != "seconds"]
    result = json.loads((job.run / "result.json").read_text())
    yield json.dumps(result["metrics"])
    for phase in result["phases"]:
        yield json.dumps({name: x for name, x in phase.items() if not name.endswith("seconds")})
    # A kill after the export and before the result leaves one version more.
    version = max(int(path.name) for path in job.exports.iterdir() if path.name.isdecimal())
    served = tf.saved_model.load(str(job.exports / str(version)))
    for signature, request in warmup.read(job.exports / str(version)):
        tensors = {name: tf.constant(value) for name, value in request.items()}
        answer = served.signatures[signature](**tensors)
        yield from (answer[name].numpy() for name in sorted(answer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of all recipes together")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    random.seed(options.seed)
    totals = [0, 0, 0, 0]
    with tempfile.TemporaryDirectory() as folder:
        for number, recipe in enumerate(options.recipes):
            flags = RECIPES[recipe]
            alone = Job(pathlib.Path(folder, recipe, "alone"), recipe, (*SETTINGS, *flags))
            began = time.monotonic()
            alone.finish()
            life = time.monotonic() - began
            share, more = divmod(options.kills, len(options.recipes))
            wanted = share + (number < more)
            counts, ended, differing = dict.fromkeys(MOMENTS, 0), 0, 0
            moments = itertools.cycle(MOMENTS)
            while True:
                place = pathlib.Path(folder, recipe, str(ended))
                job = Job(place, recipe, (*SETTINGS, *flags))
                while sum(counts.values()) < wanted:
                    moment = next(moments)
                    # A run that goes on is shorter.
                    latest = {"at random": life / 2, "in a checkpoint": 0.3, "in the export": 2}
                    if not job.kill(moment, random.uniform(0, latest[moment])):
                        break  # it has come to its end
                    counts[moment] += 1
                else:
                    job.finish()
                ended += 1
                differing += differing_bits(alone, job)
                if sum(counts.values()) == wanted:
                    break
            kinds = ", ".join(f"{count} {moment}" for moment, count in counts.items())
            print(
                f"{recipe}: a run of {life:.0f} s; killed {kinds}; as often started again; "
                f"{ended} ends compared; differing bits: {differing}",
                flush=True,
            )
            for i, count in enumerate((wanted, wanted, ended, differing)):
                totals[i] += count
    print("kills {}, resumes {}, ends {}, differing bits {}".format(*totals))
    sys.exit(bool(totals[3]))


if __name__ == "__main__":
    main()
