"""What is handed to `fit` and belongs elsewhere: to settings, to a phase, to a recipe's config."""

import dataclasses

import tensorflow as tf

from tfbp.errors import mistake
from tfbp.recipe import Config
from tfbp.settings import Settings, declared
from tfbp.training.phase import Phase


def check(
    settings: Settings, strategy: tf.distribute.Strategy | None, unknown: dict[str, object]
) -> None:
    """Refuses keywords that `fit` does not have, and settings and a strategy that are none.

    Raises:
        tfbp.UserError: says where they belong.
    """
    for name, value in unknown.items():
        _refuse(name, value)
    if not isinstance(settings, Settings):
        raise mistake("settings", "must be tfbp.Settings(…)", settings)
    if isinstance(settings, Config):
        rule = "must be tfbp.Settings(…); a Config says more, and is for `tfbp.run(recipe, config)`"
        raise mistake("settings", rule, type(settings).__name__)
    if strategy is not None and not isinstance(strategy, tf.distribute.Strategy):
        rule = f"must be a tf.distribute strategy; a name is a setting: Settings({strategy=})"
        raise mistake("strategy", rule, strategy)
    if strategy is not None and settings.strategy is not None:
        rule = "must be given once: as an object to `fit`, or by its name in `settings`"
        raise mistake("strategy", rule, settings.strategy)


def _refuse(name: str, value: object) -> None:
    if name in declared(Settings):
        spelling = f"tfbp.fit(…, settings=tfbp.Settings({name}={value!r}))"
        raise mistake(name, f"must be given as a setting: {spelling}", value)
    if name in {item.name for item in dataclasses.fields(Phase)}:
        raise mistake(name, f"must be given to a phase: tfbp.Phase(…, {name}={value!r})", value)
    if name in declared(Config):
        rule = "must be given to a recipe's `Config`, for `tfbp.run`; `run.export(folder)` exports"
        raise mistake(name, rule, value)
    known = ("settings", "strategy", "callbacks", "backbone", *declared(Settings))
    raise mistake("fit", "must be given its own arguments", name, known)
