"""What makes two runs the same run: JSON values, held against those of a directory or a worker."""

import dataclasses
import json
import pathlib
import platform
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp import fingerprint
from tfbp.data import structures
from tfbp.data.splits import Splits
from tfbp.modeling import graph
from tfbp.running.run import Run
from tfbp.tasks import measures, several


def identity(run: Run) -> dict[str, Any]:
    """Returns what a run is made of: another value of any of it makes another run."""
    weights = run.task.class_weights_for(run.splits.train)
    loss = measures.made_of(run.task.loss())
    made_of = {
        "recipe": run.recipe,
        "config": run.settings.counting("run"),
        "examples": of_examples(run.splits),
        "classes": run.splits.classes,
        "model": graph.fingerprint(run.model),
        "phases": [dataclasses.asdict(phase) for phase in run.phases],
        "task": type(run.task).__name__,
        "loss": {"loss": loss.pop("class"), **loss},
        "metrics": {
            name: measures.made_of(metric)
            for name, metric in several.named_metrics(run.task).items()
        },
        "weighing": {"class_weights": structures.each(_plain, weights)},
    }
    return json.loads(json.dumps(made_of))  # as it comes back from a file


def _plain(weights: np.ndarray | None) -> list[float] | None:
    return None if weights is None else weights.tolist()


def of_examples(splits: Splits) -> str:
    """Returns what tells whether examples are the same, in all splits."""
    return fingerprint.of_json({name: each.fingerprint for name, each in splits.parts().items()})


def of_code(*files: pathlib.Path) -> dict[str, str]:
    """Returns what tells whether other code runs: SHA-256 of its files, cut, and versions."""
    own = sorted(pathlib.Path(__file__).parents[1].rglob("*.py"))
    code = fingerprint.of_bytes(*(file.read_bytes() for file in (*own, *files)))
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    return {"code": code[:12], "python": platform.python_version(), **versions}


def check_workers(
    run: Run, identity: dict[str, Any], code: dict[str, str], workdir: str | None
) -> None:
    """Refuses workers that are not made of the same, or begin with other weights.

    Raises:
        tfbp.UserError: names the worker, and what differs.
    """
    if run.workers.count > 1:
        weights = [fingerprint.of_array(variable) for variable in run.model.weights]
        beside = {
            "settings": run.settings.counting("workers"),
            "workdir": workdir is not None,
            "source": code,
            "weights": fingerprint.of_json(weights),
        }
        run.workers.check_alike(identity | beside)
