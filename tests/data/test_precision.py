import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.data import precision
from tfbp.data.splits import Splits
from tfbp.errors import UserError

SECONDS = 1_650_000_000 + 15 * np.arange(120)  # a reading every 15 seconds


def sizes(splits):
    return {name: part.size for name, part in splits.parts().items()}


def contents(splits):
    return len(set(np.concatenate([part.hashes for part in splits.parts().values()])))


@pytest.mark.parametrize(("start", "dtype"), [(0, np.int32), (10**10, np.int64)])
def test_whole_numbers_beyond_float32_stay_what_they_are(start, dtype):
    stamps = SECONDS + start
    splits = Splits.from_arrays(stamps, np.arange(120) % 2)
    assert sizes(splits) == {"train": 96, "validation": 12, "test": 12}
    assert contents(splits) == 120
    x, _ = splits.train.read(np.arange(96))
    assert x.dtype == dtype == splits.train.spec[0].dtype.as_numpy_dtype
    every = np.concatenate([part.read(np.arange(part.size))[0] for part in splits.parts().values()])
    assert sorted(every[:, 0].tolist()) == stamps.tolist()


def test_whole_numbers_that_float32_holds_are_float32_as_ever():
    x, y = np.arange(40) * 2**10, np.arange(40) % 2
    splits = Splits.from_arrays(x, y, validation=0, test=0)
    assert splits.train.spec[0].dtype.name == "float32"
    float_hashes = Splits.from_arrays(x.astype(np.float32), y, validation=0, test=0).train.hashes
    assert np.array_equal(splits.train.hashes, float_hashes)


def test_numbers_too_large_for_int64_are_refused():
    x = np.array([2**63 + 1, 5, 7, 9], np.uint64)
    with pytest.raises(UserError, match=r"int64 holds, below 2\^63. Received: 9223372036854775809"):
        Splits.from_arrays(x, [0, 1, 0, 1])
    with pytest.raises(UserError, match="whole numbers that int64 holds"):
        Splits.from_arrays(np.array([2**70, 5, 7, 9], object), [0, 1, 0, 1])


def test_a_column_of_floats_that_would_fall_together_is_named():
    x = np.stack([np.linspace(-1, 1, 120), SECONDS + 0.5], axis=1)
    message = r"`x` must differ .* is 128 at the size of column 'time': its 120 different values"
    with pytest.raises(UserError, match=message) as error:
        Splits.from_arrays(x, np.arange(120) % 2, columns=["height", "time"])
    expected = len(np.unique((SECONDS + 0.5).astype(np.float32)))
    assert f"would become {expected}" in str(error.value)
    assert contents(Splits.from_arrays(x - x.min(axis=0), np.arange(120) % 2)) == 120


def test_values_to_predict_that_would_fall_together_are_refused():
    with pytest.raises(UserError, match="`y` must differ by what float32 can tell apart"):
        Splits.from_arrays(np.arange(120.0), SECONDS + 0.5)


def test_numbers_beyond_the_range_of_float32_are_not_called_infinite():
    x = np.array([[1.0], [1e39], [3.0], [4.0]])
    with pytest.raises(UserError, match=r"range of float32 \(row 1\). Received: .*1e\+39"):
        Splits.from_arrays(x, [0, 1, 0, 1])


def test_ordinary_floats_pass_and_are_told_apart_as_they_were_given():
    x = np.random.default_rng(0).uniform(size=(500, 3))
    splits = Splits.from_arrays(x, np.arange(500) % 2, validation=0, test=0)
    got, _ = splits.train.read(np.arange(500))
    assert np.array_equal(got, x.astype(np.float32))
    close = np.repeat(x[:1], 2, axis=0)
    close[1, 0] = np.nextafter(close[1, 0], 2)  # equal as float32
    first, second = precision.content_hashes(close)
    assert first != second


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=8, unique=True))
@settings(max_examples=200, deadline=None)
def test_different_whole_numbers_have_different_identities(numbers):
    rows = np.array(numbers, np.int64)[:, None]
    assert len(set(precision.content_hashes(rows))) == len(numbers)
    narrowed = precision.narrow("x", rows)
    assert [int(value) for value in narrowed[:, 0]] == numbers


@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda x: x + 0.0),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=200, deadline=None)
def test_equal_numbers_of_different_types_have_one_identity(numbers):
    rows = np.array(numbers, np.float64)[None]
    (given_wide,) = precision.content_hashes(rows)
    (given_narrow,) = precision.content_hashes(rows.astype(np.float32))
    assert given_wide == given_narrow
