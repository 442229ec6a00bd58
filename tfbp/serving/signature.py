"""One signature of a loaded SavedModel: what it takes, and the call that answers it."""

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session

from tfbp.serving import images, rest_request, tensors
from tfbp.serving.batching import Batcher, Tensors
from tfbp.serving.json_tensor import Array, name
from tfbp.serving.limits import Limits
from tfbp.serving.status import Code, StatusError, invalid

# TensorFlow Serving's own mark of binary strings, in the name of an input or of a signature.
BINARY = "_bytes"
# Signature and input of tfbp's exports that answer what is no image with an empty row.
IMAGES = "image_bytes"
# Of the two pools of threads that a session has, by their indices, that for joined requests and
# that for requests that are one call each, which may take all of its threads for long.
_JOINED, _ALONE = 0, 1
# The images of a request are decoded some at a time, so many that they have this part of the pixels
# of the largest one.
_TURNS = 4


class Signature:
    """A signature whose tensors are numpy arrays; strings are arrays of bytes objects.

    Requests are joined to batches where every input and output has an open first dimension. As in
    TensorFlow Serving, that takes such a signature to answer each row by itself. Shapes are not
    compared with the signature's: whether one fits, the graph says.

    Attributes:
        name: as clients ask for it.
        inputs: name → `tf.TensorSpec`.
        outputs: name → `tf.TensorSpec`.
        json: what its inputs take, for requests in JSON.
    """

    def __init__(
        self,
        name: str,
        definition: Any,  # a SignatureDef
        session: tf.compat.v1.Session,
        limits: Limits,
        decodes_images: bool,
    ):
        self.name = name
        self._decodes_images = decodes_images
        self.inputs = _specs(definition.inputs)
        self.outputs = _specs(definition.outputs)
        self.json = {
            key: rest_request.Spec(spec.dtype.name, batched(spec))
            for key, spec in self.inputs.items()
        }
        self._defaults = {
            key: tensors.of_proto(proto) for key, proto in definition.defaults.items()
        }
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
        self._joined = bool(self.inputs) and all(map(batched, specs))
        self._batcher = Batcher(self.run, limits, 1 if self._joined else os.cpu_count() or 1)

    def run(self, inputs: Tensors, seconds: float) -> dict[str, Array]:
        """Returns the outputs for inputs that have been checked, by one call of the graph.

        A call that answers one request ends after `seconds`, so that it holds its thread no longer
        than somebody waits. One for a batch has the limits' deadline, which is fixed and faster.
        """
        fed = [inputs[key] for key in self.inputs]
        values = self._call(*fed) if self._joined else self._run(fed, _options(seconds, _ALONE))
        return {
            key: _array(value, spec)
            for value, (key, spec) in zip(values, self.outputs.items(), strict=True)
        }

    def warm_up(self, inputs: Tensors) -> None:
        """Answers once, however long that takes: the first call takes longer than all others.

        Raises:
            StatusError: the inputs are not what the signature takes (INVALID_ARGUMENT).
            tf.errors.OpError: the graph fails.
        """
        inputs = self._checked(inputs)
        self._run([inputs[key] for key in self.inputs], config_pb2.RunOptions())
        # What requests call is another executor of the graph. It has their deadline.
        with contextlib.suppress(tf.errors.DeadlineExceededError):
            self.run(inputs, self._limits.deadline_seconds)

    async def answer(self, inputs: Tensors, seconds: float | None = None) -> Tensors:
        """Returns the outputs for inputs, which are checked first.

        The images of a large request are answered some at a time: so others come in between.

        Args:
            inputs: name → array. One that is missing has the signature's own value, if any.
            seconds: how long the answer is of use, at most and by default the limits' deadline.

        Raises:
            StatusError: names, types, rows or images are not what the signature takes
                (INVALID_ARGUMENT), or too many requests wait already (RESOURCE_EXHAUSTED).
            TimeoutError: the seconds have passed.
            tf.errors.OpError: the graph fails.
        """
        inputs, pixels = self._sized(self._checked(inputs))
        counts = {len(value) if value.ndim else None for value in inputs.values()}
        rows = [
            len(value) for key, value in inputs.items() if batched(self.inputs[key]) and value.ndim
        ]
        rest_request.check_rows(max(rows, default=0), self._limits.max_batch_size)
        joined = self._joined and len(counts) == 1 and None not in counts
        most = self._limits.max_image_pixels // _TURNS
        if not (joined and len(pixels) == rows[0] and sum(pixels) > most):
            return await self._batcher.submit(inputs, rows[0] if joined else None, seconds)
        until = time.monotonic() + (self._limits.deadline_seconds if seconds is None else seconds)
        answers = []
        for start, end in _parts(pixels, most):
            part = {key: value[start:end] for key, value in inputs.items()}
            left = until - time.monotonic()
            answers.append(await self._batcher.submit(part, end - start, left))
        return {key: np.concatenate([answer[key] for answer in answers]) for key in self.outputs}

    def close(self) -> None:
        """Ends the threads once what is queued has been answered."""
        self._batcher.close()

    def _run(self, fed: list[Array], options: config_pb2.RunOptions) -> list[Any]:
        """Calls the graph with options of this call alone.

        `Session.run` compares shapes with those of the placeholders, which TensorFlow Serving does
        not. What it calls itself, like this (seen on TensorFlow 2.21), does not either.
        """
        graph = self._session.graph
        feed = {
            graph.get_tensor_by_name(tensor).ref(): value
            for tensor, value in zip(self._feed, fed, strict=True)
        }
        fetch = [graph.get_tensor_by_name(tensor) for tensor in self._fetch]
        buffer = pywrap_tf_session.TF_NewBufferFromString(options.SerializeToString())
        try:
            return self._session._do_run(None, [], fetch, feed, buffer, None)
        finally:
            pywrap_tf_session.TF_DeleteBuffer(buffer)

    def _checked(self, inputs: Tensors) -> Tensors:
        """Returns the inputs of a request with those that the signature fills in itself.

        Raises:
            StatusError: names or types are wrong.
        """
        inputs = self._defaults | dict(inputs)
        if inputs.keys() != self.inputs.keys():
            sent, due = sorted(inputs), sorted(self.inputs)
            extra = sorted(inputs.keys() - self.inputs.keys())
            missing = sorted(self.inputs.keys() - inputs.keys())
            raise invalid(
                f"input size does not match signature: {len(sent)}!={len(due)} "
                f"len({{{','.join(sent)}}}) != len({{{','.join(due)}}}). "
                f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
            )
        for key, value in inputs.items():
            due, sent = self.inputs[key].dtype.name, tensors.dtype_of(value).name
            if sent != due:
                raise invalid(f"Expects input {key} to be {name(due)} but {name(sent)} is provided")
        return inputs

    def _sized(self, inputs: Tensors) -> tuple[Tensors, list[int]]:
        """Returns the inputs and the pixels of each row, where they hold images.

        An image that is too large, or whose size cannot be told, is refused. tfbp's own signature
        of images answers it with an empty row.
        """
        limit, pixels = self._limits.max_image_pixels, []
        for key, value in inputs.items():
            binary = key.endswith(BINARY) or self.name.endswith(BINARY)
            if self.inputs[key].dtype != tf.string or not binary:
                continue
            unknown = limit + 1 if self._decodes_images else 0
            sizes = [images.pixels(content) for content in value.flat]
            counts = [unknown if size is None else size for size in sizes]
            if max(counts, default=0) > limit:
                if self.name != IMAGES or key != IMAGES:
                    raise _too_large(sizes, limit)
                kept = [
                    b"" if count > limit else one
                    for one, count in zip(value.flat, counts, strict=True)
                ]
                small = np.empty(len(kept), object)
                small[:] = kept
                inputs = {**inputs, key: small.reshape(value.shape)}
                counts = [count if count <= limit else 0 for count in counts]
            pixels += counts
        total, most = sum(pixels), self._limits.max_request_pixels
        if total > most:
            raise invalid(f"The images have {total} pixels, over the limit of {most}")
        return inputs, pixels


def _parts(pixels: list[int], most: int) -> list[tuple[int, int]]:
    """Returns start and end of runs of rows of about so many pixels, each of at least one row."""
    ends, total = [], 0
    for row, count in enumerate(pixels, 1):
        total += count
        if total >= most:
            ends.append(row)
            total = 0
    if ends[-1:] != [len(pixels)]:
        ends.append(len(pixels))
    return list(zip([0, *ends], ends, strict=False))


def _too_large(sizes: list[int | None], limit: int) -> StatusError:
    largest = max((size for size in sizes if size is not None), default=0)
    if largest > limit:
        return invalid(f"An image of {largest} pixels is over the limit of {limit}")
    return invalid("How many pixels an image has cannot be told: it must be JPEG, PNG, GIF or BMP")


def _array(value: Any, spec: tf.TensorSpec) -> Array:
    """Returns an output as an array, also a lone string, which a session returns as bytes."""
    return np.array(value, object) if spec.dtype == tf.string else np.asarray(value)


def _specs(infos: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
    for key, info in infos.items():
        # An initializer's output is an operation, which has no value.
        if info.WhichOneof("encoding") != "name" or ":" not in info.name:
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


def batched(spec: tf.TensorSpec) -> bool:
    """Returns whether the first dimension is there and may have any size: a batch dimension."""
    return bool(spec.shape.rank) and spec.shape[0] is None
