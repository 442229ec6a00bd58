"""Runs a recipe until its first step is done: `first_step.py BEGAN RECIPE [--flag=value …]`.

BEGAN is when this process was started, by the system's monotonic clock, in seconds. Prints as JSON,
in seconds: `imports` (TensorFlow and Keras alone), `called` (from the process's start until the
first step is called) and `trace` (that call).
"""

import json
import pathlib
import sys
import time


def main() -> None:
    entered = time.monotonic()
    from tfbp import commands

    with commands.quiet_start():
        import keras  # noqa: F401
        import tensorflow as tf  # noqa: F401
    imported = time.monotonic()
    from tfbp.reporting.progress import Progress

    called: list[float] = []

    def before(self, batch, logs=None):
        called.append(time.monotonic())

    def after(self, batch, logs=None):
        times = {
            "imports": imported - entered,
            "called": called[0] - float(sys.argv[1]),
            "trace": time.monotonic() - called[0],
        }
        print(json.dumps(times), flush=True)
        raise SystemExit

    # The callback that every run has.
    Progress.on_train_batch_begin, Progress.on_train_batch_end = before, after
    recipes = pathlib.Path(__file__).parents[1] / "recipes"
    sys.exit(commands.main(recipes, ["run", *sys.argv[2:]]) or "The run ended without a step.")


if __name__ == "__main__":
    main()
