"""The learning rate of a phase, from update to update."""

import keras
import tensorflow as tf

from tfbp.training.phase import Phase

# The corners of one cycle: fractions of the phase, and the rates there as fractions of the peak
# (see `Phase.schedule`).
ONE_CYCLE = ((0.0, 0.1), (0.45, 1.0), (0.9, 0.1), (1.0, 0.001))


def of(
    phase: Phase, peak: float, updates: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate of a phase, as a Keras optimizer takes it.

    Args:
        phase: its settings.
        peak: the highest rate.
        updates: in the whole phase.
    """
    warm_up = int(phase.warm_up * updates)
    if phase.schedule == "one_cycle":
        return Lines([(fraction * updates, height * peak) for fraction, height in ONE_CYCLE])
    if phase.schedule == "cosine":
        if not warm_up:
            return keras.optimizers.schedules.CosineDecay(peak, updates)
        return keras.optimizers.schedules.CosineDecay(
            0.0, updates - warm_up, warmup_target=peak, warmup_steps=warm_up
        )
    return Lines([(0.0, 0.0), (float(warm_up), peak)]) if warm_up else peak


class Lines(keras.optimizers.schedules.LearningRateSchedule):
    """Straight lines between points, and the last point's rate after it.

    Args:
        points: (update, rate), the updates ascending from 0.
    """

    def __init__(self, points: list[tuple[float, float]]):
        self.points = points

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.points[-1][1])
        for (x, y), (end_x, end_y) in reversed(
            list(zip(self.points, self.points[1:], strict=False))
        ):
            line = y + (end_y - y) * (step - x) / (end_x - x)
            rate = tf.where(step < end_x, line, rate)
        return rate
