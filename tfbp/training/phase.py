"""A phase: what trains, for how long and at what rate. Settings only, never optimizer instances."""

import dataclasses

import keras

from tfbp.errors import mistake

OPTIMIZERS = {
    "adagrad": keras.optimizers.Adagrad,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "rmsprop": keras.optimizers.RMSprop,
    "sgd": keras.optimizers.SGD,
}
SCHEDULES = ("constant", "cosine")
BATCH_NORM = ("frozen", "train")


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of training with one set of trainable layers and a new optimizer.

    Attributes:
        name: its name in logs and results.
        trainable: regular expression; layers whose whole path matches learn, all others are frozen.
            A path is the names of the nesting models and the layer joined by `/`.
        epochs: passes over the training examples, at least 1.
        learning_rate: the (peak) rate, positive.
        schedule: "constant", or "cosine": from the rate to zero over the phase along half a cosine
            (Loshchilov & Hutter 2017, "SGDR", eq. 5, one cycle).
        optimizer: "adam", "adamw", "sgd", "rmsprop" or "adagrad", with Keras's own defaults.
        weight_decay: decoupled weight decay per step, times the rate (Loshchilov & Hutter 2019);
            0: none.
        clip_norm: largest norm of the gradient of all trainable variables together, over the whole
            global batch (Pascanu et al. 2013, alg. 1); None: no clipping.
        batch_norm: "frozen" keeps matching BatchNormalization layers in inference mode; "train"
            lets them learn and move their statistics.

    Raises:
        tfbp.UserError: a value outside of what is said above.
    """

    name: str
    trainable: str
    _: dataclasses.KW_ONLY
    epochs: int
    learning_rate: float
    schedule: str = "constant"
    optimizer: str = "adam"
    weight_decay: float = 0.0
    clip_norm: float | None = None
    batch_norm: str = "frozen"

    def __post_init__(self):
        if not self.epochs >= 1:
            raise mistake("epochs", "must be at least 1", self.epochs)
        if not 0 < self.learning_rate < float("inf"):
            raise mistake("learning_rate", "must be a positive number", self.learning_rate)
        if not 0 <= self.weight_decay < float("inf"):
            raise mistake("weight_decay", "must be zero or positive", self.weight_decay)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise mistake("clip_norm", "must be positive, or None", self.clip_norm)
        for name, known in (
            ("schedule", SCHEDULES),
            ("optimizer", OPTIMIZERS),
            ("batch_norm", BATCH_NORM),
        ):
            if getattr(self, name) not in known:
                raise mistake(name, "must be one of the known names", getattr(self, name), known)
