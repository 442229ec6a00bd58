import json

import keras
import numpy as np
import pytest

from tfbp import fingerprint
from tfbp.modeling import freezing
from tfbp.training.audit import PhasePlan, Proof, ProofFailed
from tfbp.training.phase import Phase


def network():
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Normalization(name="scale"),
            layers.Dense(4, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(2, name="last"),
        ]
    )
    model.get_layer("scale").adapt(np.random.default_rng(0).normal(1, 2, (20, 3)))
    return model


def move(model, *names):
    """Adds one to the first number of variables that are named `layer/variable`."""
    for name in names:
        layer, _, variable = name.partition("/")
        target = getattr(model.get_layer(layer), variable)
        value = np.array(target.numpy())
        value.flat[0] += 1
        target.assign(value)


@pytest.mark.parametrize(
    ("trainable", "batch_norm", "moved"),
    [
        ("last", "frozen", ["last/bias"]),
        ("first|last", "frozen", ["first/kernel", "last/kernel"]),
        ("norm", "train", ["norm/beta"]),
        ("norm|last", "train", ["norm/gamma", "norm/moving_mean", "last/kernel"]),
        # A layer that has nothing to learn need not change.
        (".*", "frozen", ["first/kernel", "last/kernel"]),
    ],
)
def test_what_learns_may_change_and_the_rest_has_not(trainable, batch_norm, moved):
    model = network()
    frozen = freezing.freeze(model, trainable, batch_norm)
    proof = Proof(frozen)
    move(model, *moved)
    assert proof.check()["trained_layers"] == len(frozen.trainable)


@pytest.mark.parametrize(
    ("trainable", "batch_norm", "moved", "message"),
    [
        ("last", "frozen", ["last/bias", "first/bias"], "changed while training: first."),
        ("last", "frozen", ["last/bias", "scale/adapt_mean"], "changed while training: scale."),
        ("last", "frozen", ["norm/moving_variance"], "changed while training: norm."),
        ("norm|last", "frozen", ["last/bias", "norm/gamma"], "changed while training: norm."),
        ("first|last", "frozen", ["last/bias"], "should learn did not change: first."),
        ("first|last", "frozen", [], "should learn did not change: first, last."),
        ("norm", "train", ["norm/moving_mean"], "should learn did not change: norm."),
    ],
)
def test_every_deviation_is_named(trainable, batch_norm, moved, message):
    model = network()
    proof = Proof(freezing.freeze(model, trainable, batch_norm))
    move(model, *moved)
    with pytest.raises(ProofFailed) as caught:
        proof.check()
    assert message in str(caught.value)


def test_a_proof_goes_on_from_the_fingerprints_that_a_stopped_run_kept():
    model = network()
    frozen = freezing.freeze(model, "last")
    before = json.loads(json.dumps(Proof(frozen).before))
    move(model, "last/kernel")
    # The run goes on at the last step, where nothing moves any more.
    assert Proof(frozen, before).check() == Proof(frozen, before).check()
    with pytest.raises(ProofFailed, match="did not change: last"):
        Proof(frozen).check()
    move(model, "first/kernel")
    with pytest.raises(ProofFailed, match="changed while training: first"):
        Proof(frozen, before).check()


def test_the_proof_is_a_fingerprint_of_what_was_frozen_and_of_what_was_trained():
    def prove(*moved):
        model = keras.models.clone_model(network())
        model.set_weights([np.ones(weight.shape) for weight in model.weights])
        move(model, *moved)
        proof = Proof(freezing.freeze(model, "last"))
        move(model, "last/kernel")
        return proof.check()

    one, same, other = prove(), prove(), prove("first/kernel")
    assert one == same
    assert one["trained"] == other["trained"]
    assert one["frozen"] != other["frozen"]
    assert len(one["frozen"]) == len(fingerprint.of_bytes())


def test_a_plan_counts_parameters_and_steps():
    phase = Phase("head", "last", epochs=3, learning_rate=1)
    plan = PhasePlan.of(phase, freezing.freeze(network(), "last"), steps_per_epoch=5)
    assert plan.trainable == {"last": 4 * 2 + 2}
    assert plan.frozen == {"scale": 3 + 3 + 1, "first": 3 * 4 + 4, "norm": 4 * 4}
    assert plan.steps == 15
