"""The update rules of Keras, as a phase holds them: a name, or a name with settings."""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import keras

from tfbp.errors import mistake

# What a phase takes: a name, a config as Keras writes it, or an optimizer, for its config alone.
Rule: TypeAlias = str | Mapping[str, Any] | keras.optimizers.Optimizer

_REFUSED = {
    "multioptimizer": "give `learning_rate` a rate for each layer instead",
    "lossscaleoptimizer": "the loss is scaled where layers compute in float16",
    "schedulefreeadamw": "it evaluates other weights than it trains; `ema` does so too",
}
KINDS: dict[str, type[keras.optimizers.Optimizer]] = {
    name.lower(): kind
    for name, kind in sorted(vars(keras.optimizers).items())
    if isinstance(kind, type)
    and issubclass(kind, keras.optimizers.Optimizer)
    and kind is not keras.optimizers.Optimizer
    and name.lower() not in _REFUSED
}
# Settings of Keras's optimizers that a phase has itself, and how it calls them.
_OF_PHASE = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "adam_weight_decay": "weight_decay",
    "clipnorm": "clip_variable_norm",
    "global_clipnorm": "clip_norm",
    "clipvalue": "clip_value",
    "use_ema": "ema",
    "ema_momentum": "ema",
    "ema_overwrite_frequency": "ema",
    "gradient_accumulation_steps": "accumulate",
    "loss_scale_factor": None,
}


def checked(rule: object, phase: Mapping[str, Any]) -> str | dict[str, Any]:
    """Returns a rule as plain values: a name of `KINDS`, or {"class_name": …, "config": {…}} with
    the settings that are not at their defaults.

    Args:
        rule: see `Rule`.
        phase: the settings of the phase. What Keras's optimizer holds of them must be equal.

    Raises:
        tfbp.UserError: an unknown optimizer or setting, a value that Keras refuses, or one that is
            for the phase to say.
    """
    class_name, config = _parts(rule)
    if class_name.lower() not in KINDS:
        reason = _REFUSED.get(class_name.lower())
        error = f"must be one that tfbp can drive: {reason}" if reason else "must be one of Keras's"
        raise mistake("optimizer", error, class_name, KINDS)
    kind = KINDS[class_name.lower()]
    defaults = kind().get_config()
    settings = {}
    for key, value in config.items():
        if key not in defaults:
            raise mistake("optimizer", f"must have settings of {kind.__name__}", key, defaults)
        if key == "name" or _equal(value, defaults[key]):
            continue
        if key not in _OF_PHASE:
            settings[key] = value
            continue
        own = _OF_PHASE[key]
        if own is None or not _equal(value, phase.get(own)):
            where = f", as `{own}`" if own else ""
            raise mistake("optimizer", f"must leave {key!r} to the phase{where}", value)
    if not settings:
        return class_name.lower()
    try:
        kind(**settings)
        plain = json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        wrong = f"must have settings that Keras takes ({reason})"
        raise mistake("optimizer", wrong, settings) from error
    return {"class_name": kind.__name__, "config": plain}


def name(rule: Rule) -> str:
    """Returns the name in `KINDS` of a rule that is checked."""
    return _parts(rule)[0].lower()


def text(rule: Rule) -> str:
    """Returns a rule that is checked for people: "adam", "SGD (momentum 0.9)"."""
    class_name, config = _parts(rule)
    settings = ", ".join(f"{key} {value}" for key, value in config.items())
    return f"{class_name} ({settings})" if settings else class_name


def make(
    rule: Rule,
    learning_rate: Any,
    *,
    weight_decay: float | None = None,
    mixin: type | None = None,
) -> keras.optimizers.Optimizer:
    """Returns a new optimizer of a rule that is checked.

    Args:
        learning_rate: a rate or a schedule.
        weight_decay: per update, times the rate, of all weights; None: none.
        mixin: a class whose methods come before Keras's.
    """
    kind, config = KINDS[name(rule)], _parts(rule)[1]
    if mixin:
        kind = type(kind.__name__, (mixin, kind), {})
    optimizer = kind(learning_rate, **config)
    # AdamW and Muon have one by default, and Muon a second one.
    for setting in ("weight_decay", "adam_weight_decay"):
        if hasattr(optimizer, setting):
            setattr(optimizer, setting, weight_decay)
    return optimizer


def _parts(rule: object) -> tuple[str, Mapping[str, Any]]:
    if isinstance(rule, str):
        return rule, {}
    if isinstance(rule, keras.optimizers.Optimizer):
        return type(rule).__name__, rule.get_config()
    if isinstance(rule, Mapping) and isinstance(rule.get("class_name"), str):
        config = rule.get("config") or {}
        known = {"class_name", "config", "module", "registered_name"}
        if isinstance(config, Mapping) and rule.keys() <= known:
            return rule["class_name"], config
    form = "must be a name, {'class_name': …, 'config': {…}} or one of Keras's optimizers"
    raise mistake("optimizer", form, rule)


def _equal(one: Any, other: Any) -> bool:
    """Whether two settings are equal, as float32 too: so Keras keeps a rate."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)
