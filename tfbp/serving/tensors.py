"""TensorProto to numpy array and back, in the fields that TensorFlow Serving fills."""

import math
import time

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from tfbp.serving.json_tensor import Array
from tfbp.serving.status import Code, StatusError, invalid

# A proto of a few bytes can announce a tensor of many: one value stands for all that follow it.
MAX_BYTES = 2**30

_CHUNK = 2**15  # values

# Clients read these fields by their names, so answers do not go into `tensor_content`.
_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int8: "int_val",
    tf.int16: "int_val",
    tf.int32: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.int64: "int64_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
    tf.float16: "half_val",
    tf.bfloat16: "half_val",
}
_LISTS = set(_FIELDS.values())


def of_proto(proto: tensor_pb2.TensorProto, max_bytes: int = MAX_BYTES) -> Array:
    """Returns the array that a proto describes; strings as an object array of bytes.

    Raises:
        StatusError: the proto contradicts itself, or its tensor is larger than `max_bytes`.
    """
    sizes = [dimension.size for dimension in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        raise invalid(f"Tensor proto has no fully defined shape. Received: {sizes}")
    try:
        dtype = tf.as_dtype(proto.dtype)
        width = dtype.size or 8  # of a string its pointer
    except TypeError:
        raise invalid(f"Invalid data type: {proto.dtype}") from None
    if dtype in (tf.resource, tf.variant) or dtype != dtype.base_dtype:  # a reference
        raise invalid(f"A tensor of type {dtype.name} cannot be sent")
    if math.prod(sizes) * width > max_bytes:
        raise invalid(f"A tensor of shape {sizes} is over the limit of {max_bytes} bytes")
    try:
        if dtype in _FIELDS and dtype != tf.string and (content := proto.tensor_content):
            # `tf.make_ndarray` copies it, and takes ten times as long for a small one.
            array = np.frombuffer(content, dtype.as_numpy_dtype).reshape(sizes)
        elif dtype in _FIELDS and is_long(proto):
            array = _long(proto, dtype, sizes)
        else:
            array = tf.make_ndarray(proto)
    except (TypeError, ValueError, IndexError, OverflowError):
        raise invalid(f"Tensor proto does not hold {dtype.name} of shape {sizes}") from None
    if list(array.shape) != sizes:
        raise invalid(f"Tensor proto does not hold {dtype.name} of shape {sizes}")
    return array


def is_long(proto: tensor_pb2.TensorProto) -> bool:
    """Returns whether a proto lists so many values that reading them takes long."""
    return any(len(getattr(proto, field)) > _CHUNK for field in _LISTS)


def _long(proto: tensor_pb2.TensorProto, dtype: tf.DType, sizes: list[int]) -> Array:
    """Returns the array of a proto with a long list of values.

    As one call it would let no other thread run until it ends, which takes seconds.
    """
    values = getattr(proto, _FIELDS[dtype])
    half = dtype in (tf.float16, tf.bfloat16)
    array = np.empty(len(values), np.uint16 if half else dtype.as_numpy_dtype)
    for start in range(0, len(values), _CHUNK):
        array[start : start + _CHUNK] = values[start : start + _CHUNK]
        time.sleep(0)  # Whoever waits goes first, and not only after the 5 ms of the interpreter.
    array = array.view(dtype.as_numpy_dtype) if half else array
    rest = math.prod(sizes) - len(array)  # as many as the last value stands for
    return np.concatenate([array, np.repeat(array[-1:], rest)]).reshape(sizes)


def dtype_of(array: Array) -> tf.DType:
    """Returns TensorFlow's type of an array; of one of objects, string."""
    return tf.string if array.dtype == object else tf.as_dtype(array.dtype)


def to_proto(array: Array) -> tensor_pb2.TensorProto:
    """Returns the proto of an array, its values in the field of their type."""
    proto = tensor_pb2.TensorProto()
    fill(proto, array)
    return proto


def fill(proto: tensor_pb2.TensorProto, array: Array) -> None:
    """Writes an array into an empty proto, its values in the field of their type.

    Raises:
        StatusError: no proto holds the type (UNIMPLEMENTED).
    """
    dtype = dtype_of(array)
    if dtype not in _FIELDS:
        try:
            proto.CopyFrom(tf.make_tensor_proto(array))
        except (TypeError, ValueError):
            raise StatusError(Code.UNIMPLEMENTED, f"Cannot answer {dtype.name}") from None
        return
    proto.dtype = dtype.as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    # The field of halves holds their bits.
    flat = array.view(np.uint16) if dtype in (tf.float16, tf.bfloat16) else array
    values = flat.ravel().tolist()
    if dtype == tf.string:
        values = [value if isinstance(value, bytes) else str(value).encode() for value in values]
    getattr(proto, _FIELDS[dtype]).extend(values)
