"""The contract of a recipe: a module with a docstring, a `Config` and four functions.

A recipe is a file in a folder of recipes (its file name is its name), or any Python file named by
its path. It defines::

    class Config(tfbp.Config)                  # every default in one place
    def data(config) -> tfbp.Splits            # examples in
    def task(config, splits) -> tfbp.Task      # loss, metrics, what its signatures take and return
    def model(config, splits) -> keras.Model   # takes what the examples yield
    def phases(config) -> list[tfbp.Phase]     # what trains, for how long, at what rate
"""

import ast
import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any, Literal

from tfbp import contract
from tfbp.errors import UserError, mistake
from tfbp.settings import Settings, declared, field

if TYPE_CHECKING:
    from tfbp.training.phase import Phase

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """What recipes share besides the settings of any run. A recipe adds its own fields.

    Settings that are declared `of_phase` replace, where they are given, those of each phase.

    Raises:
        tfbp.UserError: a value is of another type than its field, or outside of its range.
    """

    data: str | None = field(None, "examples: NAME[:PATH][?key=value&…]")
    weights: str | None = field(
        None, "weights to start from: a file or the directory of an earlier run"
    )
    export_dir: str = field(
        "saved_models", "folder that receives <recipe>/<version>", counts_for="process"
    )
    keep_versions: int = field(
        0, "newest versions that stay there; 0: all", low=0, counts_for="process"
    )
    precision: str = field("float32", "of the model's arithmetic", choices=PRECISIONS)
    on_bad_example: Literal["fail", "skip"] = field(
        "fail", "at image files that are not whole, and rows of a table with missing cells"
    )
    accumulate: int | None = field(
        None, "batches whose gradients make one update", low=1, of_phase=True
    )
    warm_up: float | None = field(
        None, "part of a phase in which its rate rises from 0", low=0, below=1, of_phase=True
    )
    weight_decay: float | None = field(
        None, "decoupled weight decay per update, times the rate", low=0, of_phase=True
    )
    ema: float | None = field(
        None, "momentum of averaged weights, the ones kept; 0: none", low=0, below=1, of_phase=True
    )
    early_stopping: int | None = field(
        None,
        "epochs without a better validation loss that end a phase; 0: none",
        low=0,
        of_phase=True,
    )


def phases(module: types.ModuleType, config: Config) -> "tuple[Phase, ...]":
    """Returns a recipe's phases, with what the config gives for each of them.

    Raises:
        tfbp.UserError: they are none, or a setting does not go with the rest of a phase.
    """
    return tuple(
        dataclasses.replace(phase, **_given(config, phase)) for phase in _own_phases(module, config)
    )


def overridden(module: types.ModuleType, config: Config) -> dict[str, dict[str, object]]:
    """Returns name of a phase → setting → the recipe's value, which the config gives another."""
    return {
        phase.name: {
            name: getattr(phase, name)
            for name, value in _given(config, phase).items()
            if getattr(phase, name) != value
        }
        for phase in _own_phases(module, config)
    }


def _own_phases(module: types.ModuleType, config: Config) -> "tuple[Phase, ...]":
    from tfbp.training import phase  # not before it is needed: it imports Keras

    return phase.listed(module.phases(config))


def _given(config: Config, phase: "Phase") -> dict[str, Any]:
    """Returns name → value of what a config gives for a phase."""
    defaults = {item.name: item.default for item in dataclasses.fields(phase)}
    values = {
        name: getattr(config, name)
        for name, setting in declared(type(config)).items()
        if setting.of_phase
    }
    return {
        # On the command line 0 switches off what a phase switches off by None.
        name: None if value == 0 and defaults[name] is None else value
        for name, value in values.items()
        if value is not None
    }


def discover(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Returns name → file of a folder's recipes: its Python files without a leading underscore."""
    files = sorted(path for path in pathlib.Path(folder).glob("*.py") if path.is_file())
    return {path.stem: path for path in files if not path.stem.startswith("_")}


def summaries(folder: str | os.PathLike) -> dict[str, str]:
    """Returns name → first line of the docstring, read without importing the recipes.

    Of a file that is no Python it says so.
    """
    result = {}
    for name, path in discover(folder).items():
        result[name] = "(its file cannot be read as Python)"
        with contextlib.suppress(SyntaxError, ValueError, OSError):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            result[name] = docstring.partition("\n")[0]
    return result


def load(recipe: str, folder: str | os.PathLike) -> types.ModuleType:
    """Returns the module of a recipe, by its name in `folder` or by the path of a Python file.

    Its `reference` is what finds it again: that name, or the absolute path.

    Raises:
        tfbp.UserError: no such recipe, its code fails, or a part of the contract is missing.
    """
    known = discover(folder)
    path = known.get(recipe) or pathlib.Path(recipe)
    if recipe not in known and path.suffix != ".py":
        raise mistake(
            "recipe", "must be a known recipe or the path of a Python file", recipe, known
        )
    if not path.is_file():
        raise mistake("recipe", "must be a file that exists", recipe, known)
    # Not under its bare name: a user's `mlp.py` must not hide a package of that name.
    spec = importlib.util.spec_from_file_location(f"tfbp_recipe_{path.stem}", path)
    assert spec and spec.loader  # of a file that exists, whose name ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # A recipe is the user's own: whatever it raises.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        where = f" at line {line}" if line else ""
        kind = type(error).__name__
        raise UserError(f"The recipe {path} fails{where}: {kind}: {error}.") from error
    vars(module)["reference"] = recipe if recipe in known else str(path.resolve())
    contract.check(module, Config)
    return module


def check(module: types.ModuleType, config: Config) -> None:
    """Refuses what is no recipe, and a config that is not of its class.

    Raises:
        tfbp.UserError: a part of the contract is missing, or the config is another recipe's.
    """
    if not isinstance(module, types.ModuleType):
        rule = "must be an imported module: `from recipes import mlp`, then `tfbp.run(mlp, …)`"
        raise mistake("recipe", rule, module)
    contract.check(module, Config)
    if not getattr(module, "__file__", None):
        raise mistake("recipe", "must be a module with a file, which finds it again", module)
    if not isinstance(config, module.Config):
        raise mistake("config", f"must be made by the `Config` of {name_of(module)}", config)


def reference(module: types.ModuleType) -> str:
    """Returns what `load` finds a recipe by again: a name, or the absolute path of its file."""
    return getattr(module, "reference", None) or str(pathlib.Path(module.__file__ or "").resolve())


def name_of(module: types.ModuleType) -> str:
    """Returns the name of a recipe: that of its file."""
    return pathlib.Path(module.__file__ or "").stem
