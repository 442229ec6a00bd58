"""The settings of a run, each declared once: default, help, type, range, and what it counts for.

Flags, checks, `flags.txt`, the table in the docs and what makes two runs the same run are all read
off these declarations. A new setting is one line here, and the place where it acts.

    @dataclasses.dataclass(frozen=True)
    class Settings(Fields):
        batch_size: int = field(32, "examples per global batch", low=1)
"""

import dataclasses
import math
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from tfbp.errors import UserError, mistake
from tfbp.finding import IDS

STRATEGIES = ("auto", "one", "mirrored", "multiworker")
# What TensorFlow can do besides, and why it is refused.
UNSUPPORTED_STRATEGIES = {
    "parameter_server": "parameter servers apply gradients whenever a worker has some, so that no "
    "run would end like one on a single device, or go on bit for bit",
    "central_storage": "it is an experiment of TensorFlow's; 'mirrored' trains on the same devices",
    "tpu": "on TPUs nothing of what tfbp promises has been tried",
}

# What a setting counts for. "run": another value makes another run. "workers": the run stays the
# same, but all workers need the same value. "process": each worker may have its own.
Scope = Literal["run", "workers", "process"]

_RULES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
_TRUTH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def field(
    default: object = dataclasses.MISSING,
    help: str = "",
    *,
    choices: Iterable[str] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    counts_for: Scope = "run",
    of_phase: bool = False,
) -> Any:
    """Declares one setting: a dataclass field with its help and the values it allows.

    The annotation is its type: str, int, float, bool, a `Literal` of the texts that are allowed, a
    tuple of one of them (`tuple[int, ...]`), or one of these with `| None`, where None means unset.

    Args:
        default: the value where none is given; left out: one must be given.
        help: one line for `--help`.
        choices: when given, the only values allowed (for a tuple, of each entry).
        low, high: the closed range of a number (for a tuple, of each entry).
        above, below: the same, without its ends.
        counts_for: see `Scope`.
        of_phase: whether a value that is given replaces that of each phase (`tfbp.Phase`).
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "low": low,
        "high": high,
        "above": above,
        "below": below,
        "counts_for": counts_for,
        "of_phase": of_phase,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting as it is declared.

    Attributes:
        name, default: of the dataclass field.
        kind: type of the value, or of each entry of a tuple.
        many: whether the value is a tuple.
        optional: whether it may be None, unset.
        help, choices, low, high, above, below, counts_for, of_phase: as given to `field`.
    """

    name: str
    default: Any
    kind: type
    many: bool
    optional: bool
    help: str
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    above: float | None
    below: float | None
    counts_for: Scope
    of_phase: bool

    def checked(self, value: Any) -> Any:
        """Returns a value in its plain type: a NumPy integer as int, a path as str.

        Raises:
            tfbp.UserError: it is of another type, or outside of the choices or the range.
        """
        if value is None or (value == "" and self.kind is str):
            if self.optional:
                return None
            if value is None:
                raise mistake(self.name, f"must be {self._rule}", value)
        if not self.many:
            return self._checked(value)
        if isinstance(value, str) and self.kind is str:
            value = (value,)
        if not isinstance(value, (tuple, list)):
            raise mistake(self.name, f"must be {self._rule}", value)
        return tuple(self._checked(entry) for entry in value)

    def parsed(self, text: str) -> Any:
        """Returns the value that a command line means.

        Raises:
            tfbp.UserError: the text is none of this type.
        """
        if not text and self.optional:
            return None
        if self.many:
            return tuple(self._parsed(part.strip()) for part in text.split(",") if part.strip())
        return self._parsed(text)

    def text(self, value: Any) -> str:
        """Returns a value as `parsed` reads it."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    @property
    def _rule(self) -> str:
        return f"a tuple, of {_RULES[self.kind]} each" if self.many else _RULES[self.kind]

    def _checked(self, value: Any) -> Any:
        value = self._plain(value)
        if self.choices and value not in self.choices:
            raise mistake(self.name, "must be one of the known values", value, self.choices)
        # `not (value >= low)` rather than `value < low`, so that NaN is refused too.
        for bound, holds, rule in (
            (self.low, lambda bound: value >= bound, "at least"),
            (self.high, lambda bound: value <= bound, "at most"),
            (self.above, lambda bound: value > bound, "above"),
            (self.below, lambda bound: value < bound, "below"),
        ):
            if bound is not None and not holds(bound):
                raise mistake(self.name, f"must be {rule} {bound}", value)
        return value

    def _plain(self, value: Any) -> Any:
        if self.kind is str and isinstance(value, (str, os.PathLike)):
            return os.fspath(value)
        if self.kind is bool and isinstance(value, bool):
            return value
        if self.kind is int and isinstance(value, numbers.Integral) and not _is_bool(value):
            return int(value)
        is_real = isinstance(value, numbers.Real) and not _is_bool(value)
        if self.kind is float and is_real and math.isfinite(value):
            return float(value)
        raise mistake(self.name, f"must be {_RULES[self.kind]}", value)

    def _parsed(self, text: str) -> Any:
        try:
            value = _TRUTH[text.lower()] if self.kind is bool else self.kind(text)
            if self.kind is float and not math.isfinite(value):
                raise ValueError
        except (ValueError, KeyError):
            raise mistake(f"--{self.name}", f"must be {_RULES[self.kind]}", text) from None
        return value


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)  # an int for Python, and a mistake here


def declared(kind: type) -> dict[str, Setting]:
    """Returns name → setting of a dataclass, of those of its fields that `field` has made.

    Raises:
        tfbp.UserError: a field is of a type that a setting cannot have.
    """
    annotations = typing.get_type_hints(kind)
    return {
        item.name: _setting(item, annotations[item.name])
        for item in dataclasses.fields(kind)
        if item.metadata
    }


def _setting(item: dataclasses.Field, annotation: Any) -> Setting:
    kinds, optional = [annotation], False
    if isinstance(annotation, types.UnionType):
        kinds = [each for each in typing.get_args(annotation) if each is not types.NoneType]
        optional = len(kinds) < len(typing.get_args(annotation))
    many = typing.get_origin(kinds[0]) is tuple
    kind = typing.get_args(kinds[0])[0] if many else kinds[0]
    metadata = dict(item.metadata)
    if typing.get_origin(kind) is Literal:
        metadata["choices"] = typing.get_args(kind)
        kind = type(metadata["choices"][0])
    if len(kinds) > 1 or kind not in _RULES:
        raise UserError(f"The field `{item.name}` cannot be a setting: it is {annotation}.")
    return Setting(item.name, item.default, kind, many, optional, **metadata)


@dataclasses.dataclass(frozen=True)
class Fields:
    """A frozen dataclass whose settings are checked when it is made.

    Raises:
        tfbp.UserError: a value is of another type than its field, or outside of its range.
    """

    def __post_init__(self) -> None:
        for name, setting in declared(type(self)).items():
            object.__setattr__(self, name, setting.checked(getattr(self, name)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns what `counting` returned the values of; others are at their defaults.

        Raises:
            tfbp.UserError: a name that is not declared, or not any longer.
        """
        known = declared(cls)
        for name in values:
            if name not in known:
                raise mistake("config", "must hold settings of the recipe", name, known)
        return cls(**values)

    def counting(self, *scopes: Scope) -> dict[str, Any]:
        """Returns name → value, as JSON values, of the settings that count for one of `scopes`."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, setting in declared(type(self)).items()
            for value in [getattr(self, name)]
            if setting.counts_for in scopes
        }

    def flags_text(self) -> str:
        """Returns a flag file, a setting a line, that repeats these settings."""
        lines = []
        for name, setting in declared(type(self)).items():
            value = getattr(self, name)
            if value is not None or setting.default is not None:
                lines.append(f"--{name}={setting.text(value)}\n")
        return "".join(lines)


@dataclasses.dataclass(frozen=True)
class Settings(Fields):
    """The settings of any run, whoever starts it. None means unset.

    Raises:
        tfbp.UserError: a value is of another type than its field, or outside of its range.
    """

    workdir: str | None = field(
        None,
        "run directory: checkpoints, history, logs, model and result; a run that was stopped goes "
        "on from there, one that has ended is read",
        counts_for="process",
    )
    batch_size: int = field(32, "examples per global batch", low=1)
    seed: int = field(0, "seed of the split, the order and the augmentation", low=0, high=2**32 - 1)
    strategy: str | None = field(None, "devices to train on", choices=STRATEGIES)
    gradients: int = field(
        0, "log gradient norms every so many updates; 0: never", low=0, counts_for="workers"
    )
    checkpoint_seconds: float = field(
        60.0, "seconds from one checkpoint to the next", low=0, counts_for="process"
    )
    restart: bool = field(
        False, "begin anew; the run in the work directory is kept beside", counts_for="workers"
    )
    on_nan: Literal["stop", "skip"] = field(
        "stop",
        "at a loss or gradient that is not finite: stop, or skip that update; the tenth of a phase "
        "stops the run all the same",
    )
    cache: bool = field(True, "compute what a phase cannot change once for each example")
    cache_dir: str | None = field(
        None, "folder of such features (unset: tfbp in $XDG_CACHE_HOME)", counts_for="process"
    )
    cache_gb: float = field(
        10.0, "what all of them may take there, 10⁹ bytes", low=0, counts_for="process"
    )
    cached_views: int = field(
        0, "views of an augmented example, cached; 0: new ones each epoch, uncached", low=0
    )
    cache_half: bool = field(False, "store features as float16: half the room, 11 binary digits")
    allow: tuple[str, ...] = field(
        (), "findings of the audit to accept", choices=IDS, counts_for="workers"
    )

    def __post_init__(self) -> None:
        if isinstance(self.strategy, str) and self.strategy in UNSUPPORTED_STRATEGIES:
            raise unsupported_strategy(self.strategy, self.strategy)
        super().__post_init__()


def unsupported_strategy(name: str, received: str) -> UserError:
    """The error for one of `UNSUPPORTED_STRATEGIES`, given as a name or as an object."""
    rule = f"must be one of the supported strategies: {UNSUPPORTED_STRATEGIES[name]}"
    return mistake("strategy", rule, received, STRATEGIES)


DEFAULTS = Settings()
