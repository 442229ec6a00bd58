import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfbp.exporting import parity


def own(*answers, eager=None):
    compiled = [{"score": {"y": value}} for value in answers]
    return parity.Reference(compiled, compiled if eager is None else eager, rounding=0.0)


def check(answered, expected):
    answer = {"score": {"y": answered}}
    with parity.answered_by(lambda folder, requests: [answer]):
        return parity.check("export", [{}], own(expected))


def test_each_request_is_compared_and_the_largest_difference_is_returned():
    one, other = np.float32([1.0]), np.float32([1.000002])
    answers = [{"score": {"y": value}} for value in (one, other, one)]
    with parity.answered_by(lambda folder, requests: answers):
        proof = parity.check("export", [{}] * 3, own(one, one, one))
    assert proof["difference"] == pytest.approx(2e-6, rel=0.1)
    wrong = [*answers[:2], {"score": {"y": np.float32([2.0])}}]
    with (
        parity.answered_by(lambda folder, requests: wrong),
        pytest.raises(parity.ParityError, match="differs by 1"),
    ):
        parity.check("export", [{}] * 3, own(one, one, one))


def test_floats_may_differ_by_a_share_of_the_largest_magnitude():
    expected = np.float32([0.0, 1.0, -100.0])
    proof = check(expected + np.float32([5e-4, 0, 0]), expected)
    assert proof["signatures"] == {"score": {"y": pytest.approx(5e-6)}}
    with pytest.raises(parity.ParityError, match=r"`y` of `score`.*1e-05.*differs by 2e-05"):
        check(expected + np.float32([2e-3, 0, 0]), expected)


def test_zeros_must_be_answered_by_zeros():
    zeros = np.zeros((2, 3), np.float32)
    assert check(zeros, zeros)["difference"] == 0
    with pytest.raises(parity.ParityError, match="differs by 1"):
        check(zeros + 1, zeros)


@pytest.mark.parametrize(
    ("answered", "expected", "message"),
    [
        (np.float32([np.nan]), np.float32([1]), "differs by nan"),
        (np.float32([1]), np.float32([np.nan]), "differs by nan"),
        (np.int32([1, 2, 3]), np.int32([1, 2, 4]), "1 of 3 entries.*3.*for.*4"),
        (np.array([b"cat"], object), np.array([b"dog"], object), "Received: b'cat' for b'dog'"),
        (np.float32([[1]]), np.float32([1]), r"float32 \[1\]. Received: float32 \[1, 1\]"),
        (np.float64([1]), np.float32([1]), r"Received: float64"),
    ],
    ids=["nan answered", "nan expected", "integers", "strings", "shape", "dtype"],
)
def test_answers_that_differ_are_refused(answered, expected, message):
    with pytest.raises(parity.ParityError, match=message):
        check(answered, expected)


def test_where_the_model_itself_decides_otherwise_either_answer_is_right():
    cat, dog, ant = (
        [{"score": {"y": np.array([b"bee", name], object)}}] for name in (b"cat", b"dog", b"ant")
    )
    either = parity.Reference(cat, dog, rounding=1e-6)
    for answers in (cat, dog):
        with parity.answered_by(lambda folder, requests, answers=answers: answers):
            assert parity.check("export", [{}], either)["difference"] == 0
    with (
        parity.answered_by(lambda folder, requests: ant),
        pytest.raises(parity.ParityError, match=r"1 of 2 entries differ\. Received: b'ant'"),
    ):
        parity.check("export", [{}], either)


def test_the_tolerance_is_twice_the_rounding_within_bounds():
    assert [parity.tolerance(each) for each in (0, 2e-5, 4e-4)] == [1e-5, 4e-5, 5e-4]


def test_a_missing_output_is_refused():
    with (
        parity.answered_by(lambda folder, requests: [{"score": {}}]),
        pytest.raises(parity.ParityError, match=r"must answer \['y'\]"),
    ):
        parity.check("export", [{}], own(np.zeros(1)))


values = st.one_of(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0)),
    arrays.arrays(np.int64, arrays.array_shapes(max_dims=2)),
    st.lists(st.binary(max_size=20), min_size=1).map(lambda strings: np.array(strings, object)),
)


@settings(max_examples=50, deadline=None)
@given(value=values)
def test_what_is_exchanged_arrives_to_the_bit(tmp_path_factory, value):
    path = str(tmp_path_factory.mktemp("exchange") / "tensors.npz")
    parity._save(path, [{}, {"score": {"text": value}}])
    first, second = parity._load(path)
    assert first == {}
    arrived = second["score"]["text"]
    assert arrived.dtype == value.dtype
    assert arrived.tolist() == value.tolist() or arrived.tobytes() == value.tobytes()


@pytest.mark.slow
def test_the_fresh_process_has_no_code_of_the_model():
    program = "import sys, tfbp.exporting.parity; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert "tfbp.exporting.warmup" in modules
    code = ("tfbp.data", "tfbp.modeling", "tfbp.tasks.", "recipes")
    assert {name for name in modules if name.startswith(code)} == {"tfbp.tasks.assets"}


def test_a_fresh_process_answers_and_an_export_that_needs_this_one_is_refused(tmp_path):
    x = np.float32([[1, 2, 3]])
    doubled = {
        "right": lambda x: {"y": x + x},
        "by Python": lambda x: {"y": tf.numpy_function(np.add, [x, x], x.dtype)},
    }
    for name, function in doubled.items():
        module, spec = tf.Module(), tf.TensorSpec([1, 3], tf.float32, "x")
        module.call = tf.function(function, input_signature=[spec])
        tf.saved_model.save(module, tmp_path / name, {"score": module.call})
        answer = parity.this_process(tmp_path / name, [{"score": {"x": x}}])
        np.testing.assert_array_equal(answer[0]["score"]["y"], 2 * x)
    answer = parity.fresh_process(tmp_path / "right", [{"score": {"x": x}}])
    np.testing.assert_array_equal(answer[0]["score"]["y"], 2 * x)
    with pytest.raises(parity.ParityError, match=r"cannot use the export:[^$]*pyfunc"):
        parity.fresh_process(tmp_path / "by Python", [{"score": {"x": x}}])
