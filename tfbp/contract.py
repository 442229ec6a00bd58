"""What a recipe must have, said before any of it is run: its parts, and the settings of its config.

`tfbp.recipe` describes the contract.
"""

import dataclasses
import inspect
import types

from tfbp.errors import UserError, mistake
from tfbp.settings import Setting, declared

# Part → what it is called with.
FUNCTIONS = {
    "data": ("config",),
    "task": ("config", "splits"),
    "model": ("config", "splits"),
    "phases": ("config",),
}
# Flags of every command.
_RESERVED = {"help", "h", "flagfile", "undefok"}


def check(module: types.ModuleType, kind: type) -> None:
    """Refuses a module that lacks a part of a recipe, or has one that is none.

    Args:
        kind: the class that its `Config` extends: `tfbp.Config`.

    Raises:
        tfbp.UserError: names the part, or the setting.
    """
    name = getattr(module, "__file__", None) or module.__name__
    missing = [part for part in ("Config", *FUNCTIONS) if not hasattr(module, part)]
    if missing:
        listed = ", ".join(f"`{part}`" for part in missing)
        raise UserError(f"The recipe {name} lacks {listed}.")
    try:
        for part, arguments in FUNCTIONS.items():
            _check_function(part, getattr(module, part), arguments)
        _check_config(module.Config, kind)
    except UserError as error:
        raise UserError(f"The recipe {name} breaks the contract. {error}") from error


def _check_function(name: str, function: object, arguments: tuple[str, ...]) -> None:
    called = f"{name}({', '.join(arguments)})"
    if not callable(function):
        raise mistake(name, f"must be a function, `{called}`", function)
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise mistake(name, f"must take `{called}`", str(inspect.signature(function))) from error


def _check_config(config: object, kind: type) -> None:
    if not (isinstance(config, type) and issubclass(config, kind)):
        raise mistake("Config", "must extend `tfbp.Config`", config)
    given = {name for each in config.__mro__ for name in vars(each).get("__annotations__", {})}
    names = set(getattr(config, "__dataclass_fields__", ()))
    if given - names:
        rule = "must be decorated with `@dataclasses.dataclass(frozen=True)`, for"
        raise mistake("Config", f"{rule} its `{min(given - names)}`", config.__name__)
    inherited, settings = declared(kind), declared(config)
    for name in sorted(vars(config).keys() & inherited.keys()):
        if name not in vars(config).get("__annotations__", {}):
            rule = f"must be declared with its type: `{name}: … = tfbp.field(…)`"
            raise mistake(name, rule, vars(config)[name])
    for name in sorted(names):
        if name not in settings:
            rule = f"must be declared by `tfbp.field`: `{name}: … = tfbp.field(…)`"
            raise mistake(name, rule, getattr(config, name, "no default"))
        _check_setting(settings[name], inherited.get(name), settings)


def _check_setting(
    setting: Setting, inherited: Setting | None, settings: dict[str, Setting]
) -> None:
    name = setting.name
    off = settings.get(name.removeprefix("no")) if name.startswith("no") else None
    if name in _RESERVED or (off and off.kind is bool):
        raise mistake(name, "must not be the name of a flag that there is already", f"--{name}")
    if inherited and (setting.kind, setting.many) != (inherited.kind, inherited.many):
        rule = f"must be of the type that all recipes know it by, {inherited.kind.__name__}"
        raise mistake(name, rule, setting.kind.__name__)
    if setting.default is not dataclasses.MISSING:
        setting.checked(setting.default)
