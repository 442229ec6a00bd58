"""What pretraining on printed letters is worth on handwritten digits, five labelled images a class.

    python benchmarks/glyphs_to_digits.py

VGG16 is pretrained once on letters. Then, for each seed, the same phases run on the pretrained and
on a random backbone; the seed draws split, labelled images, head and random backbone anew. Nothing
is selected on validation, so all images without a label judge. Prints test accuracies and the 95 %
interval of their difference (Student's t over seeds).
"""

import dataclasses
import math
import pathlib
import statistics
import tempfile

from tfbp import driver, recipe
from tfbp.reporting.table import table

SEEDS = range(5)
DIGITS = "digits?per_class=5&validation=0&test=0.8"
SETTINGS = {"last_block": 4, "head_epochs": 25, "batch_size": 10}  # as in `make run`
T_95 = 2.776  # Student's t, 4 degrees of freedom, two-sided 95 %


def main() -> None:
    module = recipe.load("vgg16", pathlib.Path(__file__).parents[1] / "recipes")
    with tempfile.TemporaryDirectory() as folder:
        letters, exports = f"{folder}/letters", f"{folder}/exports"

        def accuracy(config):
            run = driver.run(module, dataclasses.replace(config, export_dir=exports))
            return run.result["metrics"]["test"]["accuracy"]

        source = accuracy(module.Config(data="glyphs", weights="none", workdir=letters))
        rows = []
        for seed in SEEDS:
            config = module.Config(data=DIGITS, seed=seed, **SETTINGS)
            pretrained, random = (
                accuracy(
                    dataclasses.replace(
                        config, weights=weights, allow=allow, workdir=f"{folder}/{name}{seed}"
                    )
                )
                for name, weights, allow in (
                    ("pretrained", letters, ()),
                    ("random", "random", ("random-frozen",)),
                )
            )
            rows.append((pretrained, random, pretrained - random))

    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    half = T_95 * statistics.stdev(row[2] for row in rows) / math.sqrt(len(rows))
    lines = [("seed", "letters", "random", "difference")]
    lines += [(str(seed), *_cells(row)) for seed, row in zip(SEEDS, rows, strict=True)]
    lines.append(("mean", *_cells(means)))
    print(f"\nletters, test accuracy: {source:.3f}\n")
    print(table(lines, numbers=[1, 2, 3]))
    print(f"\n95 % interval of the difference: {means[2] - half:+.3f} to {means[2] + half:+.3f}")


def _cells(values) -> tuple[str, ...]:
    return tuple(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
