import keras
import numpy as np
import pytest
from sklearn import datasets

import tfbp
from tfbp.auditing import near_copies
from tfbp.data import glyphs

GENERATOR = np.random.default_rng(0)


def bursts(count=40, shots=5, size=24):
    """Returns shots of scenes, a little brighter, noisier or moved: images and their scene."""
    coarse = GENERATOR.uniform(40, 200, (count, 4, 4, 3))
    scenes = coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    x = [
        np.roll(scene, shot % 2, axis=1) + 3 * shot + GENERATOR.normal(0, 4, scene.shape)
        for scene in scenes
        for shot in range(shots)
    ]
    return np.clip(x, 0, 255).astype(np.uint8), np.repeat(np.arange(count), shots)


def readings(count=40, seconds=6, columns=9):
    machines = GENERATOR.normal(size=(count, columns))
    x = machines.repeat(seconds, axis=0) + GENERATOR.normal(0, 1e-3, (count * seconds, columns))
    return x.astype(np.float32), np.repeat(np.arange(count), seconds)


@pytest.mark.parametrize("make", [bursts, readings])
def test_near_copies_across_a_cut_are_found_and_groups_mend_it(make):
    x, group = make()
    labels = group % 2
    found = list(near_copies.findings(tfbp.Splits.from_arrays(x, labels)))
    assert [finding.id for finding in found] == ["near-copies"] * 2
    assert all(finding.warning for finding in found)
    assert "examples of `validation` are nearly the same as examples of `train`" in found[0].message
    assert "say so with `groups`" in found[1].message
    assert list(near_copies.findings(tfbp.Splits.from_arrays(x, labels, groups=group))) == []


def test_the_pairs_that_are_named_belong_together():
    x, group = bursts()
    splits = tfbp.Splits.from_arrays(x, group % 2, validation=0)
    (finding,) = near_copies.findings(splits)
    owner = {image.tobytes(): scene for image, scene in zip(x, group, strict=True)}
    names = {
        part.name(index): owner[part.read([index])[0].numpy()[0].astype(np.uint8).tobytes()]
        for part in splits.parts().values()
        for index in range(part.size)
    }
    listing = finding.message.partition("`train`: ")[2].partition(" and ")[0]
    for pair in listing.split("), "):
        one, other = pair.rstrip(")").split(" (like ")
        assert names[one] == names[other]


def digits():
    bunch = datasets.load_digits()
    return (bunch.images[..., None] * 15.9).astype(np.uint8), bunch.target


def letters():
    return glyphs.render(12, 0)


def cancer():
    return datasets.load_breast_cancer(return_X_y=True)


def wine():
    return datasets.load_wine(return_X_y=True)


def noise():
    return GENERATOR.normal(size=(400, 8)), np.arange(400) % 2


def flat():
    """Returns images of one colour each."""
    colours = GENERATOR.integers(0, 256, (200, 1, 1, 3), np.uint8)
    return np.tile(colours, (1, 16, 16, 1)), np.arange(200) % 2


@pytest.mark.parametrize("make", [digits, letters, cancer, wine, noise, flat])
def test_data_whose_examples_are_their_own_passes(make):
    assert list(near_copies.findings(tfbp.Splits.from_arrays(*make()))) == []


def test_exact_copies_are_left_to_their_own_finding():
    x, _ = noise()
    train, test = (tfbp.Examples.from_arrays(x, np.arange(400) % 2) for _ in range(2))
    assert list(near_copies.findings(tfbp.Splits(train, test=test))) == []


def test_the_audit_reports_them():
    x, group = readings()
    splits = tfbp.Splits.from_arrays(x, group % 2)
    model = keras.Sequential([keras.Input((9,)), keras.layers.Dense(2, name="head")])
    phases = [tfbp.Phase("fit", ".*", epochs=1, learning_rate=1e-3)]
    found = tfbp.audit(model, splits, tfbp.Classification(splits.classes), phases)
    assert [finding.id for finding in found].count("near-copies") == 2
