"""What a client may read of an exception: no path, no traceback, no surprise."""

import re

import tensorflow as tf
from absl import logging

from tfbp.serving.status import Code, StatusError

# What a graph says with these codes is about the request, and helps whoever sent it.
_ABOUT_THE_REQUEST = {
    Code.INVALID_ARGUMENT,
    Code.FAILED_PRECONDITION,
    Code.OUT_OF_RANGE,
    Code.UNIMPLEMENTED,
}
_PATH = re.compile(r"(?<![\w/])(?:[A-Za-z]:\\|~?/)[^\s'\",;:()\[\]]+")
_NODE = re.compile(r"\s*\{\{[^}]*\}\}|\s*\[\[.*?\]\]|\s*\([\w./-]+:\d+\)")


def status_of(error: BaseException) -> StatusError:
    """Returns the code and the message that answer an exception.

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
        known = error.error_code in Code.__members__.values()
        code = Code(error.error_code) if known else Code.UNKNOWN
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
