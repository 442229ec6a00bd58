"""The audit as a whole: what it returns, refuses, accepts and leaves alone."""

import json
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.finding import IDS, AuditFailed
from tfbp.modeling import keras_graph

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(60, 4)).astype("float32")
SPLITS = tfbp.Splits.from_arrays(X, np.arange(60) % 2, classes=("a", "b"))
TASK = tfbp.Classification(SPLITS.classes)
PHASES = [
    tfbp.Phase("head", "head", epochs=1, learning_rate=0.1),
    tfbp.Phase("all", ".*", epochs=1, learning_rate=0.1, batch_norm="train"),
]


def network(loaded=True):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(6, activation="relu", name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    body = keras.Model(inputs, keras.layers.Dropout(0.5)(x), name="body")
    if loaded:
        body.set_weights([GENERATOR.normal(1.0, 0.1, each.shape) for each in body.get_weights()])
    return keras.Sequential([keras.Input((4,)), body, keras.layers.Dense(2, name="head")])


def ids(*arguments, **settings):
    return [finding.id for finding in tfbp.audit(*arguments, **settings)]


def test_a_sound_training_has_no_findings_and_a_faulty_one_its_own():
    assert ids(network(), SPLITS, TASK, PHASES) == []
    assert ids(network(loaded=False), SPLITS, TASK, PHASES) == ["random-frozen"]
    allowed = ids(network(loaded=False), SPLITS, TASK, PHASES, tfbp.Settings(allow="random-frozen"))
    assert allowed == []


def test_the_backbone_may_be_one_model_or_several():
    model, other = network(), keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.layers[0].set_weights([np.ones((4, 2)), np.ones(2)])
    assert ids(model, SPLITS, TASK, PHASES, backbone=model.layers[0]) == []
    found = tfbp.audit(model, SPLITS, TASK, PHASES, backbone=[model.layers[0], other])
    assert [finding.id for finding in found] == ["not-connected"]
    with pytest.raises(tfbp.UserError, match="`backbone` must be a Keras model"):
        tfbp.audit(model, SPLITS, TASK, PHASES, backbone=["vgg16"])


def test_an_unknown_id_is_refused_with_the_close_one():
    with pytest.raises(tfbp.UserError, match=r"`allow` must .* Did you mean 'random-frozen'"):
        tfbp.Settings(allow=["random-froze"])
    with pytest.raises(tfbp.UserError, match=r"`allow` must .* Did you mean 'dead-layer'"):
        tfbp.Config(allow=("dead-layers",))
    assert tfbp.Config(allow=IDS).allow == IDS


@pytest.mark.parametrize("devices", [1, 2])
def test_the_model_is_left_as_it_was(devices):
    strategy = tf.distribute.get_strategy()
    if devices == 2:
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = network(loaded=False)
    model.layers[0].trainable = False
    model.layers[0].get_layer("norm").gamma.trainable = True

    def state():
        flags = [layer.trainable for layer in keras_graph.all_layers(model)]
        flags += [variable.trainable for variable in model.variables]
        return flags, [np.asarray(variable.value.numpy()) for variable in model.variables]

    before = state()
    assert len(before[1]) > len(model.weights)  # the seed of the dropout is among them
    keras.utils.set_random_seed(1)
    draws = np.random.random(), tf.random.uniform([]).numpy()
    keras.utils.set_random_seed(1)
    tfbp.audit(model, SPLITS, TASK, PHASES, backbone=model.layers[0])
    assert (np.random.random(), tf.random.uniform([]).numpy()) == draws
    after = state()
    assert before[0] == after[0]
    for old, new in zip(before[1], after[1], strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_run_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(AuditFailed) as refusal:
        tfbp.fit(
            network(loaded=False), SPLITS, TASK, PHASES, tfbp.Settings(workdir=tmp_path / "run")
        )
    message = str(refusal.value)
    assert "random-frozen: phase 'head' freezes body/first" in message
    assert "--allow=random-frozen" in message
    assert not (tmp_path / "run").exists()


def test_what_is_accepted_is_logged_and_stands_in_the_result(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    settings = tfbp.Settings(workdir=tmp_path / "run", allow=("random-frozen", "imbalance"))
    run = tfbp.fit(network(loaded=False), SPLITS, TASK, PHASES[:1], settings)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["accepted"] == run.result["accepted"]
    (accepted,) = result["accepted"]
    assert accepted["id"] == "random-frozen" and "body/first" in accepted["message"]
    assert "Accepted: random-frozen" in caplog.text
    # A run that has ended is read: nothing is audited.
    again = tfbp.fit(
        network(loaded=False), SPLITS, TASK, PHASES[:1], tfbp.Settings(workdir=tmp_path / "run")
    )
    assert again.result["accepted"] == result["accepted"]


def test_warnings_are_logged_and_stop_nothing(caplog):
    caplog.set_level(logging.WARNING)
    splits = tfbp.Splits.from_arrays(X, (np.arange(60) % 15 == 0).astype(int), classes=("a", "b"))
    (finding,) = tfbp.audit(network(), splits, TASK, PHASES)
    assert finding.id == "imbalance" and finding.warning
    run = tfbp.fit(network(), splits, TASK, PHASES[:1])
    assert "imbalance: " in caplog.text
    assert run.result["accepted"] == []


def test_a_loss_that_does_not_fit_is_named_and_its_gradients_are_not_computed():
    inputs = keras.Input((4,))
    wide = keras.Model(inputs, keras.layers.Dense(3, name="head")(inputs))
    assert ids(wide, SPLITS, TASK, PHASES[:1]) == ["loss-mismatch"]
