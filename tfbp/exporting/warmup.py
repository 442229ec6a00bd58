"""The requests by which a server tries a version before it serves it.

`assets.extra/tf_serving_warmup_requests` is TensorFlow Serving's own file: a TFRecord of
`PredictionLog` messages. A bad record fails the whole load there, so an export is not published
before a fresh process has answered each.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf
from google.protobuf import empty_pb2, unknown_fields
from tensorflow.core.framework import tensor_pb2

from tfbp.exporting import layout

# Fields of tensorflow_serving/apis: PredictionLog.predict_log, PredictLog.request, those of
# PredictRequest and ModelSpec, and the key and value of a map. All are length-delimited. The
# package with the messages themselves is not needed to export.
_PREDICT_LOG, _REQUEST = 6, 1
_MODEL_SPEC, _INPUTS = 1, 2
_NAME, _SIGNATURE = 1, 3
_KEY, _VALUE = 1, 2


def write(
    folder: str | os.PathLike, model: str, requests: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Writes the warm-up requests of a SavedModel.

    Args:
        folder: of the SavedModel; it gets an `assets.extra/`.
        model: what a server calls the model.
        requests: signature → input → array.
    """
    path = pathlib.Path(folder) / layout.WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for signature, request in requests.items():
            spec = _field(_NAME, model.encode()) + _field(_SIGNATURE, signature.encode())
            message = _field(_MODEL_SPEC, spec)
            for name, value in request.items():
                tensor = tf.make_tensor_proto(value).SerializeToString()
                entry = _field(_KEY, name.encode()) + _field(_VALUE, tensor)
                message += _field(_INPUTS, entry)
            file.write(_field(_PREDICT_LOG, _field(_REQUEST, message)))


def read(folder: str | os.PathLike) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields the warm-up requests of a SavedModel: a signature, and input → array."""
    file = pathlib.Path(folder) / layout.WARMUP
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        ((_, log),) = _fields(record)
        ((_, request),) = _fields(log)
        signature, inputs = "", {}
        for number, content in _fields(request):
            entry = dict(_fields(content))
            if number == _MODEL_SPEC:
                signature = entry[_SIGNATURE].decode()
            else:
                tensor = tensor_pb2.TensorProto.FromString(entry[_VALUE])
                inputs[entry[_KEY].decode()] = tf.make_ndarray(tensor)
        yield signature, inputs


def _field(number: int, content: bytes) -> bytes:
    """Returns a length-delimited field of a message in protobuf's wire format."""
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size % 128 + 128])
        size //= 128
    return bytes([number * 8 + 2]) + length + bytes([size]) + content


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """Returns the numbers and contents of a message's fields."""
    fields = unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(message))
    return [(field.field_number, field.data) for field in fields]
