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
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("clip_norm", 0.0),
        ("clip_norm", math.nan),
        ("schedule", "linear"),
        ("batch_norm", "freeze"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(setting, wrong):
    with pytest.raises(UserError, match=f"`{setting}` must be .*Received: {wrong!r}"):
        Phase("head", "head.*", **GOOD | {setting: wrong})


def test_an_unknown_optimizer_gets_the_close_match():
    with pytest.raises(UserError, match=r"Did you mean 'adamw'\?\nKnown:\n - adagrad\n"):
        Phase("head", "head.*", **GOOD, optimizer="adamwx")
