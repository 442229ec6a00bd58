"""Before a phase, the plan: what trains. After it, the proof: what was frozen has not changed, what
should learn has moved.
"""

import dataclasses

import keras
import numpy as np

from tfbp import fingerprint
from tfbp.modeling.freezing import Frozen
from tfbp.training.phase import Phase


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """What a phase would train.

    Attributes:
        phase: its settings.
        trainable, frozen: layer path → number of parameters, of layers that have any.
        steps: updates in the whole phase.
    """

    phase: Phase
    trainable: dict[str, int]
    frozen: dict[str, int]
    steps: int

    @classmethod
    def of(cls, phase: Phase, frozen: Frozen, steps_per_epoch: int) -> "PhasePlan":
        """Returns the plan of a phase that has been applied to a model."""
        return cls(
            phase,
            {path: layer.count_params() for path, layer in frozen.trainable.items()},
            {path: layer.count_params() for path, layer in frozen.frozen.items()},
            phase.epochs * steps_per_epoch,
        )


class ProofFailed(RuntimeError):
    """Something frozen changed, or something that should learn did not."""


class Proof:
    """Fingerprints of a model's variables before a phase, to be held against those after it.

    Args:
        frozen: how the phase divides the model.
        before: the fingerprints from when the phase began, where it goes on; None: it begins now.
    """

    def __init__(self, frozen: Frozen, before: dict | None = None):
        self._frozen = frozen
        self.before = before or self._take()

    def check(self) -> dict:
        """Returns the proof for `result.json`.

        Raises:
            ProofFailed: names the frozen layers that changed and the trainable ones that did not.
        """
        after = self._take()
        frozen = self._frozen.frozen
        changed = [path for path in frozen if after[path] != self.before[path]]
        changed += [
            path
            for path in self._frozen.trainable
            if path not in self._frozen.statistics
            and after[path]["fixed"] != self.before[path]["fixed"]
        ]
        still = [
            path
            for path in self._frozen.trainable
            if after[path]["learning"] and after[path]["learning"] == self.before[path]["learning"]
        ]
        if changed:
            raise ProofFailed(f"Frozen layers changed while training: {', '.join(changed)}.")
        if still:
            raise ProofFailed(
                f"Layers that should learn did not change: {', '.join(still)}. Their gradient is "
                "zero, or nothing connects them to the loss."
            )
        return {
            "frozen": fingerprint.of_json({path: after[path] for path in frozen}),
            "frozen_layers": len(frozen),
            "trained": fingerprint.of_json({path: after[path] for path in self._frozen.trainable}),
            "trained_layers": len(self._frozen.trainable),
        }

    def _take(self) -> dict[str, dict[str, list[str]]]:
        layers = self._frozen.frozen | self._frozen.trainable
        return {path: _fingerprints(layer) for path, layer in layers.items()}


def _fingerprints(layer: keras.layers.Layer) -> dict[str, list[str]]:
    def hashes(variables):
        return [fingerprint.of_array(np.asarray(variable)) for variable in variables]

    return {
        "learning": hashes(layer.trainable_weights),
        "fixed": hashes(layer.non_trainable_weights),
    }
