import dataclasses
import json

import keras
import numpy as np
import pytest

from tfbp.errors import UserError
from tfbp.training import optimizer, rules
from tfbp.training.phase import Phase

MOMENTUM = {"class_name": "SGD", "config": {"momentum": 0.9}}


def phase(rule, **settings):
    return Phase("fit", ".*", **{"epochs": 1, "learning_rate": 0.1} | settings, optimizer=rule)


def test_every_optimizer_of_keras_is_known_or_refused_with_a_reason():
    names = {
        name.lower()
        for name, kind in vars(keras.optimizers).items()
        if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer)
    }
    refused = names - {"optimizer"} - rules.KINDS.keys()
    assert refused == {"multioptimizer", "lossscaleoptimizer", "schedulefreeadamw"}
    for name in refused:
        with pytest.raises(UserError, match=r"`optimizer` must be one that tfbp can drive: .{20}"):
            phase(name)


@pytest.mark.parametrize(
    "rule",
    [
        MOMENTUM,
        keras.optimizers.SGD(momentum=0.9),
        keras.optimizers.SGD(0.1, momentum=0.9),  # the rate that the phase says, as float32
        keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=2.0, weight_decay=0.01),
        keras.optimizers.serialize(keras.optimizers.SGD(momentum=0.9)),
        {"class_name": "sgd", "config": {"momentum": 0.9, "nesterov": False}},
    ],
)
def test_a_config_and_an_optimizer_are_kept_as_what_differs_from_the_defaults(rule):
    kept = phase(rule, clip_variable_norm=2.0, weight_decay=0.01)
    assert kept.optimizer == MOMENTUM
    again = json.loads(json.dumps(dataclasses.asdict(kept)))
    assert Phase(**again) == kept


@pytest.mark.parametrize(
    "rule",
    ["lion", "Lion", {"class_name": "Lion"}, keras.optimizers.Lion(), keras.optimizers.Lion(0.1)],
)
def test_without_settings_a_name_is_kept(rule):
    assert phase(rule).optimizer == "lion"


def test_settings_reach_the_update_and_the_model_s_own_optimizer_afterwards():
    kept = phase(MOMENTUM, weight_decay=0.3)
    start = np.array([1.0, -2.0], np.float32)
    variable = keras.Variable(start)
    update = optimizer.build(kept, 2)
    update.build([variable])
    gradients = [np.array([1.0, 3.0]), np.array([-2.0, 0.5])]
    expected, velocity = start.astype(float), 0.0
    for gradient in gradients:  # Polyak 1964, as Keras writes it; decay before the step
        update.apply([keras.ops.cast(gradient, "float32")], [variable])
        velocity = 0.9 * velocity - 0.1 * gradient
        expected = expected * (1 - 0.1 * 0.3) + velocity
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6)
    plain = optimizer.plain(kept)
    assert type(plain) is keras.optimizers.SGD
    assert (plain.momentum, plain.weight_decay) == (0.9, 0.3)


def test_muon_decays_no_weight_by_a_setting_of_its_own():
    plain = optimizer.plain(phase("muon"))
    assert (plain.weight_decay, plain.adam_weight_decay) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            None,
            r"must be a name, \{'class_name': …, 'config': \{…\}\} or one of Keras's optimizers",
        ),
        ({"name": "SGD"}, "must be a name, "),
        ({"class_name": "SGD", "momentum": 0.9}, "must be a name, "),
        ({"class_name": "SDG"}, "must be one of Keras's. Received: 'SDG'.\nKnown:\n - adadelta"),
        (
            {"class_name": "SGD", "config": {"momentun": 0.9}},
            "must have settings of SGD. Received: 'momentun'. Did you mean 'momentum'?",
        ),
        (
            {"class_name": "SGD", "config": {"momentum": 2.0}},
            r"must have settings that Keras takes",
        ),
        (keras.optimizers.SGD(0.2), "must leave 'learning_rate' to the phase, as `learning_rate`"),
        (
            keras.optimizers.AdamW(weight_decay=0.1),
            "'weight_decay' to the phase, as `weight_decay`",
        ),
        (keras.optimizers.Adam(clipnorm=1.0), "'clipnorm' to the phase, as `clip_variable_norm`"),
        (keras.optimizers.Adam(use_ema=True), "must leave 'use_ema' to the phase, as `ema`. Rec"),
        (
            keras.optimizers.Adam(loss_scale_factor=8.0),
            "leave 'loss_scale_factor' to the phase. Rec",
        ),
        (
            keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)),
            "must leave 'learning_rate' to the phase",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(rule, message):
    with pytest.raises(UserError, match=f"^`optimizer` .*{message}"):
        phase(rule)


def test_a_rule_is_shown_by_its_name_and_settings():
    assert rules.text("adam") == "adam"
    assert rules.text(MOMENTUM) == "SGD (momentum 0.9)"
