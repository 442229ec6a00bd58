"""A phase: what trains, for how long and at what rate. Settings only, never optimizer instances."""

import dataclasses
import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tfbp.errors import mistake
from tfbp.settings import Fields, field
from tfbp.training import rules

SCHEDULES = ("constant", "cosine", "one_cycle")
BATCH_NORM = ("frozen", "affine", "train")
CLIPPING = ("clip_value", "clip_variable_norm", "clip_norm")


@dataclasses.dataclass(frozen=True)
class Phase(Fields):
    """One stretch of training with one set of trainable layers and a new optimizer.

    An update is one change of the weights: one for each batch, or for each `accumulate` batches.

    Attributes:
        name: its name in logs and results, no other phase's of the run, without slashes.
        trainable: regular expression; layers whose whole path matches learn, all others are frozen.
            A path is the names of the nesting models and the layer joined by `/`.
        epochs: passes over the training examples, at least 1.
        learning_rate: the (peak) rate, positive; or a mapping from regular expressions over layer
            paths to rates: a layer has the rate of the first one that matches its whole path. Each
            layer that learns needs one, and each expression needs such a layer.
        layer_decay: lower rates for lower layers (Howard & Ruder 2018, "ULMFiT", sec. 3.1, there
            1/2.6). The rate of a layer is multiplied by `layer_decay` ** d, with 0 < `layer_decay`
            <= 1, where d is the number of layers behind it that learn: 0 for the last one. They are
            counted one by one in the graph's order, whether they own a kernel or only a scale.
            None: no decay.
        schedule: "constant"; "cosine": from the rate to zero along half a cosine (Loshchilov &
            Hutter 2017, "SGDR", eq. 5, one cycle); or "one_cycle" (Smith & Topin 2018,
            "Super-convergence", sec. 3): in straight lines from a tenth of the rate to the rate in
            the first 45 % of the phase's updates, back in the next 45 %, and to a thousandth of the
            rate at the end.
        warm_up: fraction of the phase's updates, rounded down, in which a constant or cosine rate
            first rises from zero in a straight line (Goyal et al. 2017, sec. 2.2); below 1. The
            cosine takes the rest.
        optimizer: one of Keras's: its name in lower case, such as "adam", "sgd", "lion" or "muon",
            with Keras's defaults; a config, {"class_name": "SGD", "config": {"momentum": 0.9}}; or
            an optimizer, of which the phase keeps the config alone. What the phase says itself
            (rate, decay, clipping, accumulation, average) must not differ there.
        weight_decay: decoupled weight decay per update, times the layer's rate (Loshchilov & Hutter
            2019); 0: none.
        clip_value: largest magnitude of an entry of the gradient; None: no clipping.
        clip_variable_norm: largest norm of each variable's gradient by itself; None: no clipping.
        clip_norm: largest norm of the gradient of all trainable variables together (Pascanu et al.
            2013, alg. 1); None: no clipping. At most one of the three; each clips the gradient of
            all examples of an update.
        accumulate: batches whose gradients make one update, at least 1; an epoch's last update has
            the batches that are left. But for layers that look at a batch as a whole, such as a
            BatchNormalization that trains, the updates are those of batches so many times as large.
        ema: momentum of an exponential moving average of what learns, between 0 and 1: after each
            update average ← ema · average + (1 - ema) · weight, and after the first the weight
            itself. Averaged weights are validated, and left in the model at the end. None: none.
        early_stopping: epochs in a row without a new lowest validation loss that end the phase
            (Goodfellow, Bengio & Courville 2016, alg. 7.1), at least 1. The weights of the best
            epoch are left in the model, also where no epoch was too many. None: all epochs run, and
            the last weights stay.
        batch_norm: "frozen" keeps matching BatchNormalization layers in inference mode, gamma and
            beta fixed; "affine" keeps them in inference mode and lets gamma and beta learn; "train"
            lets them use batch statistics, move their averages and learn.

    Raises:
        tfbp.UserError: a value outside of what is said above.
    """

    name: str = field()
    trainable: str = field()
    _: dataclasses.KW_ONLY
    epochs: int = field(low=1)
    learning_rate: float | Mapping[str, float]
    layer_decay: float | None = field(None, above=0, high=1)
    schedule: str = field("constant", choices=SCHEDULES)
    warm_up: float = field(0.0, low=0, below=1)
    optimizer: rules.Rule = "adam"
    weight_decay: float = field(0.0, low=0)
    clip_value: float | None = field(None, above=0)
    clip_variable_norm: float | None = field(None, above=0)
    clip_norm: float | None = field(None, above=0)
    accumulate: int = field(1, low=1)
    ema: float | None = field(None, above=0, below=1)
    early_stopping: int | None = field(None, low=1)
    batch_norm: str = field("frozen", choices=BATCH_NORM)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[^/\\]*[^/\\.][^/\\]*", self.name):
            raise mistake("name", "must be a name, which is part of a path too", self.name)
        _check_rates(self.learning_rate)
        object.__setattr__(self, "optimizer", rules.checked(self.optimizer, vars(self)))
        if self.warm_up and self.schedule == "one_cycle":
            rule = "must be 0 with the schedule 'one_cycle', which rises by itself"
            raise mistake("warm_up", rule, self.warm_up)
        if self.warm_up and rules.name(self.optimizer) == "ftrl":
            rule = "must be 0 with the optimizer 'ftrl', which divides by the rate: it begins at 0"
            raise mistake("warm_up", rule, self.warm_up)
        given = [name for name in CLIPPING if getattr(self, name) is not None]
        if len(given) > 1:
            raise mistake(given[0], f"must be None beside `{given[1]}`", getattr(self, given[0]))


def listed(phases: Any) -> tuple[Phase, ...]:
    """Returns phases as they are given, one alone or several, as a tuple.

    Raises:
        tfbp.UserError: what is given is no phase.
    """
    if isinstance(phases, Phase):
        return (phases,)
    if not isinstance(phases, Iterable) or isinstance(phases, (str, Mapping)):
        raise mistake("phases", "must be a list of tfbp.Phase", phases)
    phases = tuple(phases)
    for phase in phases:
        if not isinstance(phase, Phase):
            raise mistake("phases", "must each be a tfbp.Phase", phase)
    return phases


def _check_rates(rates: object) -> None:
    pairs = rates.items() if isinstance(rates, Mapping) else [("", rates)]
    for pattern, rate in pairs:
        try:
            re.compile(pattern)
        except re.error as error:
            rule = f"must have regular expressions for keys ({error})"
            raise mistake("learning_rate", rule, pattern) from error
        if not isinstance(rate, numbers.Real) or not 0 < float(rate) < float("inf"):
            raise mistake("learning_rate", "must be a positive number", rate)
    if not rates:
        raise mistake("learning_rate", "must be one rate or more", rates)
