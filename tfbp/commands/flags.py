"""Flags from the fields of a dataclass: absl reads the line, the fields say what is right.

config, rest = flags.parse(recipe.Config, ["--epochs=3", "--hidden=500,250"], about="…")
"""

import dataclasses
import math
import pathlib
import re
import types
import typing
from collections.abc import Sequence

from absl import flags

from tfbp import recipe
from tfbp.errors import UserError, mistake

HELP = {"--help", "-h"}
_NUMBER = re.compile(r"-[\d.]")
_TRUTH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_RULES = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
}


class Help(Exception):
    """The help that was asked for by `--help`, as its text."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of a command that takes no recipe, made and checked like a Config's fields."""

    __post_init__ = recipe.Config.__post_init__


def parse(kind: type, arguments: Sequence[str], *, about: str) -> tuple[typing.Any, list[str]]:
    """Returns the settings that a command line gives, and what in it is no flag.

    `--name=value`, `--name value`, `--flag`, `--noflag` and `--flagfile=FILE` are flags; a negative
    number is none, nor is anything after `--`.

    Args:
        kind: a dataclass whose fields are made by `tfbp.field`.
        arguments: the command line, without the program.
        about: what `--help` says above the flags.

    Raises:
        Help: `--help` is among the arguments.
        tfbp.UserError: an unknown flag, a value of another type or outside of its field's range, or
            a flag file that cannot be read.
    """
    if HELP & set(arguments):
        raise Help(about.strip() + _describe(kind))
    values = flags.FlagValues()
    values.set_gnu_getopt()
    annotations = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    for item in fields:
        annotation = annotations[item.name]
        flag = flags.Flag(
            _Parser(item.name, annotation),
            flags.ArgumentSerializer(),
            item.name,
            item.default,
            item.metadata["help"],
            boolean=annotation is bool,
        )
        flags.DEFINE_flag(flag, values)
    try:
        rest = values(["", *arguments], known_only=True)[1:]
    except flags.IllegalFlagValueError as error:
        # absl wraps what the parser below raised; the rest is its own.
        raise error.__context__ or UserError(f"{error}.") from None
    except flags.CantOpenFlagFileError as error:
        cause = error.__context__
        rule = f"must be a file that can be read ({cause.strerror})"
        raise mistake("--flagfile", rule, cause.filename) from None
    except (flags.Error, ValueError) as error:
        raise UserError(f"{error}.") from None
    end = rest.index("--") if "--" in rest else len(rest)
    for argument in rest[:end]:
        if argument.startswith("-") and not _NUMBER.match(argument):
            known = [f"--{item.name}" for item in fields]
            raise mistake("flag", "must be one of the known flags", argument.split("=")[0], known)
    settings = kind(**{item.name: values[item.name].value for item in fields})
    return settings, rest[:end] + rest[end + 1 :]


def recipe_and_config(
    recipes_folder: pathlib.Path,
    arguments: Sequence[str],
    *,
    about: str,
    also: type | None = None,
) -> tuple[types.ModuleType, recipe.Config]:
    """Returns the recipe that the first argument names, and its config by the flags behind it.

    Args:
        about: what `--help` says without a recipe.
        also: a dataclass like a Config, whose fields are flags of the command: the config that is
            returned has them too.

    Raises: what `parse` and `tfbp.recipe.load` raise.
    """
    if not arguments or arguments[0].startswith("-"):
        if HELP & set(arguments):
            raise Help(about.strip())
        raise mistake("RECIPE", "must come first, before the flags", " ".join(arguments))
    module = recipe.load(arguments[0], recipes_folder)
    kind = module.Config
    if also:
        kind = dataclasses.make_dataclass("Config", (), bases=(kind, also), frozen=True)
    config, rest = parse(kind, arguments[1:], about=module.__doc__ or "")
    if rest:
        raise mistake("RECIPE", "must be one recipe; settings are --name=value", rest[0])
    return module, config


def _describe(kind: type) -> str:
    fields = dataclasses.fields(kind)
    if not fields:
        return ""
    lines = ["\n\nFlags:"]
    for item, flag in zip(fields, recipe.flags_text(kind()).splitlines(), strict=True):
        choices = item.metadata["choices"]
        known = f" ({' | '.join(map(str, choices))})" if choices else ""
        lines += [f"  {flag}", f"      {item.metadata['help']}{known}"]
    return "\n".join([*lines, "  --flagfile=FILE", "      a file of flags, one a line"])


class _Parser(flags.ArgumentParser):
    """Reads the text of one flag: a str, int, float or bool, or a tuple of one of them."""

    def __init__(self, name: str, annotation: typing.Any):
        super().__init__()
        self._name = name
        self._many = typing.get_origin(annotation) is tuple
        self._kind = typing.get_args(annotation)[0] if self._many else annotation
        if self._kind not in _RULES:
            raise UserError(f"The field `{name}` of a Config cannot be a flag: it is {annotation}.")

    def parse(self, argument: typing.Any) -> typing.Any:
        if not isinstance(argument, str):  # the default
            return argument
        if self._many:
            return tuple(self._one(part.strip()) for part in argument.split(",") if part.strip())
        return self._one(argument)

    def _one(self, text: str) -> typing.Any:
        try:
            value = _TRUTH[text.lower()] if self._kind is bool else self._kind(text)
            if self._kind is float and not math.isfinite(value):
                raise ValueError
        except (ValueError, KeyError):
            raise mistake(f"--{self._name}", f"must be {_RULES[self._kind]}", text) from None
        return value
