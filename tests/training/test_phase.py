import dataclasses
import math

import pytest

from tfbp.errors import UserError
from tfbp.training.phase import Phase

GOOD = {"epochs": 3, "learning_rate": 1e-3}


def test_a_phase_holds_settings_and_cannot_be_changed():
    phase = Phase("head", "head.*", **GOOD)
    assert (phase.schedule, phase.optimizer, phase.batch_norm) == ("constant", "adam", "frozen")
    assert phase == Phase("head", "head.*", **GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        phase.epochs = 4


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("epochs", 0),
        ("learning_rate", "1"),
        ("epochs", 2.5),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
        ("learning_rate", {}),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("warm_up", -0.1),
        ("warm_up", 1.0),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("clip_norm", 0.0),
        ("clip_norm", math.nan),
        ("clip_value", -1.0),
        ("clip_variable_norm", 0.0),
        ("accumulate", 0),
        ("accumulate", 1.5),
        ("ema", 0.0),
        ("ema", 1.0),
        ("early_stopping", 0),
        ("early_stopping", 1.5),
        ("schedule", "linear"),
        ("batch_norm", "freeze"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(setting, wrong):
    with pytest.raises(UserError, match=f"`{setting}` must be .*Received: {wrong!r}"):
        Phase("head", "head.*", **GOOD | {setting: wrong})


def test_an_unknown_optimizer_gets_the_close_match():
    with pytest.raises(UserError, match=r"Did you mean 'adamw'\?\nKnown:\n - adadelta\n"):
        Phase("head", "head.*", **GOOD, optimizer="adamwx")


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"head": 1e-3, "body": 0.0}, "must be a positive number. Received: 0.0"),
        ({"head(": 1e-3}, r"must have regular expressions for keys \(missing \), .*'head\('"),
    ],
)
def test_rates_by_layer_are_checked_one_by_one(rates, message):
    with pytest.raises(UserError, match=f"`learning_rate` {message}"):
        Phase("head", ".*", **GOOD | {"learning_rate": rates})


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(UserError, match="`clip_value` must be None beside `clip_norm`"):
        Phase("head", "head.*", **GOOD, clip_value=1.0, clip_norm=1.0)
    with pytest.raises(UserError, match="`warm_up` must be 0 with the schedule 'one_cycle'"):
        Phase("head", "head.*", **GOOD, schedule="one_cycle", warm_up=0.1)
    with pytest.raises(UserError, match="`warm_up` must be 0 with the optimizer 'ftrl', which div"):
        Phase("head", "head.*", **GOOD, optimizer="ftrl", warm_up=0.1)


@pytest.mark.parametrize("name", ["", "..", "../head", "a/b", "a\\b"])
def test_a_name_that_would_be_another_path_is_refused(name):
    with pytest.raises(UserError, match="`name` must be a name"):
        Phase(name, "head.*", **GOOD)
