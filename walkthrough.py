"""The main job from end to end, as `make run` does it: every step is a call that can be typed.

VGG16 learns printed letters from scratch; its head is swapped and it is fine-tuned on handwritten
digits, five labelled images a class, beside the same phases on a frozen random backbone; a fresh
process loads the export and labels images that no training has seen.
"""

import itertools
import json
import pathlib
import shlex
import subprocess
import sys

from tfbp.commands import quiet_start
from tfbp.reporting.table import table

with quiet_start():
    import tensorflow as tf

    from tfbp.data import catalog

LETTERS, DIGITS = "glyphs", "digits?per_class=5"
# Block 5 sees one pixel of a 32 × 32 image, and what it learns is the letters' own.
TRANSFER = ("--last_block=4", "--head_epochs=25", "--batch_size=10")
IMAGES = 12


def main() -> None:
    """Runs the steps; stops with the exit code of the first one that fails."""
    runs = pathlib.Path("runs/walkthrough")
    folder = next(runs / str(n) for n in itertools.count(1) if not (runs / str(n)).exists())
    exports = folder / "saved_models"  # only the fine-tuned model is to be served
    learn(folder / "letters", LETTERS, "none", f"--export_dir={exports}")
    accepted = f"--export_dir={exports}", "--allow=random-frozen"
    learn(folder / "random", DIGITS, "random", *accepted, *TRANSFER)
    learn(folder / "digits", DIGITS, str(folder / "letters"), *TRANSFER)
    recipes("predict", "saved_models/vgg16", *write_images(folder / "images"))
    print(f"\n{closing(folder)}")


def learn(workdir: pathlib.Path, data: str, weights: str, *flags: str) -> None:
    recipes(
        "run", "vgg16", f"--weights={weights}", f"--data={data}", f"--workdir={workdir}", *flags
    )


def recipes(*arguments: str) -> None:
    """Calls the command line in a process of its own, and shows the call."""
    print(f"\n$ python -m recipes {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "recipes", *arguments]).returncode
    if code:
        sys.exit(code)


def write_images(folder: pathlib.Path) -> list[str]:
    """Writes the first test images of the digits as PNG files of 8 by 8 pixels, named by label."""
    splits = catalog.load_data(DIGITS, seed=0, channels=1)
    images, labels = splits.test.read(tf.range(IMAGES, dtype=tf.int64))
    folder.mkdir()
    paths = []
    for index, (image, label) in enumerate(zip(images, labels.numpy(), strict=True)):
        path = folder / f"{index:02}_is_{splits.classes[label]}.png"
        path.write_bytes(tf.io.encode_png(tf.cast(tf.round(image), tf.uint8)).numpy())
        paths.append(str(path))
    return paths


def closing(folder: pathlib.Path) -> str:
    """Returns what was measured, read from the runs' results."""
    rows = [("run", "data", "backbone", "test accuracy", "seconds")]
    for name, backbone in (
        ("letters", "from scratch"),
        ("random", "random"),
        ("digits", "letters"),
    ):
        result = json.loads((folder / name / "result.json").read_text())
        accuracy = result["metrics"]["test"]["accuracy"]
        data = result["data"]["spec"]
        row = (str(folder / name), data, backbone, f"{accuracy:.3f}", f"{result['seconds']:.0f}")
        rows.append(row)
    return f"{table(rows, numbers=[3, 4])}\n\nexport: {result['export']['path']}"


if __name__ == "__main__":
    main()
