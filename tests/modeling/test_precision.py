import keras
import ml_dtypes
import numpy as np
import pytest

from tfbp.modeling import precision


@pytest.mark.parametrize(
    ("policy", "format"),
    [("mixed_bfloat16", ml_dtypes.bfloat16), ("mixed_float16", np.float16)],
)
def test_one_layer_in_half_precision_decides(policy, format):
    layers = [keras.layers.Dense(2), keras.layers.Dense(2, dtype=policy), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), keras.Sequential(layers)])
    assert precision.tolerance(model, 1e-5) == 8 * float(ml_dtypes.finfo(format).eps)


def test_in_full_precision_it_is_what_the_caller_allows():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert precision.tolerance(model, 1e-5) == 1e-5
