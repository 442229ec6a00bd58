import contextlib
import logging

import numpy as np
import pytest
import tensorflow as tf

from tfbp.caching import features, row_file
from tfbp.caching.features import Features
from tfbp.errors import UserError

COUNT = 150  # three blocks of 64, the last of 22
SPECS = (
    tf.TensorSpec((3, 2), tf.float32),
    tf.TensorSpec((), tf.int64),
    tf.TensorSpec((5,), tf.bool),
    tf.TensorSpec((2,), tf.bfloat16),
    tf.TensorSpec((1, 3), tf.float16),
    tf.TensorSpec((3,), tf.uint8),
    tf.TensorSpec((2,), tf.int32),
    tf.TensorSpec((1,), tf.float64),
    tf.TensorSpec((4,), tf.int8),
)


def arrays(count=COUNT, specs=SPECS, scale=1.0):
    generator = np.random.default_rng(0)
    return [
        (generator.normal(size=(count, *spec.shape)) * 50 * scale).astype(spec.dtype.as_numpy_dtype)
        for spec in specs
    ]


def opened(folder, key="key", count=COUNT, specs=SPECS, limit_gb=1.0, half=False):
    return contextlib.closing(
        Features(folder, key, count, specs, limit_gb=limit_gb, half=half),
    )


def rows_of(values):
    return lambda indices: [each[indices] for each in values]


class Counted:
    """Looks features up, and remembers which."""

    def __init__(self, values):
        self.values, self.indices = values, []

    def __call__(self, indices):
        self.indices += indices.tolist()
        return [each[indices] for each in self.values]


def refused(indices):
    raise AssertionError(f"the features of {indices} were computed again")


def test_tensors_of_every_dtype_come_back_as_they_were_in_a_graph(tmp_path):
    values = arrays()
    indices = np.array([149, 3, 3, 4, 5, 0])
    with opened(tmp_path) as found:
        assert found.row_bytes == features.row_bytes(SPECS) == 24 + 8 + 5 + 4 + 6 + 3 + 8 + 8 + 4
        found.fill(rows_of(values))
        assert (found.filled, found.fits) == (COUNT, COUNT)
        read = tf.function(found.read, input_signature=[tf.TensorSpec([None], tf.int32)])
        for tensor, spec, expected in zip(read(indices), SPECS, values, strict=True):
            assert tensor.dtype == spec.dtype
            assert np.array_equal(tensor.numpy(), expected[indices])
        assert [tensor.shape[0] for tensor in found.read(np.zeros(0, np.int64))] == [0] * len(SPECS)


def test_a_dataset_reads_features_in_parallel_with_known_shapes(tmp_path):
    values = arrays()
    order = np.random.default_rng(1).integers(0, COUNT, 40 * 32)
    with opened(tmp_path) as found:
        found.fill(rows_of(values))
        batches = tf.data.Dataset.from_tensor_slices(order).batch(32, drop_remainder=True)
        batches = batches.map(lambda indices: tuple(found.read(indices)), num_parallel_calls=4)
        assert batches.element_spec == tuple(
            tf.TensorSpec((32, *spec.shape), spec.dtype) for spec in SPECS
        )
        for number, batch in enumerate(batches):
            chosen = order[number * 32 : number * 32 + 32]
            for tensor, expected in zip(batch, values, strict=True):
                assert np.array_equal(tensor.numpy(), expected[chosen])
    assert number == 39


def test_a_later_run_reads_what_an_earlier_one_computed(tmp_path):
    values = arrays()
    with opened(tmp_path) as found:
        found.fill(rows_of(values))
    with opened(tmp_path) as found:
        found.fill(refused)
        assert np.array_equal(found.read(np.arange(COUNT))[0], values[0])


@pytest.mark.parametrize("change", [{"key": "other"}, {"count": 149}, {"specs": SPECS[:1]}])
def test_what_another_key_or_other_shapes_left_is_not_read(tmp_path, change):
    specs = change.get("specs", SPECS)
    with opened(tmp_path) as found:
        found.fill(rows_of(arrays()))
    stale, fresh = arrays(specs=specs), Counted(arrays(specs=specs, scale=0.5))
    assert not np.array_equal(stale[0], fresh.values[0])
    with opened(tmp_path, **change) as found:
        found.fill(fresh)
        assert fresh.indices == list(range(found.count))
        assert np.array_equal(found.read(np.arange(found.count))[0], fresh.values[0][: found.count])


def test_a_cache_over_budget_holds_the_first_examples_and_the_rest_later(tmp_path, caplog):
    values = arrays()
    needed = COUNT * features.row_bytes(SPECS)
    with (
        caplog.at_level(logging.WARNING, logger="absl"),
        opened(tmp_path, limit_gb=(needed - 1) / 1e9) as found,
    ):
        assert found.fits == 128  # whole blocks
        found.fill(rows_of(values))
        assert found.filled == 128
        assert np.array_equal(found.read([127, 0])[0], values[0][[127, 0]])
        with pytest.raises(IndexError, match="0 to 127"):
            found.read([127, 128])
        with pytest.raises(tf.errors.OpError, match="0 to 127"):
            tf.function(found.read)(tf.constant([127, 128]))
    assert "can hold 128 of 150 examples" in caplog.records[0].message
    with opened(tmp_path, limit_gb=needed / 1e9) as found:
        rest = Counted(values)
        found.fill(rest)
        assert rest.indices == list(range(128, COUNT))
        assert np.array_equal(found.read(np.arange(COUNT))[0], values[0])


def test_a_stale_key_makes_room_for_a_new_one_but_not_while_it_is_in_use(tmp_path):
    limit_gb = 1.5 * COUNT * features.row_bytes(SPECS) / 1e9
    with opened(tmp_path, "old", limit_gb=limit_gb) as old:
        old.fill(rows_of(arrays()))
        with opened(tmp_path, "new", limit_gb=limit_gb) as new:
            assert new.fits == 64
        assert np.array_equal(old.read(np.arange(COUNT))[0], arrays()[0])
    with opened(tmp_path, "new", limit_gb=limit_gb) as new:
        assert new.fits == COUNT
    assert not (tmp_path / "old").exists()


def test_without_room_nothing_is_cached_and_nothing_fails(tmp_path):
    with opened(tmp_path, limit_gb=0) as found:
        found.fill(refused)
        assert (found.fits, found.filled) == (0, 0)


def test_half_rows_take_half_and_come_back_as_their_float16_values(tmp_path):
    specs = (tf.TensorSpec((7,), tf.float32), tf.TensorSpec((2,), tf.float64))
    values = arrays(specs=specs)
    assert features.row_bytes(specs, half=True) == 7 * 2 + 2 * 2
    with opened(tmp_path, specs=specs) as whole, opened(tmp_path, specs=specs, half=True) as half:
        whole.fill(rows_of(values))
        half.fill(rows_of(values))
        read = half.read(np.arange(COUNT))
        for tensor, spec, expected in zip(read, specs, values, strict=True):
            assert tensor.dtype == spec.dtype
            assert np.array_equal(tensor, expected.astype(np.float16).astype(expected.dtype))
            assert not np.array_equal(tensor, expected)
        assert np.array_equal(whole.read(np.arange(COUNT))[0], values[0])
    size = (tmp_path / "key-half" / row_file.ROWS).stat().st_size
    assert size == COUNT * 18


def test_integers_and_small_floats_are_whole_in_half_rows(tmp_path):
    specs = SPECS[1:7] + SPECS[8:]
    values = arrays(specs=specs)
    with opened(tmp_path, specs=specs, half=True) as found:
        assert found.row_bytes == features.row_bytes(specs)
        found.fill(rows_of(values))
        for tensor, expected in zip(found.read(np.arange(COUNT)), values, strict=True):
            assert np.array_equal(tensor.numpy(), expected)


def test_half_rows_hold_what_is_too_large_for_float16_at_its_largest_and_say_so(tmp_path, caplog):
    value = np.array([[1e5, -1e30, np.inf, np.nan, 65504, 65519]], np.float32)
    specs = (tf.TensorSpec((6,), tf.float32),)
    with (
        caplog.at_level(logging.WARNING, logger="absl"),
        opened(tmp_path, count=1, specs=specs, half=True) as found,
    ):
        found.fill(rows_of([value]))
        (read,) = found.read([0])
    expected = [[65504, -65504, np.inf, np.nan, 65504, 65504]]
    assert np.array_equal(read, np.array(expected, np.float32), equal_nan=True)
    assert "2 features" in caplog.text


def test_progress_counts_examples(tmp_path):
    seen = []
    with opened(tmp_path) as found:
        found.fill(rows_of(arrays()), lambda done, of: seen.append((done, of)))
    assert seen == [(64, 150), (128, 150), (150, 150)]


@pytest.mark.parametrize(
    "spec", [tf.TensorSpec((None, 3), tf.float32), tf.TensorSpec((), tf.string)]
)
def test_features_of_no_fixed_size_are_refused(tmp_path, spec):
    with pytest.raises(UserError, match="`specs` must each be of a fixed shape"):
        Features(tmp_path, "key", 1, [spec], limit_gb=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "computed",
    [
        [np.zeros((1, 3, 2))],  # float64
        [np.zeros((1, 2, 3), np.float32)],
        [np.zeros((2, 3, 2), np.float32)],
        [],
    ],
)
def test_what_is_computed_must_be_as_the_specs_say(tmp_path, computed):
    with opened(tmp_path, count=1, specs=SPECS[:1]) as found, pytest.raises(ValueError):
        found.fill(lambda indices: computed)


def test_tensors_may_be_computed_too(tmp_path):
    with opened(tmp_path, count=2, specs=SPECS[:1]) as found:
        found.fill(lambda indices: [tf.reshape(tf.range(12.0), (2, 3, 2))])
        assert np.array_equal(found.read([1])[0], np.arange(6, 12).reshape(1, 3, 2))


def test_a_folder_that_cannot_be_written_is_a_mistake_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        Features(tmp_path / "file", "key", 1, SPECS, limit_gb=1)
