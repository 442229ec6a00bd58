import dataclasses
import json
import math
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfbp import recipe
from tfbp.errors import UserError
from tfbp.settings import declared, field
from tfbp.training.phase import Phase

GOOD = '''"""Learns nothing.

More about it.
"""
import dataclasses
import tfbp

@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    epochs: int = tfbp.field(3, "passes", low=1)

def data(config): ...
def task(config, splits): ...
def model(config, splits): ...
def phases(config): ...
'''


@dataclasses.dataclass(frozen=True)
class Config(recipe.Config):
    rate: float = field(0.1, "rate", low=0, high=1)
    layers: tuple[int, ...] = field((4, 2), "units", low=1, high=9)
    cells: tuple[str, ...] = field((), "cells", choices=("lstm", "gru"))
    flip: bool = field(False, "mirror")


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of recipes: `first`, `second`, and a file that is none."""
    (tmp_path / "first.py").write_text(GOOD)
    (tmp_path / "second.py").write_text('"""Is read, not run."""\nraise SystemExit\n')
    (tmp_path / "_shared.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    "right",
    [
        {"rate": 0},
        {"rate": 1},
        {"layers": ()},
        {"layers": (1, 9)},
        {"cells": ("gru", "lstm")},
        {"strategy": "mirrored"},
    ],
)
def test_values_inside_the_range_are_taken(right):
    config = Config(**right)
    assert all(getattr(config, name) == value for name, value in right.items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": -0.1}, "`rate` must be at least 0. Received: -0.1."),
        ({"rate": 1.5}, "`rate` must be at most 1. Received: 1.5."),
        ({"rate": math.nan}, "`rate` must be a finite number. Received: nan."),
        ({"layers": (4, 0)}, "`layers` must be at least 1. Received: 0."),
        ({"layers": (10, 4)}, "`layers` must be at most 9. Received: 10."),
        ({"cells": ("lstm", "gruu")}, "Received: 'gruu'. Did you mean 'gru'?"),
        ({"batch_size": 0}, "`batch_size` must be at least 1. Received: 0."),
        ({"seed": -1}, "`seed` must be at least 0. Received: -1."),
        ({"strategy": "mirored"}, "Did you mean 'mirrored'?"),
        ({"precision": "mixed_bf16"}, "Did you mean 'mixed_bfloat16'?"),
    ],
)
def test_values_outside_of_the_range_are_refused(wrong, message):
    with pytest.raises(UserError) as caught:
        Config(**wrong)
    assert message in str(caught.value)


@given(
    st.builds(
        Config,
        data=st.text(),
        rate=st.floats(0, 1),
        layers=st.lists(st.integers(1, 9)).map(tuple),
        cells=st.lists(st.sampled_from(("lstm", "gru"))).map(tuple),
        flip=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
)
def test_settings_pass_through_json_and_come_back_equal(config):
    text = json.dumps(config.counting("run", "workers", "process"))
    assert Config.from_json(json.loads(text)) == config


RATE = {"epochs": 1, "learning_rate": 1.0}
SETTINGS = {
    "accumulate": 2,
    "warm_up": 0.1,
    "weight_decay": 0.01,
    "ema": 0.9,
    "early_stopping": 3,
}


def phases_of(phase, **settings):
    module = types.SimpleNamespace(phases=lambda config: [phase])
    return recipe.phases(module, Config(**settings))


def test_a_config_fills_what_a_recipe_leaves_at_the_default_of_a_phase():
    assert set(SETTINGS) == {name for name, each in declared(Config).items() if each.of_phase}
    phase = Phase("fit", ".*", **RATE)
    assert phases_of(phase, **SETTINGS) == (Phase("fit", ".*", **RATE, **SETTINGS),)
    assert phases_of(phase) == (phase,)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_config_gives_wins_over_a_phase_and_what_it_does_not_give_stays(name):
    phase = Phase("fit", ".*", **RATE, **SETTINGS)
    other = {"accumulate": 1, "warm_up": 0.0, "weight_decay": 0.0, "ema": 0.5, "early_stopping": 5}
    given = {name: other[name]}
    assert phases_of(phase, **given) == (dataclasses.replace(phase, **given),)
    assert phases_of(phase) == (phase,)
    module = types.SimpleNamespace(phases=lambda config: [phase])
    assert recipe.overridden(module, Config(**given)) == {"fit": {name: SETTINGS[name]}}
    assert recipe.overridden(module, Config(**{name: SETTINGS[name]})) == {"fit": {}}


@pytest.mark.parametrize("name", ["ema", "early_stopping"])
def test_zero_switches_off_what_a_phase_switches_off_by_none(name):
    phase = Phase("fit", ".*", **RATE, **SETTINGS)
    (changed,) = phases_of(phase, **{name: 0})
    assert changed == dataclasses.replace(phase, **{name: None})


def test_a_setting_that_does_not_go_with_a_phase_is_refused():
    with pytest.raises(UserError, match="`warm_up` must be 0 with the schedule 'one_cycle'"):
        phases_of(Phase("fit", ".*", **RATE, schedule="one_cycle"), warm_up=0.1)
    with pytest.raises(UserError, match="`ema` must be below 1"):
        phases_of(Phase("fit", ".*", **RATE), ema=1.0)


def test_a_setting_that_the_recipe_has_no_longer_is_refused():
    with pytest.raises(UserError, match="'epoch'"):
        Config.from_json({"rate": 0.5, "epoch": 3})


def test_a_flag_file_has_a_line_for_each_setting_that_is_not_unset():
    config = Config(data="digits?per_class=5", flip=True)
    lines = config.flags_text().splitlines()
    unset = {name for name in declared(Config) if getattr(config, name) is None}
    assert {"workdir", "accumulate"} <= unset
    assert [line[2:].partition("=")[0] for line in lines] == [
        item.name for item in dataclasses.fields(Config) if item.name not in unset
    ]
    assert {"--data=digits?per_class=5", "--rate=0.1", "--layers=4,2", "--cells="} < set(lines)
    assert "--flip=true" in lines


def test_a_file_without_an_underscore_is_a_recipe(folder):
    assert recipe.discover(folder) == {
        "first": folder / "first.py",
        "second": folder / "second.py",
    }


def test_a_recipe_that_is_no_python_is_listed_as_such_beside_the_others(folder):
    (folder / "broken.py").write_text("impor x\n")
    (folder / "latin.py").write_bytes('"""Straße."""'.encode("latin-1"))
    (folder / "nul.py").write_bytes(b"x = 1\0")
    (folder / "folder.py").mkdir()
    (folder / "gone.py").symlink_to(folder / "nowhere")
    unread = dict.fromkeys(("broken", "latin", "nul"), "(its file cannot be read as Python)")
    assert recipe.summaries(folder) == unread | {
        "first": "Learns nothing.",
        "second": "Is read, not run.",
    }


def test_summaries_are_read_without_running_the_recipes(folder):
    assert recipe.summaries(folder) == {
        "first": "Learns nothing.",
        "second": "Is read, not run.",
    }


def test_a_recipe_is_loaded_by_its_name_or_its_path(folder, tmp_path_factory):
    by_name = recipe.load("first", folder)
    assert by_name.Config(epochs=5).epochs == 5
    assert by_name.reference == recipe.name_of(by_name) == "first"

    mine = tmp_path_factory.mktemp("mine") / "numpy.py"  # a package's name
    mine.write_text(GOOD)
    by_path = recipe.load(str(mine), folder)
    assert by_path.reference == str(mine)
    assert recipe.name_of(by_path) == "numpy"
    assert recipe.load(by_path.reference, folder).Config().epochs == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frist", r"Did you mean 'first'\?"),
        ("mine.py", "must be a file that exists. Received: 'mine.py'"),
        (".", "must be a known recipe or the path of a Python file"),
    ],
)
def test_a_recipe_that_is_not_there_is_refused(folder, name, message):
    with pytest.raises(UserError, match=message):
        recipe.load(name, folder)


def test_a_recipe_that_lacks_a_part_is_refused(folder):
    (folder / "third.py").write_text(GOOD.replace("def phases", "def stages"))
    with pytest.raises(UserError, match=r"third\.py lacks `phases`"):
        recipe.load("third", folder)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\ndef f(:\n", "fails at line 2: SyntaxError"),
        ("\nimport nowhere_to_be_found\n", "fails at line 2: ModuleNotFoundError"),
        ("def f():\n    raise KeyError('a')\n\nf()\n", "fails at line 2: KeyError"),
        ("import dataclasses\n\ndataclasses.fields(3)\n", "fails at line 3: TypeError"),
        ("\nraise SystemExit(3)\n", "fails at line 2: SystemExit: 3"),
    ],
)
def test_a_recipe_whose_code_fails_is_refused_with_the_line(folder, code, message):
    (folder / "third.py").write_text(code)
    with pytest.raises(UserError, match=message):
        recipe.load("third", folder)
