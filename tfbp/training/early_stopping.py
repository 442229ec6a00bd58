"""Early stopping: a phase ends when its validation loss no longer falls, also in a resumed run."""

from collections.abc import Sequence

import keras
import numpy as np

from tfbp.modeling.freezing import Frozen


class EarlyStopping:
    """Keeps the weights of the best epoch of a phase (Goodfellow et al. 2016, alg. 7.1).

    Args:
        frozen: how the phase divides the model: all that may change is kept, statistics too.
        patience: the phase ends after this many epochs in a row without a new lowest loss.
        state: `state` at the point from which a run resumes; None: the phase begins.
        weights: `weights` at that point.

    Attributes:
        epochs: epochs that have been judged.
        best_epoch: the one with the lowest validation loss, counted from 1; 0: none yet.
        weights: those of the best epoch; empty: none yet.
    """

    def __init__(
        self,
        frozen: Frozen,
        patience: int,
        state: dict | None = None,
        weights: Sequence[np.ndarray] = (),
    ):
        self._variables: list[keras.Variable] = [
            variable
            for path in frozen.trainable
            for variable in (*frozen.learning[path], *frozen.statistics.get(path, ()))
        ]
        self._patience = patience
        self._lowest = float("inf")
        self.epochs, self.best_epoch = 0, 0
        self.weights = list(weights)
        if state:
            self._lowest = state["lowest"]
            self.epochs, self.best_epoch = state["epochs"], state["best_epoch"]

    @property
    def state(self) -> dict:
        """The state, with `weights`, for a run that resumes: a JSON value."""
        return {"lowest": self._lowest, "epochs": self.epochs, "best_epoch": self.best_epoch}

    @property
    def stopped(self) -> bool:
        """Whether the phase should end here."""
        return self.epochs - self.best_epoch >= self._patience

    def judge(self, loss: float) -> None:
        """Records the validation loss of one more epoch, whose weights are in the model."""
        self.epochs += 1
        if loss < self._lowest:
            self._lowest, self.best_epoch = loss, self.epochs
            self.weights = [variable.numpy() for variable in self._variables]

    def restore(self) -> None:
        """Restores the best epoch's weights, if there is one."""
        if self.weights:
            for variable, value in zip(self._variables, self.weights, strict=True):
                variable.assign(value)
