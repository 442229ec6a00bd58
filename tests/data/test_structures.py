import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError

IDS = np.arange(60 * 4).reshape(60, 4) % 11
AGES = np.linspace(0, 1, 60)
LABELS = np.arange(60) % 3


def inputs():
    return {"ids": IDS, "age": AGES, "about": [f"row {row}" for row in range(60)]}


def test_a_dict_of_arrays_is_read_as_a_dict_each_leaf_of_its_own_type():
    examples = Examples.from_arrays(inputs(), LABELS)
    assert examples.spec == (
        {
            "ids": tf.TensorSpec((4,), tf.int32),
            "age": tf.TensorSpec((), tf.float32),
            "about": tf.TensorSpec((), tf.string),
        },
        tf.TensorSpec((), tf.int64),
    )
    x, y = tf.function(examples.read)(tf.constant([7, 2]))
    assert np.array_equal(x["ids"], IDS[[7, 2]])
    assert np.allclose(x["age"], AGES[[7, 2]])
    assert x["about"].numpy().tolist() == [b"row 7", b"row 2"]
    assert y.numpy().tolist() == LABELS[[7, 2]].tolist()


def test_tuples_nest_and_a_tuple_of_numbers_is_an_array():
    x = (IDS, {"mask": IDS > 3, "image": np.zeros((60, 2, 2, 1), np.uint8)})
    spec = Examples.from_arrays(x, LABELS).spec[0]
    assert spec[0].dtype == tf.int32
    assert spec[1]["mask"].dtype == tf.bool
    assert spec[1]["image"].dtype == tf.float32
    assert Examples.from_arrays(((1.0, 2.0), (3.0, 4.0)), (0.5, 0.5)).spec[0].shape == (2,)


def test_text_alone_is_x_too():
    examples = Examples.from_arrays(np.array(["no", "yes", "façade"]), [0, 1, 1])
    assert examples.spec[0] == tf.TensorSpec((), tf.string)
    assert examples.read([2])[0].numpy().tolist() == ["façade".encode()]


def test_contents_of_every_leaf_and_their_names_make_the_identity():
    def changed(**leaves):
        return Examples.from_arrays({"ids": IDS, "age": AGES} | leaves, LABELS)

    one = changed()
    other_ids = IDS.copy()
    other_ids[5, 2] += 1
    names = Examples.from_arrays({"ids": IDS, "old": AGES}, LABELS)
    pair = Examples.from_arrays((IDS, AGES), LABELS)
    variants = [one, changed(ids=other_ids), changed(age=AGES + 1), names, pair]
    assert len({each.fingerprint for each in variants}) == len(variants)
    assert np.flatnonzero(one.hashes != variants[1].hashes).tolist() == [5]
    turned = Examples.from_arrays({"age": AGES, "ids": IDS}, LABELS)
    assert turned.fingerprint == one.fingerprint


def test_equal_rows_of_a_structure_stay_together_when_it_is_cut():
    ids = np.repeat(IDS[:20], 3, axis=0)
    text = np.repeat([f"text {row}" for row in range(20)], 3)
    splits = Splits.from_arrays({"ids": ids, "text": text}, np.arange(60) // 3 % 2)
    held = [set(part.hashes.tolist()) for part in splits.parts().values()]
    assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]
    assert sum(map(len, held)) == 20


def test_outputs_are_labels_and_values_each_with_classes_of_its_own():
    kinds, sizes = np.array(["cat", "dog", "eel"])[LABELS], AGES
    splits = Splits.from_arrays(IDS, {"kind": kinds, "size": sizes, "colour": LABELS})
    assert splits.classes == {"kind": ("cat", "dog", "eel"), "colour": ("0", "1", "2")}
    spec = splits.train.spec[1]
    assert spec["kind"] == tf.TensorSpec((), tf.int64)
    assert spec["size"] == tf.TensorSpec((1,), tf.float32)
    assert splits.train.labels is None
    named = Splits.from_arrays(IDS, {"kind": kinds}, classes={"kind": ["eel", "dog", "cat"]})
    assert named.classes == {"kind": ("eel", "dog", "cat")}


def test_splits_are_cut_by_class_where_one_output_has_labels():
    y = {"kind": LABELS, "size": AGES}
    both, alone = Splits.from_arrays(IDS * 1.5, y), Splits.from_arrays(IDS * 1.5, LABELS)
    for one, other in zip(both.parts().values(), alone.parts().values(), strict=True):
        assert np.array_equal(one.hashes, other.hashes)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ({"a": IDS, "b": AGES[:9]}, LABELS, r'`x\["b"\]` .* 60 rows of `x\["a"\]`. Received: 9'),
        ({"a": IDS}, LABELS[:7], r'`y` .* 60 rows of `x\["a"\]`. Received: 7'),
        (IDS, {"k": LABELS, "s": AGES[:7]}, r'`y\["s"\]` .* 60 rows of `x`. Received: 7'),
        ({"a": IDS, "b": (AGES * np.nan, AGES)}, LABELS, r'`x\["b"\]\[0\]` must be finite'),
        ({"a": ["a", None] * 30}, LABELS, r'`x\["a"\]` .* missing in row 1. Received: None'),
        ({"a": ["a", "\ud800"] * 30}, LABELS, r'`x\["a"\]` .* UTF-8 can hold \(row 1\)'),
        ({}, LABELS, "at least one array"),
        ({3: IDS}, LABELS, "names for its keys. Received: 3"),
        ({"a": IDS}, {"k": LABELS * 2}, r'`y\["k"\]` must hold the labels 0, 1'),
    ],
)
def test_a_leaf_that_is_wrong_is_named(x, y, message):
    with pytest.raises(UserError, match=message):
        Splits.from_arrays(x, y)


def test_classes_of_what_is_no_output_are_refused():
    with pytest.raises(UserError, match=r"Received: 'kinds'\. Did you mean 'kind'"):
        Splits.from_arrays(IDS, {"kind": LABELS}, classes={"kinds": ["a", "b", "c"]})
    with pytest.raises(UserError, match="`columns` must be left out"):
        Splits.from_arrays({"a": IDS}, LABELS, columns=["a"])


@pytest.mark.parametrize("batch", [None, 16])
def test_a_dataset_of_dicts_is_read_like_its_arrays(batch):
    x, weights = inputs(), np.linspace(0.5, 1.5, 60)
    dataset = tf.data.Dataset.from_tensor_slices((x, LABELS, weights))
    splits = Splits.from_dataset(dataset if batch is None else dataset.batch(batch))
    expected = Splits.from_arrays(x, LABELS, weights=weights)
    assert splits.train.fingerprint == expected.train.fingerprint
    pairs = tf.data.Dataset.from_tensor_slices(((IDS, AGES), LABELS))
    assert len(Splits.from_dataset(pairs).train.spec[0]) == 2


def test_augmentation_takes_and_returns_the_structure():
    def noise(x, seed):
        return x | {"age": x["age"] + tf.random.stateless_uniform([], seed)}

    examples = Examples.from_arrays(inputs(), LABELS).augmented(noise)
    x, _ = examples.read_augmented([3, 8], 0, 0)
    assert np.array_equal(x["ids"], IDS[[3, 8]])
    assert x["about"].numpy().tolist() == [b"row 3", b"row 8"]
    assert (x["age"].numpy() > AGES[[3, 8]]).all()


def test_a_single_array_has_the_fingerprint_that_it_always_had():
    # Measured before there were structures: checkpoints and caches go by it.
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    examples = Examples.from_arrays(x, [0, 1, 0, 1, 0, 1])
    expected = "cc268d0dbe1082408037b3b95730b9eb243293acb7bb34216d0d211193a0defc"
    assert examples.fingerprint == expected
