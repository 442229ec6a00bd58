"""The devices that a run trains on, as a `tf.distribute` strategy."""

import functools

import tensorflow as tf

from tfbp.errors import mistake

NAMES = ("auto", "one", "mirrored")


def resolve(strategy: str | tf.distribute.Strategy | None) -> tf.distribute.Strategy:
    """Returns a strategy by name.

    Args:
        strategy: "one" device; "mirrored" over all GPUs, or all logical CPUs where there is none;
            "auto": mirrored where there are two GPUs or more, else one; None: the current one; or a
            strategy, returned as it is.

    Raises:
        tfbp.UserError: an unknown name.
    """
    if strategy is None:
        return tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.Strategy):
        return strategy
    if strategy not in NAMES:
        raise mistake("strategy", "must be one of the known names or a strategy", strategy, NAMES)
    several = len(tf.config.list_logical_devices("GPU")) > 1
    if strategy == "mirrored" or (strategy == "auto" and several):
        return _mirrored()
    return tf.distribute.get_strategy()


@functools.cache
def _mirrored() -> tf.distribute.MirroredStrategy:
    # One for the whole process: a second one would number its collective operations from the start
    # again, and clash with the first one's.
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])
