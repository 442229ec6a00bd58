"""The devices that a run trains on, as a `tf.distribute` strategy."""

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
    gpus = tf.config.list_logical_devices("GPU")
    if strategy == "mirrored" or (strategy == "auto" and len(gpus) > 1):
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()
