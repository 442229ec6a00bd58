"""What an answer says when it is no result: a code that REST and gRPC share, and a message."""

import enum

# Of a message that quotes a request. What a client sends back to itself need not be longer.
_MOST_CHARACTERS = 1024


class Code(enum.IntEnum):
    """The codes of gRPC: https://grpc.github.io/grpc/core/md_doc_statuscodes.html."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


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


class StatusError(Exception):
    """A request that is answered with a code and a message instead of a result.

    Args:
        code: what kind of mistake it is.
        message: what to say about it, cut where it is too long.
        http: the HTTP status, where it is not the one of the code.
    """

    def __init__(self, code: Code, message: str, http: int | None = None):
        super().__init__(message)
        self.code = code
        self.message = message
        if len(message) > _MOST_CHARACTERS:
            self.message = message[:_MOST_CHARACTERS] + "…"
        self.http = HTTP[code] if http is None else http


def invalid(message: str) -> StatusError:
    """Returns the error for a request that cannot be right: INVALID_ARGUMENT, 400."""
    return StatusError(Code.INVALID_ARGUMENT, message)
