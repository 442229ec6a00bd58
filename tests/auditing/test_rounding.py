import keras
import numpy as np
import pytest

import tfbp
from tfbp.auditing import rounding

STAMPS = 1_650_000_000 + 15 * np.arange(120)
PHASES = [tfbp.Phase("fit", ".*", epochs=1, learning_rate=1e-3)]


def found(x, dtype="float32"):
    splits = tfbp.Splits.from_arrays(x, np.arange(120) // 30 % 2)
    inputs = keras.Input((1,), dtype=dtype, name="stamp")
    values = keras.layers.Rescaling(1e-9)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="o")(values))
    return tfbp.audit(model, splits, tfbp.Classification(splits.classes), PHASES)


def test_whole_numbers_that_the_input_rounds_are_an_error_that_names_one():
    (finding,) = [each for each in found(STAMPS) if each.id == "rounded-input"]
    assert not finding.warning
    assert "`stamp` takes float32, which rounds" in finding.message
    assert "`keras.Input(…, dtype='int32')`" in finding.message
    value, rounded = (
        int(finding.message.split(mark)[1].split(" ")[0].rstrip("."))
        for mark in (" training examples: ", " becomes ")
    )
    assert value in STAMPS and rounded == int(np.float32(value)) != value


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (STAMPS, "int32"),
        (STAMPS + 10**11, "int64"),
        (STAMPS - STAMPS.min(), "float32"),
    ],
)
def test_numbers_that_reach_the_model_whole_pass(x, dtype):
    ids = [finding.id for finding in found(x, dtype)]
    assert not {"rounded-input", "duplicates", "split-overlap"} & {*ids}


def test_rows_that_differ_beyond_float32_are_not_called_copies():
    ids = [finding.id for finding in found(STAMPS)]
    assert "duplicates" not in ids and "split-overlap" not in ids


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("largest", "dtype"), [(2**31, "int32"), (-(2**40), "int32"), (200, "int8")]
)
def test_whole_numbers_beyond_the_range_of_the_input_are_an_error(named, largest, dtype):
    ids = np.arange(120)
    ids[7] = largest
    inputs = keras.Input((1,), dtype=dtype, name="user")
    outputs = keras.layers.Dense(2)(keras.layers.Rescaling(1e-3)(inputs))
    model = keras.Model([inputs], outputs)
    for last, count in ((largest, 1), (100, 0)):
        ids[7] = last
        x = {"user": ids[:, np.newaxis]} if named else ids
        splits = tfbp.Splits(tfbp.Examples.from_arrays(x, np.arange(120) % 2))
        found = list(rounding.findings(model, splits))
        assert len(found) == count
        for finding in found:
            assert f"`user` takes {dtype}, which cannot hold the whole numbers" in finding.message
            assert f"1 of the 120 training examples: {largest}" in finding.message
