"""Flags from the settings of a dataclass: absl reads the line, the settings say what is right.

config, rest = flags.parse(recipe.Config, ["--epochs=3", "--hidden=500,250"], about="…")
"""

import dataclasses
import pathlib
import re
import textwrap
import types
from collections.abc import Sequence
from typing import Any, TypeVar

from absl import flags

from tfbp import recipe
from tfbp.errors import UserError, mistake
from tfbp.settings import Fields, Setting, declared

HELP = {"--help", "-h"}
WIDTH, INDENT = 100, " " * 6  # of the help of a flag
_NUMBER = re.compile(r"-[\d.]")

AnyFields = TypeVar("AnyFields", bound=Fields)


class Help(Exception):
    """The help that `--help` asks for, as its text."""


def parse(
    kind: type[AnyFields], arguments: Sequence[str], *, about: str | None
) -> tuple[AnyFields, list[str]]:
    """Returns the settings that a command line gives, and what in it is no flag.

    `--name=value`, `--name value`, `--flag`, `--noflag` and `--flagfile=FILE` are flags; a negative
    number is none, nor is anything after `--`.

    Args:
        kind: a dataclass of settings.
        arguments: the command line, without the program.
        about: what `--help` says above the flags.

    Raises:
        Help: `--help` is among the arguments.
        tfbp.UserError: an unknown flag, a value of another type or outside of its setting's range,
            or a flag file that cannot be read.
    """
    settings = declared(kind)
    if HELP & set(arguments):
        raise Help((about or "").strip() + _describe(kind))
    values = flags.FlagValues()
    values.set_gnu_getopt()
    for name, setting in settings.items():
        flag = flags.Flag(
            _Parser(setting),
            flags.ArgumentSerializer(),
            name,
            setting.default,
            setting.help,
            boolean=setting.kind is bool and not setting.many,
        )
        flags.DEFINE_flag(flag, values)
    rest = _read(values, arguments)
    end = rest.index("--") if "--" in rest else len(rest)
    for argument in rest[:end]:
        if argument.startswith("-") and not _NUMBER.match(argument):
            known = [f"--{name}" for name in settings]
            raise mistake("flag", "must be one of the known flags", argument.split("=")[0], known)
    return kind(**{name: values[name].value for name in settings}), rest[:end] + rest[end + 1 :]


def _read(values: flags.FlagValues, arguments: Sequence[str]) -> list[str]:
    """Reads a command line into `values`; returns what in it is no flag."""
    try:
        return values(["", *arguments], known_only=True)[1:]
    except flags.IllegalFlagValueError as error:
        # absl wraps what the parser below raised; the rest is its own.
        raise error.__context__ or UserError(f"{error}.") from None
    except flags.CantOpenFlagFileError as error:
        cause = error.__context__
        assert isinstance(cause, OSError)
        rule = f"must be a file that can be read ({cause.strerror})"
        raise mistake("--flagfile", rule, cause.filename) from None
    except (flags.Error, ValueError) as error:
        raise UserError(f"{error}.") from None


def recipe_and_config(
    recipes_folder: pathlib.Path,
    arguments: Sequence[str],
    *,
    about: str | None,
    also: type[Fields] | None = None,
) -> tuple[types.ModuleType, Any]:
    """Returns the recipe that the first argument names, and its config by the flags behind it.

    Args:
        about: what `--help` says without a recipe.
        also: settings that are flags of the command: the config that is returned has them too.

    Raises: what `parse` and `tfbp.recipe.load` raise.
    """
    if not arguments or arguments[0].startswith("-"):
        if HELP & set(arguments):
            raise Help((about or "").strip())
        raise mistake("RECIPE", "must come first, before the flags", " ".join(arguments))
    module = recipe.load(arguments[0], recipes_folder)
    kind = module.Config
    if also:
        kind = dataclasses.make_dataclass("Config", (), bases=(kind, also), frozen=True)
    config, rest = parse(kind, arguments[1:], about=module.__doc__)
    if rest:
        raise mistake("RECIPE", "must be one recipe; settings are --name=value", rest[0])
    return module, config


def _describe(kind: type[Fields]) -> str:
    """Returns all flags with their help, those of the class itself before those it inherits."""
    if not declared(kind):
        return ""
    ancestors = [set(declared(base)) for base in kind.__mro__ if issubclass(base, Fields)]
    settings = sorted(
        declared(kind).values(),
        key=lambda setting: -sum(setting.name not in names for names in ancestors),
    )
    lines = ["\n\nFlags:"]
    for setting in settings:
        known = f" ({' | '.join(setting.choices)})" if setting.choices else ""
        lines.append(f"  --{setting.name}={setting.text(setting.default)}")
        lines += textwrap.wrap(
            setting.help + known, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT
        )
    return "\n".join([*lines, "  --flagfile=FILE", f"{INDENT}a file of flags, one a line"])


class _Parser(flags.ArgumentParser):
    """Reads the text of one flag as its setting does."""

    def __init__(self, setting: Setting):
        super().__init__()
        self._setting = setting

    def parse(self, argument: Any) -> Any:
        # absl passes the default through here too: a value, or a text that stands for itself.
        if not isinstance(argument, str) or argument == self._setting.default:
            return argument
        return self._setting.parsed(argument)
