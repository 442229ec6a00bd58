"""A recipe that is none is refused in words, before any of it runs."""

import dataclasses
import types

import pytest

import tfbp
from tfbp import contract, driver, recipe
from tfbp.errors import UserError


def named(**parts):
    module = types.ModuleType("mine")
    module.__file__ = __file__
    whole = {
        "Config": tfbp.Config,
        "data": lambda config: None,
        "task": lambda config, splits: None,
        "model": lambda config, splits: None,
        "phases": lambda config: [],
    }
    vars(module).update({name: part for name, part in (whole | parts).items() if part is not None})
    return module


def config(**body):
    """Returns the class that a user writes: annotations and all, with the decorator."""
    annotations = body.pop("annotations", {})
    kind = type("Config", (tfbp.Config,), {"__annotations__": annotations, **body})
    return dataclasses.dataclass(frozen=True)(kind)


def test_a_recipe_is_taken_also_with_optional_arguments_and_settings_of_its_own():
    module = named(
        Config=config(annotations={"batch_size": int}, batch_size=tfbp.field(8, "examples", low=2)),
        phases=lambda config, more=1: [],
    )
    contract.check(module, tfbp.Config)


class Undecorated(tfbp.Config):
    hidden: int = tfbp.field(8, "units")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"data": None, "task": None}, "lacks `data`, `task`"),
        ({"model": 3}, r"`model` must be a function, `model\(config, splits\)`\. Received: 3"),
        ({"phases": lambda: []}, r"`phases` must take `phases\(config\)`\. Received: '\(\)'"),
        ({"task": lambda config: 0}, r"must take `task\(config, splits\)`"),
        ({"Config": tfbp.Settings}, "`Config` must extend `tfbp.Config`"),
        ({"Config": dict}, "`Config` must extend `tfbp.Config`"),
        ({"Config": Undecorated}, r"decorated with `@dataclasses\.dataclass.*`hidden`"),
    ],
    ids=["missing", "no function", "no argument", "one argument", "Settings", "dict", "bare"],
)
def test_a_part_that_is_none_is_named(parts, said):
    with pytest.raises(UserError, match=said):
        contract.check(named(**parts), tfbp.Config)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"batch_size": 8}, r"`batch_size` must be declared with its type"),
        ({"annotations": {"batch_size": int}, "batch_size": 8}, "must be declared by `tfbp.field`"),
        ({"annotations": {"mine": int}, "mine": 8}, "`mine` must be declared by `tfbp.field`"),
        ({"workdir": lambda self: "x"}, "`workdir` must be declared with its type"),
        (
            {"annotations": {"batch_size": str}, "batch_size": tfbp.field("a", "x")},
            "`batch_size` must be of the type that all recipes know it by, int. Received: 'str'",
        ),
        ({"annotations": {"help": str}, "help": tfbp.field("a", "x")}, "flag that there is"),
        ({"annotations": {"nocache": str}, "nocache": tfbp.field("a", "x")}, "flag that there is"),
        (
            {"annotations": {"hidden": int}, "hidden": tfbp.field("a", "units")},
            "`hidden` must be a whole number. Received: 'a'",
        ),
        (
            {"annotations": {"hidden": int}, "hidden": tfbp.field(0, "units", low=1)},
            "`hidden` must be at least 1. Received: 0",
        ),
    ],
)
def test_a_setting_that_would_be_lost_or_wrong_is_named(body, said):
    with pytest.raises(UserError, match=f"test_contract.py breaks the contract.*{said}"):
        contract.check(named(Config=config(**body)), tfbp.Config)


def test_a_setting_without_a_default_is_no_mistake():
    kind = dataclasses.make_dataclass(
        "Config",
        [("shape", int, tfbp.field(help="edge"))],
        bases=(tfbp.Config,),
        frozen=True,
        kw_only=True,
    )
    contract.check(named(Config=kind), tfbp.Config)


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        (None, "`phases` must be a list of tfbp.Phase. Received: None"),
        ("abc", "`phases` must be a list of tfbp.Phase. Received: 'abc'"),
        (["a"], "`phases` must each be a tfbp.Phase. Received: 'a'"),
    ],
)
def test_phases_that_are_none_are_refused(phases, said):
    with pytest.raises(UserError, match=said):
        recipe.phases(named(phases=lambda config: phases), tfbp.Config())


def test_what_data_forgot_to_return_is_said():
    with pytest.raises(UserError, match=r"`splits` must be tfbp\.Splits\. Received: None"):
        driver.run(named(), tfbp.Config())


@pytest.mark.parametrize("given", ["mlp", "./mine.py", None])
def test_a_name_in_place_of_a_module_is_refused(given):
    with pytest.raises(UserError, match="`recipe` must be an imported module"):
        driver.run(given, tfbp.Config())


def test_a_config_that_is_left_out_is_refused():
    with pytest.raises(UserError, match="`config` must be made by the `Config` of"):
        driver.run(named(), None)
