"""What an answer says when it is no result: a code that REST and gRPC share, and a clean text."""

import re

import grpc
import tensorflow as tf
from absl import logging

Code = grpc.StatusCode

# As TensorFlow Serving maps them (tensorflow_serving/model_servers/http_server.cc).
HTTP = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}

_CODES = {code.value[0]: code for code in Code}

# What a graph says with these codes is about the request, and helps whoever sent it.
_ABOUT_THE_REQUEST = {
    Code.INVALID_ARGUMENT,
    Code.FAILED_PRECONDITION,
    Code.OUT_OF_RANGE,
    Code.UNIMPLEMENTED,
}
_PATH = re.compile(r"(?<![\w/])(?:[A-Za-z]:\\|~?/)[^\s'\",;:()\[\]]+")
_NODE = re.compile(r"\s*\{\{[^}]*\}\}|\s*\[\[.*?\]\]|\s*\([\w./-]+:\d+\)")


class StatusError(Exception):
    """A request that is answered with a code and a message instead of a result."""

    def __init__(self, code: Code, message: str):
        super().__init__(message)
        self.code, self.message = code, message


def invalid(message: str) -> StatusError:
    """Returns the error for a request that cannot be right: INVALID_ARGUMENT, 400."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def of(error: BaseException) -> StatusError:
    """Returns what a client may read of an exception: no path, no traceback, no surprise.

    What the client cannot mend goes to the server's log, and only its code to the client.
    """
    if isinstance(error, StatusError):
        return error
    if isinstance(error, TimeoutError):
        return StatusError(Code.DEADLINE_EXCEEDED, "The deadline of the request has passed.")
    if isinstance(error, MemoryError):
        return StatusError(Code.RESOURCE_EXHAUSTED, "Not enough memory for this request.")
    code = Code.INTERNAL
    if isinstance(error, tf.errors.OpError):
        code = _CODES.get(error.error_code, Code.UNKNOWN)
        if code in _ABOUT_THE_REQUEST:
            return StatusError(code, _clean(error.message))
        if code is Code.DEADLINE_EXCEEDED:
            return StatusError(code, "The deadline of the request has passed.")
    logging.error("A request failed.", exc_info=error)
    return StatusError(code, f"The request failed ({code.name}); the server's log says why.")


def _clean(message: str) -> str:
    """Returns the first line of what TensorFlow says, without node names and paths."""
    lines = (line.strip() for line in message.removeprefix("Graph execution error:").splitlines())
    line = next(filter(None, lines), "")
    return _PATH.sub("<path>", _NODE.sub("", line)).strip()
