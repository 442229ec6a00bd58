"""After a phase, the proof: what was frozen has not changed, what should learn has moved."""

import itertools
import re
import time
from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

from tfbp import fingerprint
from tfbp.errors import CheckFailed, UserError
from tfbp.modeling.freezing import Frozen
from tfbp.training.loop import Diverged
from tfbp.workers.workers import Workers

# Path of a layer → SHA-256 of each of its weights, in the order of `layer.weights`.
Fingerprints = dict[str, list[str]]


class ProofFailed(CheckFailed):
    """Something frozen changed, or something that should learn did not."""


class Proof:
    """Fingerprints of a model's variables before a phase, to be compared with those after it.

    Whether it may change is decided for each variable, not for each layer: a layer with adapters
    learns while its kernel stays, and a BatchNormalization may learn its scale and keep its
    statistics.

    Args:
        frozen: how the phase divides the model.
        before: the fingerprints at the start of the phase, which are those at the end of the phase
            before it; None: they are taken now.

    Raises:
        tfbp.UserError: `before` is of other layers.

    Attributes:
        before: the fingerprints at the start of the phase.
        after: those at its end, once `check` has been called.
        seconds: how long taking and comparing them took.
    """

    def __init__(self, frozen: Frozen, before: Fingerprints | None = None):
        began = time.perf_counter()
        self._frozen = frozen
        self.before = self._renamed(before) if before else self._take()
        self.after: Fingerprints | None = None
        self.seconds = time.perf_counter() - began

    def check(self) -> dict:
        """Returns the proof for `result.json`.

        `frozen` and `trained` are SHA-256 over the fingerprints of all variables that must not
        change and of all that may, each with the number of variables and of layers.

        Raises:
            ProofFailed: names the frozen variables that changed, and the variables of layers that
                should learn but of which none changed.
        """
        began = time.perf_counter()
        fingerprints = self.after = self._take()
        changed, still = [], []
        fixed, moving = {}, {}
        for path, layer in self._frozen.division.layers.items():
            before, after = self.before[path], fingerprints[path]
            learning = _ids(self._frozen.learning.get(path, ()))
            statistics = _ids(self._frozen.statistics.get(path, ()))
            unmoved = []
            for i, variable in enumerate(layer.weights):
                name = _name(path, layer, variable)
                if id(variable) not in learning | statistics:
                    fixed[f"{path} {i}"] = after[i]
                    if after[i] != before[i]:
                        changed.append(name)
                    continue
                moving[f"{path} {i}"] = after[i]
                if id(variable) in learning and after[i] == before[i]:
                    unmoved.append(name)
            if learning and len(unmoved) == len(learning):
                still += unmoved
        self.seconds += time.perf_counter() - began
        if changed:
            raise ProofFailed(f"Frozen variables changed while training: {', '.join(changed)}.")
        if still:
            raise ProofFailed(
                f"Variables that should learn did not change: {', '.join(still)}. Their gradient "
                "is zero or too small to move them, or nothing connects them to the loss."
            )
        return {
            "frozen": fingerprint.of_json(fixed),
            "frozen_variables": len(fixed),
            "frozen_layers": len(self._frozen.frozen),
            "trained": fingerprint.of_json(moving),
            "trained_variables": len(moving),
            "trained_layers": len(self._frozen.trainable),
        }

    def check_workers(self, processes: Workers, phase: str) -> None:
        """Refuses weights that are not the same on all workers at the end of a phase.

        Raises:
            ProofFailed: names the workers that differ from the chief.
        """
        hashes = processes.gather(fingerprint.of_json(self.after).encode())
        if len(set(hashes)) > 1:
            wrong = [str(worker) for worker, each in enumerate(hashes) if each != hashes[0]]
            raise ProofFailed(
                f"After phase {phase!r} workers have other weights than worker 0: "
                f"{', '.join(wrong)}."
            )

    def _renamed(self, before: Fingerprints) -> Fingerprints:
        """Returns fingerprints by the paths that this build of the model has.

        The numbers that Keras gives to layers without a name are others in each build.
        """
        paths, others = list(self._frozen.division.layers), list(before)
        if set(paths) == set(others):
            return before
        if list(map(_unnumbered, paths)) == list(map(_unnumbered, others)):
            return dict(zip(paths, before.values(), strict=True))
        differing = sorted(set(paths) ^ set(others))
        raise UserError(
            "The checkpoint was made of a model with other layers, or by a version of tfbp that "
            f"names them differently: {', '.join(differing[:5])}. Give another work directory."
        )

    def _take(self) -> Fingerprints:
        weights = {path: layer.weights for path, layer in self._frozen.division.layers.items()}
        # Tensors are hashed in place; NumPy would copy the variables.
        variables = itertools.chain.from_iterable(weights.values())
        values = (tf.convert_to_tensor(variable.value) for variable in variables)
        hashes = iter(fingerprint.of_arrays(values))
        return {path: list(itertools.islice(hashes, len(each))) for path, each in weights.items()}


def check_finite(frozen: Frozen, phase: str) -> None:
    """Refuses weights that the very last update of a phase has spoiled: no loss has shown it.

    Raises:
        tfbp.training.loop.Diverged: names the variables.
    """
    # A statistic may be a mask of infinities that nothing changes.
    groups = (frozen.learning, lambda x: ~np.isfinite(x)), (frozen.statistics, np.isnan)
    spoiled = [
        f"{path}/{variable.name}"
        for group, wrong in groups
        for path, variables in group.items()
        for variable in variables
        if wrong(np.asarray(variable).astype(np.float64)).any()
    ]
    if spoiled:
        raise Diverged(
            f"After the last update of phase {phase!r} these are not finite: "
            f"{', '.join(spoiled)}. Lower the learning rate, or set `clip_norm`."
        )


def _unnumbered(path: str) -> str:
    return re.sub(r"_\d+(?=/|$)", "", path)


def _ids(variables: Iterable[keras.Variable]) -> set[int]:
    return {id(variable) for variable in variables}


def _name(path: str, layer: keras.layers.Layer, variable: keras.Variable) -> str:
    """Returns `vgg16/block1_conv1/kernel`; Keras's own path omits the nesting models."""
    own = variable.path.rpartition(f"{layer.name}/")[2]
    return f"{path}/{own}"
