import json

import keras
import numpy as np
import pytest

from tfbp import fingerprint
from tfbp.errors import UserError
from tfbp.modeling import adapters, freezing
from tfbp.training.proof import Proof, ProofFailed


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
        ("norm", "affine", ["norm/gamma"]),
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
        ("last", "frozen", ["last/bias", "first/bias"], "changed while training: first/bias."),
        (
            "last",
            "frozen",
            ["last/bias", "scale/adapt_mean"],
            "while training: scale/mean.",
        ),
        ("last", "frozen", ["norm/moving_variance"], "while training: norm/moving_variance."),
        ("norm|last", "frozen", ["last/bias", "norm/gamma"], "while training: norm/gamma."),
        ("first|last", "frozen", ["last/bias"], "did not change: first/kernel, first/bias."),
        (
            "first|last",
            "frozen",
            [],
            "change: first/kernel, first/bias, last/kernel, last/bias.",
        ),
        ("norm|last", "affine", ["last/bias"], "did not change: norm/gamma, norm/beta."),
        (
            "norm",
            "affine",
            ["norm/beta", "norm/moving_mean"],
            "Frozen variables changed while training: norm/moving_mean.",
        ),
        ("norm", "train", ["norm/moving_mean"], "did not change: norm/gamma, norm/beta."),
    ],
)
def test_every_deviation_is_named(trainable, batch_norm, moved, message):
    model = network()
    proof = Proof(freezing.freeze(model, trainable, batch_norm))
    move(model, *moved)
    with pytest.raises(ProofFailed) as caught:
        proof.check()
    assert message in str(caught.value)


def test_of_a_layer_with_adapters_the_kernel_must_stay():
    model = network()
    adapters.add_lora(model, "first", rank=1)
    proof = Proof(freezing.freeze(model, "first|last"))
    move(model, "first/lora_kernel_b", "last/kernel")
    proved = proof.check()
    assert proved["trained_variables"] == 2 + 2  # two adapters; kernel and bias of `last`
    # Scale, kernel and bias of `first`, all of `norm`.
    assert proved["frozen_variables"] == 3 + 2 + 4
    move(model, "first/_kernel")
    with pytest.raises(ProofFailed, match="changed while training: first/kernel\\."):
        proof.check()


def test_variables_inside_a_wrapper_are_told_apart():
    layer = keras.layers.Bidirectional(keras.layers.LSTM(2), name="both")
    model = keras.Sequential([keras.Input((3, 1)), layer, keras.layers.Dense(1, name="last")])
    proof = Proof(freezing.freeze(model, "last"))
    move(model, "last/bias")
    bias = layer.backward_layer.cell.bias
    bias.assign(bias + 1)
    with pytest.raises(ProofFailed, match=r"training: both/backward_lstm[^,]*/lstm_cell/bias\."):
        proof.check()


def test_the_fingerprints_at_the_end_of_a_phase_are_those_at_the_start_of_the_next():
    model = network()
    frozen = freezing.freeze(model, "last")
    proof = Proof(frozen)
    move(model, "last/bias")
    proof.check()
    assert proof.after != proof.before
    assert Proof(frozen, proof.after).before is proof.after  # not computed again


def test_a_proof_goes_on_from_the_fingerprints_that_a_stopped_run_kept():
    model = network()
    frozen = freezing.freeze(model, "last")
    before = json.loads(json.dumps(Proof(frozen).before))
    move(model, "last/kernel")
    # The run goes on at the last step, where nothing moves any more.
    assert Proof(frozen, before).check() == Proof(frozen, before).check()
    with pytest.raises(ProofFailed, match="did not change: last/kernel, last/bias"):
        Proof(frozen).check()
    move(model, "first/kernel")
    with pytest.raises(ProofFailed, match="changed while training: first/kernel"):
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


def test_fingerprints_of_layers_with_other_names_are_refused():
    frozen = freezing.freeze(network(), "last")
    before = Proof(frozen).before
    before["inner/last"] = before.pop("last")
    with pytest.raises(UserError, match=r"differently: inner/last, last\. Give another"):
        Proof(frozen, before)


def test_fingerprints_of_another_build_are_those_of_layers_at_the_same_places():
    def unnamed():
        parts = [keras.layers.Dense(4), keras.layers.Dense(4), keras.layers.Dense(2, name="last")]
        return keras.Sequential([keras.Input((4,)), *parts])

    first = Proof(freezing.freeze(unnamed(), "last"))
    model = unnamed()  # whose layers have other numbers
    frozen = freezing.freeze(model, "last")
    assert first.before.keys() != frozen.division.layers.keys()
    proof = Proof(frozen, json.loads(json.dumps(first.before)))
    assert list(proof.before) == list(frozen.division.layers)
    assert list(proof.before.values()) == list(first.before.values())
