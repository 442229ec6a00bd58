"""How long it takes to begin: the list of the recipes, and a run up to its first step.

    python benchmarks/start.py [--turns=3]

`list` is timed from the start of its process to its end. A run is timed from the start of its
process until its first step is called; that call, which traces the step, is timed by itself. Of the
time before, the import of TensorFlow and Keras is named, and "over, s" is what is left: recipe,
data, model, audit and run directory. vgg16 starts with `--nocache`: features are training.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import turns

from tfbp.settings import field

HERE = pathlib.Path(__file__).parent
OVER = "over, s"
RUNS = {
    "mlp": ("--data=random?count=1400", "--epochs=1"),
    "vgg16": (
        *("--data=random?shape=32,32,3&count=1400", "--weights=random", "--allow=random-frozen"),
        *("--head_epochs=1", "--tune_epochs=0", "--nocache"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Flags(turns.Flags):
    recipes: tuple[str, ...] = field(tuple(RUNS), "that are run", choices=tuple(RUNS))


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    outcomes = measure(settings)
    print("From the start of the process\n")
    print(turns.report(outcomes, goals(outcomes)))


def measure(settings: Flags) -> turns.Outcomes:
    sides = {"list": _list}
    for name in settings.recipes:
        sides[f"run {name}"] = lambda name=name: _run(name)
    return turns.by_turns(sides, settings.turns)


def goals(outcomes: turns.Outcomes) -> list[turns.Goal]:
    found = [turns.Goal("list, s", turns.median(outcomes, "list", "seconds"), most=0.5)]
    for side in outcomes:
        if side != "list":
            name = f"{side}: to the first step, over the imports and the trace, s"
            found.append(turns.Goal(name, turns.median(outcomes, side, OVER), most=3))
    return found


def _list() -> turns.Outcome:
    command = [sys.executable, "-m", "recipes", "list"]
    began = time.monotonic()
    subprocess.run(command, cwd=HERE.parent, stdout=subprocess.DEVNULL, check=True)
    return {"seconds": time.monotonic() - began}


def _run(name: str) -> turns.Outcome:
    with tempfile.TemporaryDirectory() as folder:
        places = f"--workdir={folder}/run", f"--export_dir={folder}/exports"
        script = str(HERE / "first_step.py")
        command = [sys.executable, script, str(time.monotonic()), name, *RUNS[name], *places]
        ended = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    times = json.loads(ended.stdout.splitlines()[-1])
    return {
        "seconds": times["called"] + times["trace"],
        "TensorFlow and Keras imported, s": times["imports"],
        "first trace, s": times["trace"],
        OVER: times["called"] - times["imports"],
    }


if __name__ == "__main__":
    main()
