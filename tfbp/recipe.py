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
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
import traceback
import types
from typing import TYPE_CHECKING

from tfbp.errors import UserError, mistake
from tfbp.finding import IDS

if TYPE_CHECKING:
    from tfbp.training.phase import Phase

STRATEGIES = ("auto", "one", "mirrored", "multiworker")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# Settings of a phase, by the names of its fields.
PHASE_SETTINGS = ("accumulate", "warm_up", "weight_decay", "ema", "early_stopping")


def field(
    default: object,
    help: str,
    *,
    choices: tuple = (),
    low: float | None = None,
    high: float | None = None,
) -> dataclasses.Field:
    """Returns a dataclass field of a `Config`: a default with its help and the values it allows.

    Args:
        default: the value, whose type is the flag's: str, int, float, bool or a tuple of one kind.
        help: one line for `--help`.
        choices: when given, the only values allowed (for a tuple, of each entry).
        low, high: when given, the closed range of a number (for a tuple, of each entry).
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings that all recipes share. A recipe extends it with its own fields.

    Those of `PHASE_SETTINGS` go into each phase that the recipe leaves at the default there.

    Raises:
        tfbp.UserError: a value is outside its field's choices or range.
    """

    data: str = field("", "examples: NAME[:PATH][?key=value&…]")
    weights: str = field("", "weights to start from: a file or the directory of an earlier run")
    workdir: str = field("", "run directory (default: runs/<recipe>/<n>)")
    export_dir: str = field("saved_models", "folder that receives <recipe>/<version>")
    keep_versions: int = field(0, "newest versions that stay there; 0: all", low=0)
    seed: int = field(0, "seed of the split, the start, the order and the augmentation", low=0)
    batch_size: int = field(32, "examples per global batch", low=1)
    strategy: str = field("auto", "devices to train on", choices=STRATEGIES)
    precision: str = field("float32", "of the model's arithmetic", choices=PRECISIONS)
    accumulate: int = field(1, "batches whose gradients make one update", low=1)
    warm_up: float = field(0.0, "part of a phase in which its rate rises from 0", low=0, high=1)
    weight_decay: float = field(0.0, "decoupled weight decay per update, times the rate", low=0)
    ema: float = field(0.0, "momentum of averaged weights, the ones kept; 0: none", low=0, high=1)
    early_stopping: int = field(
        0, "epochs without a better validation loss that end a phase; 0: none", low=0
    )
    gradients: int = field(0, "log gradient norms at each so manieth update; 0: never", low=0)
    checkpoint_seconds: float = field(60.0, "seconds from one checkpoint to the next", low=0)
    restart: bool = field(False, "begin anew; the run in the work directory is kept beside")
    on_nan: str = field(
        "stop", "at a loss or gradient that is no finite number", choices=("stop", "skip")
    )
    on_bad_example: str = field(
        "fail", "at image files of a folder that are not whole", choices=("fail", "skip")
    )
    cache: bool = field(True, "compute what a phase cannot change once for each example")
    cache_dir: str = field("", "folder of such features (default: tfbp in $XDG_CACHE_HOME)")
    cache_gb: float = field(10.0, "what they may take there, 10⁹ bytes", low=0)
    cached_views: int = field(
        0, "views of an augmented example, cached; 0: new ones each epoch, uncached", low=0
    )
    cache_half: bool = field(False, "store features as float16")
    allow: tuple[str, ...] = field((), "findings of the audit to accept", choices=IDS)

    def __post_init__(self):
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            for entry in value if isinstance(value, tuple) else (value,):
                _check(item.name, entry, **item.metadata)


def _check(name: str, value, *, help: str = "", choices=(), low=None, high=None) -> None:
    if choices and value not in choices:
        raise mistake(name, "must be one of the known values", value, map(str, choices))
    # `not (low <= value)` rather than `value < low`, so that NaN is refused too.
    if low is not None and not value >= low:
        raise mistake(name, f"must be at least {low:g}", value)
    if high is not None and not value <= high:
        raise mistake(name, f"must be at most {high:g}", value)


def phases(module: types.ModuleType, config: Config) -> "tuple[Phase, ...]":
    """Returns a recipe's phases; what it leaves at a phase's default is as the config says.

    Raises:
        tfbp.UserError: a setting that does not go with the rest of a phase.
    """
    filled = []
    for phase in module.phases(config):
        changes = {
            name: getattr(config, name)
            for name in PHASE_SETTINGS
            if getattr(config, name) != getattr(Config, name)
            and getattr(phase, name) == getattr(type(phase), name)
        }
        filled.append(dataclasses.replace(phase, **changes))
    return tuple(filled)


def settings(config: Config) -> dict:
    """Returns a config as a JSON value."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_settings(kind: type[Config], settings: dict) -> Config:
    """Returns the config that `settings` was made of.

    Raises:
        tfbp.UserError: a name that the recipe does not have, or has no longer.
    """
    known = [item.name for item in dataclasses.fields(kind)]
    for name in settings:
        if name not in known:
            raise mistake("config", "must hold settings of the recipe", name, known)
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


def flags_text(config: Config) -> str:
    """Returns a config as a flag file, a line each, that repeats it."""
    lines = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, bool):
            text = str(value).lower()
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        lines.append(f"--{item.name}={text}\n")
    return "".join(lines)


def discover(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Returns name → file of a folder's recipes: its Python files without a leading underscore."""
    files = sorted(pathlib.Path(folder).glob("*.py"))
    return {path.stem: path for path in files if not path.stem.startswith("_")}


def summaries(folder: str | os.PathLike) -> dict[str, str]:
    """Returns name → first line of the docstring, read without importing the recipes."""
    result = {}
    for name, path in discover(folder).items():
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
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # A recipe is the user's own: whatever its code raises.
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__, -1)]
        line = getattr(error, "lineno", None) or lines[-1]
        kind = type(error).__name__
        raise UserError(f"The recipe {path} fails at line {line}: {kind}: {error}.") from error
    module.reference = recipe if recipe in known else str(path.resolve())
    missing = [
        name for name in ("Config", "data", "task", "model", "phases") if not hasattr(module, name)
    ]
    if missing:
        raise UserError(f"The recipe {path} lacks {', '.join(f'`{name}`' for name in missing)}.")
    return module


def name_of(module: types.ModuleType) -> str:
    """Returns the name of a recipe: that of its file."""
    return pathlib.Path(module.__file__).stem
