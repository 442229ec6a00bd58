"""What makes two runs the same run: JSON values, held against those of a directory or a worker."""

import dataclasses
import pathlib
import platform
import types

import keras
import tensorflow as tf

from tfbp import fingerprint
from tfbp import recipe as recipes
from tfbp.data.splits import Splits
from tfbp.modeling import graph
from tfbp.running.run import Run

# Settings that say where and how often a run is kept. Each worker may have its own.
_KEEPING = (
    "cache_dir",
    "cache_gb",
    "checkpoint_seconds",
    "export_dir",
    "keep_versions",
    "workdir",
)
# And what its audit may find, what is logged, and whether it begins anew.
_BESIDE = ("allow", "gradients", "restart")


def of_examples(splits: Splits) -> str:
    """Returns what tells whether examples are the same, in all splits."""
    return fingerprint.of_json({name: each.fingerprint for name, each in splits.parts().items()})


def of_run(it: Run) -> dict:
    """Returns what any run is made of."""
    return {
        "examples": of_examples(it.splits),
        "classes": it.splits.classes and list(it.splits.classes),
        "model": graph.fingerprint(it.model),
    }


def of_fit(it: Run) -> dict:
    """Returns what makes a run of `tfbp.fit` the same run."""
    weights = it.task.class_weights_for(it.splits.train)
    return of_run(it) | {
        "batch_size": it.batch_size,
        "phases": [dataclasses.asdict(phase) for phase in it.phases],
        "seed": it.seed,
        "task": type(it.task).__name__,
        "loss": it.task.loss().get_config(),
        "class_weights": None if weights is None else weights.tolist(),
        "on_nan": it.on_nan,
        "cache": [it.cache.on, it.cache.views, it.cache.half],
    }


def of_recipe(recipe: types.ModuleType, config: recipes.Config) -> dict:
    """Returns what makes a run of a recipe the same run, besides what `of_run` does."""
    settings = of_command(config)
    for name in _BESIDE:
        del settings[name]
    return {"recipe": recipe.reference, "config": settings}


def of_command(config: recipes.Config) -> dict:
    """Returns the settings that must be the same on all workers."""
    return {name: x for name, x in recipes.settings(config).items() if name not in _KEEPING}


def of_code(*files: pathlib.Path) -> dict[str, str]:
    """Returns what tells whether other code runs: SHA-256 of its files, cut, and versions."""
    own = sorted(pathlib.Path(__file__).parents[1].rglob("*.py"))
    code = fingerprint.of_bytes(*(file.read_bytes() for file in (*own, *files)))
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    return {"code": code[:12], "python": platform.python_version(), **versions}


def check_workers(it: Run, made_of: dict) -> None:
    """Refuses workers that are not made of the same, or begin with other weights.

    Raises:
        tfbp.UserError: names the worker, and what differs.
    """
    if it.workers.count > 1:
        weights = [fingerprint.of_array(variable) for variable in it.model.weights]
        it.workers.check_alike(made_of | {"weights": fingerprint.of_json(weights)})
