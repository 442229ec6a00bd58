import keras
import models
import numpy as np
import pytest

import tfbp
from tfbp.auditing import classifiers

layers = keras.layers


def whole(*top):
    parts = [
        layers.Dense(6, "relu", name="code"),
        *(top or [layers.Dense(5, "softmax", name="old")]),
    ]
    return models.chain((4,), *parts, name="net")


class Subclassed(keras.Model):
    """A head on a model, or the model alone."""

    def __init__(self, inner, *more):
        super().__init__()
        self.inner, self.more = inner, more

    def call(self, x):
        x = self.inner(x)
        for layer in self.more:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    "model",
    [
        lambda: models.chain((4,), whole(), layers.Dense(2, name="head")),
        lambda: models.chain((4,), whole(), layers.Dropout(0.5), layers.Dense(2, name="head")),
        lambda: models.chain(
            (4,), layers.Dense(5, "softmax", name="old"), layers.Dense(2, name="head")
        ),
        lambda: keras.Sequential([keras.Input((4,)), whole(), layers.Dense(2, name="head")]),
        lambda: models.chain(
            (4,), whole(layers.Dense(5, name="predictions")), layers.Dense(2, name="head")
        ),
        lambda: Subclassed(whole(), layers.Dense(2, name="head")),
    ],
)
def test_a_dense_layer_that_reads_a_classifier_is_found_in_any_model(model):
    model = model()
    model(np.zeros((1, 4), np.float32))
    (finding,) = classifiers.findings(model)
    assert finding.id == "classifier-below" and not finding.warning
    assert finding.message.startswith("'head' reads what ")
    assert "old' answers" in finding.message or "predictions' answers" in finding.message


def gated():
    x = keras.Input((4,))
    gate = layers.Dense(3, "softmax", name="gate")(x)
    experts = layers.Reshape((3, 2))(layers.Dense(6)(x))
    mixed = layers.Dot(1)([gate, experts])
    return keras.Model(x, layers.Dense(2, name="head")(mixed))


@pytest.mark.parametrize(
    "model",
    [
        whole,
        gated,
        lambda: models.chain((4,), layers.Dense(5, "relu"), layers.Dense(2, name="head")),
        lambda: models.chain((4,), whole(layers.Dense(3, "tanh")), layers.Dense(2, name="head")),
        lambda: Subclassed(whole()),
    ],
)
def test_a_classifier_alone_and_gates_are_not(model):
    model = model()
    model(np.zeros((1, 4), np.float32))
    assert list(classifiers.findings(model)) == []


def test_the_audit_reports_it_and_a_caller_may_accept_it():
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    splits = tfbp.Splits.from_arrays(x, np.arange(40) % 2)
    model = models.chain((4,), whole(), layers.Dense(2, name="head"))
    arguments = model, splits, tfbp.Classification(splits.classes)
    phases = [tfbp.Phase("fit", ".*", epochs=1, learning_rate=1e-3)]
    assert "classifier-below" in [finding.id for finding in tfbp.audit(*arguments, phases)]
