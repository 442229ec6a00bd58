"""One signature of a loaded SavedModel: what it takes, and the call that answers it."""

import contextlib
import os
from collections.abc import Mapping
from concurrent.futures import Future

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from tfbp.serving import images
from tfbp.serving.batching import Batcher, Tensors
from tfbp.serving.limits import Limits
from tfbp.serving.status import Code, StatusError, invalid

# TensorFlow Serving's own mark of binary strings, in the name of an input or of a signature.
BINARY = "_bytes"
# Signature and input of tfbp's exports that answer what is no image with an empty row.
IMAGES = "image_bytes"
# Of the two pools of threads that a session has, by their indices, that for joined requests and
# that for requests that are one call each, which may take all of its threads for long.
_JOINED, _ALONE = 0, 1


class Signature:
    """A signature whose tensors are numpy arrays; strings are arrays of bytes objects.

    Requests are joined to batches where every input and output has an open first dimension. As in
    TensorFlow Serving, that takes such a signature to answer each row by itself.

    Attributes:
        name: as clients ask for it.
        inputs: name → `tf.TensorSpec`.
        outputs: name → `tf.TensorSpec`.
    """

    def __init__(
        self,
        name: str,
        definition: tf.compat.v1.MetaGraphDef.SignatureDefEntry,
        session: tf.compat.v1.Session,
        limits: Limits,
    ):
        self.name = name
        self.inputs = _specs(definition.inputs)
        self.outputs = _specs(definition.outputs)
        self._limits = limits
        self._session = session
        self._feed = [definition.inputs[key].name for key in self.inputs]
        self._fetch = [definition.outputs[key].name for key in self.outputs]
        # `Session.run` took 0.41 ms for a call that takes 0.06 ms like this (2 cores).
        self._call = session._make_callable_from_options(
            config_pb2.CallableOptions(
                feed=self._feed, fetch=self._fetch, run_options=_options(limits.deadline_seconds)
            )
        )
        specs = (*self.inputs.values(), *self.outputs.values())
        self._joined = all(map(batched, specs))
        threads = 1 if self._joined else os.cpu_count() or 1
        self._batcher = Batcher(self.run, self._joined, limits, threads)

    def run(self, inputs: Tensors, seconds: float) -> dict[str, np.ndarray]:
        """Returns the outputs for inputs that have been checked, by one call of the graph.

        A call that answers one request ends after `seconds`, so that it holds its thread no longer
        than somebody waits. One for a batch has the limits' deadline, which is fixed and faster.
        """
        fed = [inputs[name] for name in self.inputs]
        if self._joined:
            values = self._call(*fed)
        else:
            feed = dict(zip(self._feed, fed, strict=True))
            values = self._session.run(self._fetch, feed, options=_options(seconds, _ALONE))
        return dict(zip(self.outputs, values, strict=True))

    def warm_up(self, inputs: Tensors) -> None:
        """Answers once, however long that takes: the first call takes longer than all others.

        Raises:
            StatusError: the inputs are not what the signature takes (INVALID_ARGUMENT).
            tf.errors.OpError: the graph fails.
        """
        self._check_names(inputs)
        for name, value in inputs.items():
            self._check(name, value)
        feed = {place: inputs[name] for place, name in zip(self._feed, self.inputs, strict=True)}
        self._session.run(self._fetch, feed)
        # What requests call is another executor of the graph. It has their deadline.
        with contextlib.suppress(tf.errors.DeadlineExceededError):
            self.run(inputs, self._limits.deadline_seconds)

    def submit(self, inputs: Tensors, seconds: float | None = None) -> Future:
        """Returns the future outputs for inputs, which are checked first.

        Args:
            inputs: name → array.
            seconds: how long the answer is of use, at most and by default the limits' deadline.

        Raises:
            StatusError: names, types, shapes, rows or images are not what the signature takes
                (INVALID_ARGUMENT), or too many requests wait already (RESOURCE_EXHAUSTED).
        """
        self._check_names(inputs)
        for name, value in inputs.items():
            self._check(name, value)
        inputs = {name: self._small(name, value) for name, value in inputs.items()}
        counts = {len(value) for name, value in inputs.items() if batched(self.inputs[name])}
        rows = max(counts, default=0)
        check_rows(rows, self._limits)
        if counts and not rows:  # Many a graph fails at it.
            raise invalid("The request has no rows")
        if self._joined and len(counts) > 1:
            raise invalid(
                "Batching input tensors supplied in a given call must have equal 0th-dimension "
                f"sizes. Received: {sorted(counts)}"
            )
        return self._batcher.submit(inputs, rows, seconds)

    def close(self) -> None:
        """Ends the threads once what is queued has been answered."""
        self._batcher.close()

    def _check_names(self, inputs: Tensors) -> None:
        if inputs.keys() == self.inputs.keys():
            return
        sent, due = sorted(inputs), sorted(self.inputs)
        extra = sorted(inputs.keys() - self.inputs.keys())
        missing = sorted(self.inputs.keys() - inputs.keys())
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(due)} "
            f"len({{{','.join(sent)}}}) != len({{{','.join(due)}}}). "
            f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
        )

    def _check(self, name: str, value: np.ndarray) -> None:
        """Refuses an input of another type or shape."""
        spec = self.inputs[name]
        received = tf.string if value.dtype == object else tf.as_dtype(value.dtype)
        if received != spec.dtype:
            raise invalid(
                f"Input {name} is expected to be {spec.dtype.name}. Received: {received.name}"
            )
        if not spec.shape.is_compatible_with(value.shape):
            shape = [-1 if size is None else size for size in spec.shape]
            raise invalid(
                f"Input {name} is expected to have shape {shape}, where -1 is any size. "
                f"Received: {list(value.shape)}"
            )

    def _small(self, name: str, value: np.ndarray) -> np.ndarray:
        """Returns an input, without the images that are too large where the graph allows it."""
        binary = name.endswith(BINARY) or self.name.endswith(BINARY)
        if self.inputs[name].dtype != tf.string or not binary:
            return value
        limit = self._limits.max_image_pixels
        counts = [images.pixels(content) or 0 for content in value.flat]
        if max(counts, default=0) <= limit:
            return value
        if self.name != IMAGES or name != IMAGES:
            raise invalid(f"An image of {max(counts)} pixels is over the limit of {limit}")
        kept = np.empty(len(counts), object)
        kept[:] = [
            content if count <= limit else b""
            for content, count in zip(value.flat, counts, strict=True)
        ]
        return kept.reshape(value.shape)


def _specs(infos: Mapping) -> dict[str, tf.TensorSpec]:
    for key, info in infos.items():
        if info.WhichOneof("encoding") != "name":
            raise StatusError(Code.UNIMPLEMENTED, f"Tensor {key} is not dense")
    return {
        key: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype))
        for key, info in sorted(infos.items())
    }


def _options(seconds: float, pool: int = _JOINED) -> config_pb2.RunOptions:
    return config_pb2.RunOptions(
        timeout_in_ms=max(1, round(seconds * 1000)),  # 0 is for ever
        inter_op_thread_pool=pool,
    )


def session_config() -> tf.compat.v1.ConfigProto:
    """Returns the settings of a session for signatures: with threads of its own.

    All sessions share theirs by default, one for each core: as many calls that take long would
    stop all other models, and the loading of new ones.
    """
    pools = [config_pb2.ThreadPoolOptionProto() for _ in (_JOINED, _ALONE)]
    return tf.compat.v1.ConfigProto(session_inter_op_thread_pool=pools)


def check_rows(count: int, limits: Limits) -> None:
    """Refuses a request of more rows than a batch has.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    if count > limits.max_batch_size:
        raise invalid(
            f"Task size {count} is larger than maximum input batch size {limits.max_batch_size}"
        )


def batched(spec: tf.TensorSpec) -> bool:
    """Returns whether the first dimension is there and may have any size: a batch dimension."""
    return bool(spec.shape.rank) and spec.shape[0] is None
