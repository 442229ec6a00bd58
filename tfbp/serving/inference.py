"""Classify and Regress: requests of `tf.train.Example` messages, and answers by their meaning.

Which signatures can be asked so, and the messages where one cannot, are those of TensorFlow Serving
(servables/tensorflow/classifier.cc, regressor.cc and util.cc).
"""

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from tfbp.serving.batching import Tensors
from tfbp.serving.examples import INPUT
from tfbp.serving.json_tensor import Array
from tfbp.serving.rest_request import DEFAULT
from tfbp.serving.signature import Signature
from tfbp.serving.status import invalid
from tfbp.serving.tensors import dtype_of
from tfbp.serving.version import Version

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_CLASSES, _SCORES, _OUTPUTS = "classes", "scores", "outputs"


def signature(version: Version, name: str, method: str, missing: str) -> Signature:
    """Returns a signature that can be asked to classify or to regress.

    Args:
        version: that has it.
        name: of the signature, "" for the default one.
        method: `CLASSIFY` or `REGRESS`.
        missing: what to say, before the name, where there is none.

    Raises:
        StatusError: there is none of the name, or it takes or returns something else.
    """
    name = name or DEFAULT
    if name not in version.definitions:
        raise invalid(f"{missing}: {name}")
    one = version.signature(name)
    if len(one.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if method == REGRESS:
        if len(one.outputs) != 1:
            raise invalid("Expected one output Tensor.")
        if INPUT not in one.inputs:
            raise invalid(f"No regression inputs found in SignatureDef: {name}")
        if _OUTPUTS not in one.outputs:
            raise invalid(f"No regression outputs found in SignatureDef: {name}")
        return one
    if len(one.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(one.outputs)}")
    if INPUT not in one.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {name}")
    if not {_CLASSES, _SCORES} & one.outputs.keys():
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"{_CLASSES}" or "{_SCORES}". Signature was: {name}'
        )
    return one


def classes(outputs: Tensors, count: int) -> tuple[Array, Array]:
    """Returns the labels and the scores, [count, classes], that a signature has answered.

    Labels that it does not return are "", scores 0.

    Raises:
        StatusError: it has answered something else.
    """
    shapes = []
    for name, dtype in ((_CLASSES, tf.string), (_SCORES, tf.float32)):
        if name not in outputs:
            continue
        value = outputs[name]
        if value.ndim != 2:
            raise invalid(
                f"Expected Tensor shape: [batch_size num_classes] but got {_shape(value)}"
            )
        if dtype_of(value) != dtype:
            raise invalid(
                f"Expected {name} Tensor of {_type_name(dtype)}. Got: {_type_name(dtype_of(value))}"
            )
        if len(value) != count:
            raise invalid(f"Expected {name} output batch size of {count}. Got: {len(value)}")
        shapes.append(value.shape)
    if len(set(shapes)) > 1:
        raise invalid(
            "Tensors class and score should match in dim_size(1). "
            f"Got {shapes[0][1]} vs. {shapes[1][1]}"
        )
    labels, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    if labels is None:
        labels = np.full(shapes[0], b"", object)
    return labels, np.zeros(shapes[0], np.float32) if scores is None else scores


def regressions(outputs: Tensors, count: int) -> Array:
    """Returns the values, [count] or [count, 1], that a signature has answered.

    Raises:
        StatusError: it has answered something else.
    """
    value = outputs[_OUTPUTS]
    if value.ndim != 1 and value.shape[1:] != (1,):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(value)}"
        )
    if len(value) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(value)}")
    if value.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_type_name(dtype_of(value))}")
    return value


def _type_name(dtype: tf.DType) -> str:
    return types_pb2.DataType.Name(dtype.as_datatype_enum)


def _shape(value: Array) -> str:
    return f"[{','.join(map(str, value.shape))}]"
