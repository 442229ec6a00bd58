import hashlib
import tracemalloc

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tfbp import fingerprint


def test_bytes_are_hashed_by_sha256_each_after_its_length():
    content = b"\x02" + bytes(7) + b"ab" + b"\x01" + bytes(7) + b"c"
    assert fingerprint.of_bytes(b"ab", b"c") == hashlib.sha256(content).hexdigest()


@given(st.lists(st.binary(max_size=3), max_size=4), st.lists(st.binary(max_size=3), max_size=4))
def test_two_lists_of_bytes_have_one_fingerprint_only_if_they_are_equal(one, other):
    assert (fingerprint.of_bytes(*one) == fingerprint.of_bytes(*other)) == (one == other)


def test_arrays_differ_by_content_shape_and_dtype():
    array = np.arange(6, dtype=np.int32)
    changed = array.copy()
    changed[5] = 7
    others = [changed, array.reshape(2, 3), array.reshape(3, 2), array.astype(np.float32)]
    others += [array.view(np.uint32), array[:5], np.int32(0), np.zeros(1, np.int32)]
    assert len({fingerprint.of_array(each) for each in [array, *others]}) == 1 + len(others)


def test_how_an_array_lies_in_memory_does_not_matter():
    array = np.arange(12.0).reshape(3, 4)
    wide = np.zeros((3, 8))
    wide[:, ::2] = array
    for same in (np.asfortranarray(array), wide[:, ::2], array.tolist()):
        assert fingerprint.of_array(same) == fingerprint.of_array(array)


def test_an_array_is_hashed_without_a_copy():
    array = np.ones((1024, 1024), np.float32)
    tracemalloc.start()
    try:
        fingerprint.of_array(array)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < array.nbytes / 100


def test_arrays_in_half_precision_are_hashed():
    array = np.ones((2, 3), ml_dtypes.bfloat16)
    assert fingerprint.of_array(array) != fingerprint.of_array(2 * array)
    head = f"{array.dtype.str}{array.shape}".encode()
    assert fingerprint.of_array(array) == fingerprint.of_bytes(head, array.tobytes())


def test_text_of_any_length_is_hashed_by_its_entries():
    words = ["ant", "bee", "", "hippopotamus"]
    array = np.array([word.encode() for word in words], object)
    assert fingerprint.of_array(array) == fingerprint.of_array(array.copy())
    assert fingerprint.of_array(array) != fingerprint.of_array(array[::-1])
    assert fingerprint.of_array(array) == fingerprint.of_array(np.array(words, object))
    assert fingerprint.of_array(np.array([], object)) != fingerprint.of_array(array[2:3])


def test_the_order_of_keys_does_not_matter_but_values_do():
    one = fingerprint.of_json({"a": 1, "b": {"c": [1, 2], "d": None}})
    assert one == fingerprint.of_json({"b": {"d": None, "c": [1, 2]}, "a": 1})
    assert one != fingerprint.of_json({"a": 1, "b": {"c": [2, 1], "d": None}})


def test_arrays_hashed_at_once_are_told_apart_in_their_order():
    arrays = [np.full(10_000 + i, i) for i in range(20)]
    assert fingerprint.of_arrays(arrays) == [fingerprint.of_array(each) for each in arrays]
