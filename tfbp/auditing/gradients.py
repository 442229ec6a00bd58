"""Layers that should train and cannot: no gradient, a zero one, or one that is not finite."""

import math
from collections.abc import Iterator

from tfbp.auditing.one_batch import Effect
from tfbp.finding import Finding, listed
from tfbp.training.phase import CLIPPING, Phase

# Norm of a variable's gradient from which on no usual learning rate leaves its values in range.
HUGE = 1e6


def findings(phase: Phase, effect: Effect) -> Iterator[Finding]:
    """Yields `no-gradient`, `dead-layer` and `exploding` from the effect of a batch in a phase."""
    if without := [f"{path}/{name}" for path, name, norm in effect.norms if norm is None]:
        yield Finding(
            "no-gradient",
            f"phase {phase.name!r} trains {listed(without)}, and no gradient of the loss reaches "
            "them. Connect them to the output by operations that have a gradient (no argmax, "
            "rounding or stop_gradient), or leave them out of `trainable`.",
        )
    if effect.dead:
        yield Finding(
            "dead-layer",
            f"phase {phase.name!r} trains {listed(effect.dead)}, whose gradient on a batch is zero "
            "in every entry. Look for a ReLU whose inputs are all negative, units that are "
            "saturated, or a factor of zero behind them.",
        )
    clipped = any(getattr(phase, name) is not None for name in CLIPPING)
    limit = math.inf if clipped else HUGE
    large = [
        f"{path}/{name} ({norm:.2g})"
        for path, name, norm in effect.norms
        if norm is not None and not norm < limit
    ]
    if not math.isfinite(effect.loss):
        large.insert(0, f"the loss ({effect.loss})")
    if large:
        yield Finding(
            "exploding",
            f"on the first batch of phase {phase.name!r}, loss or norms of gradients are no finite "
            f"numbers, or {HUGE:g} and more: {listed(large)}. Scale inputs, targets and initial "
            "weights to the order of 1.",
        )
