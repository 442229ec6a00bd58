import json

import keras
import numpy as np
import pytest

from tfbp.data.examples import Examples
from tfbp.exporting import parity, versions
from tfbp.tasks.classification import Classification


def classifier():
    """Returns a model that computes in bfloat16, but for its logits."""
    layers, policy = keras.layers, "mixed_bfloat16"
    x = inputs = keras.Input((6, 6, 3))
    for layer in (
        layers.Conv2D(4, 3, activation="relu", dtype=policy),
        layers.BatchNormalization(dtype=policy),
        layers.Flatten(),
        layers.Dense(3, dtype="float32"),
    ):
        x = layer(x)
    return keras.Model(inputs, x)


def test_a_model_in_half_precision_is_exported(tmp_path, in_process_parity):
    x = np.random.default_rng(0).integers(0, 256, (9, 6, 6, 3), dtype=np.uint8)
    examples = Examples.from_arrays(x, np.arange(9) % 3)
    task = Classification(("ant", "bee", "cat"))
    path, proof = versions.export(classifier(), task, examples, tmp_path, details={})
    assert proof["difference"] <= proof["tolerance"] == 8 * 2**-7
    details = json.loads((path / "assets.extra" / "tfbp.json").read_text())
    assert details["parity"]["tolerance"] == proof["tolerance"]


def check(answered, expected, tolerance):
    answer, due = {"score": {"y": answered}}, {"score": {"y": expected}}
    with parity.answered_by(lambda folder, requests: [answer]):
        own = parity.Reference([due], [due], rounding=0.0)
        return parity.check("export", [{}], own, tolerance)


def test_what_turns_on_rounded_floats_is_compared_by_type_and_shape_only():
    one, other = np.array([b"cat", b"dog"], object), np.array([b"cat", b"cat"], object)
    assert check(one, other, 1e-2)["difference"] == 0
    with pytest.raises(parity.ParityError, match="1 of 2 entries differ"):
        check(one, other, 5e-4)
    with pytest.raises(parity.ParityError, match="must answer `y`"):
        check(one, other[:1], 1e-2)
    with pytest.raises(parity.ParityError, match=r"differs by 0\.02"):
        check(np.float32([1.02]), np.float32([1]), 1e-2)
