"""TensorFlow Serving's REST API, version 1, as an ASGI application."""

import asyncio
import contextlib
import json
import re
import urllib.parse
from collections.abc import Callable

from google.protobuf import json_format
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tensorflow_serving.apis import get_model_metadata_pb2

from tfbp.serving import answers, rest_answer, rest_request, status
from tfbp.serving.gate import Gate
from tfbp.serving.limits import Limits
from tfbp.serving.models import Models
from tfbp.serving.status import HTTP, Code, StatusError, invalid

# As in tensorflow_serving/model_servers/http_rest_api_util.cc.
_MODEL = r"/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?"
_ASK = re.compile(_MODEL + r":(classify|regress|predict)", re.IGNORECASE)
_SHOW = re.compile(_MODEL + r"(?:/(metadata))?", re.IGNORECASE)

# Bodies above it are parsed in a thread of their own, one at a time, so that others are answered
# in between.
_LARGE = 64 * 2**10
# Bodies of the largest size that are in memory at once; those that come slowly take no other place.
_BODIES = 16
# A body so many times over the limit is not read to its end any more.
_PATIENCE = 4
# How long the rest of a body is read, and thrown away, that the answer does not depend on. A client
# that still sends when the connection is closed may not see the answer.
_DRAIN_SECONDS = 0.5


class Rest:
    """The REST API over the models, an ASGI application."""

    def __init__(self, models: Models, gate: Gate, limits: Limits):
        self._models, self._gate, self._limits = models, gate, limits
        self._held = 0  # bytes of bodies in memory
        self._room = max(_BODIES * limits.max_body_bytes, _LARGE * limits.max_concurrency)
        self._parsing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        finally:
            self._held -= getattr(request.state, "held", 0)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        headers = {}
        try:
            async with asyncio.timeout(self._limits.deadline_seconds) as deadline:
                self._gate.admit(request.headers.get("authorization", ""))
                text = await self._route(request, deadline.when())
            code = Code.OK
        except ClientDisconnect:  # Nobody reads the answer.
            return Response(status_code=HTTP[Code.CANCELLED])
        except Exception as error:
            cleaned = status.of(error)
            code = cleaned.code
            text = json.dumps({"error": cleaned.message}, ensure_ascii=False)
            if code is Code.UNAUTHENTICATED:
                headers["www-authenticate"] = "Bearer"
        if code is Code.UNAVAILABLE or not await self._ended(request, code):
            headers["connection"] = "close"
        content = text.encode(errors="replace")
        return Response(content, HTTP[code], headers, media_type="application/json")

    async def _route(self, request: Request, deadline: float) -> str:
        path = request.scope["raw_path"].decode("latin-1")
        malformed = invalid(f"Malformed request: {request.method} {path}")
        if not path.lower().startswith("/v1/"):
            raise StatusError(Code.NOT_FOUND, f"Not found: {request.method} {path}")
        if request.method == "POST" and (match := _ASK.fullmatch(path)):
            name, number, label = _model_spec(match)
            body = await self._body(request)
            if match[4].lower() != "predict":
                raise StatusError(
                    Code.UNIMPLEMENTED, f"{match[4].lower()} is not implemented; use predict"
                )
            with self._gate.place():
                return await self._predict(name, number, label, body, deadline)
        if request.method == "GET" and path.rstrip("/").lower() == "/v1/models":
            raise invalid("Missing model name in request.")
        if request.method == "GET" and (match := _SHOW.fullmatch(path)):
            name, number, label = _model_spec(match)
            with self._gate.place():
                if not match[4]:
                    return _json(answers.status(self._models.status(name, number, label)))
                with self._models.use(name, number, label) as version:
                    return _metadata_json(answers.metadata(name, version))
        raise malformed

    async def _ended(self, request: Request, code: Code) -> bool:
        """Returns whether the request has been read to its end, which is waited for shortly."""
        announced = request.headers.get("content-length", "0") != "0"
        if not announced and "transfer-encoding" not in request.headers:
            return True
        if getattr(request.state, "ended", False):
            return True
        if code is Code.DEADLINE_EXCEEDED or "expect" in request.headers:
            return False
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for _ in request.stream():
                    pass
        except (TimeoutError, ClientDisconnect):
            return False
        return True

    async def _body(self, request: Request) -> bytes:
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise StatusError(Code.UNIMPLEMENTED, f"Content-Encoding {encoding} is not supported")
        limit, size, parts = self._limits.max_body_bytes, 0, []
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                self._hold(request, len(part))
                parts.append(part)
            elif size > _PATIENCE * limit:
                raise _BodyTooLarge(limit)
        request.state.ended = True
        # Read to its end where that is not far: a client that still sends sees no answer.
        if size > limit:
            raise _BodyTooLarge(limit)
        return b"".join(parts)

    def _hold(self, request: Request, size: int) -> None:
        """Counts bytes of a body until its request is answered."""
        if self._held + size > self._room:
            raise StatusError(Code.RESOURCE_EXHAUSTED, "Too many large requests at once")
        self._held += size
        request.state.held = getattr(request.state, "held", 0) + size

    async def _predict(
        self, name: str, number: int | None, label: str | None, body: bytes, deadline: float
    ) -> str:
        large = len(body) > _LARGE
        with contextlib.ExitStack() as used:
            async with self._parsing if large else contextlib.nullcontext():
                document = await _call(large, rest_request.parse, body, self._limits.max_json_depth)
                version = used.enter_context(self._models.use(name, number, label))
                signature = version.signature(rest_request.signature_name(document))
                inputs, in_rows = await _call(
                    large, rest_request.inputs, document, signature.inputs, self._limits
                )
                del document  # Its many lists would be looked through for garbage while we wait.
            seconds = deadline - asyncio.get_running_loop().time()
            future = await _call(large, signature.submit, inputs, seconds)
            outputs = await asyncio.wrap_future(future)
        size = sum(value.nbytes for value in outputs.values())
        write = rest_answer.rows if in_rows else rest_answer.columns
        return await _call(size > _LARGE, write, outputs)


class _BodyTooLarge(StatusError):
    def __init__(self, limit: int):
        super().__init__(
            Code.INVALID_ARGUMENT, f"The body of the request is over the limit of {limit} bytes"
        )


async def _call(in_thread: bool, function: Callable, *arguments):
    if in_thread:
        return await asyncio.to_thread(function, *arguments)
    return function(*arguments)


def _model_spec(match: re.Match) -> tuple[str, int | None, str | None]:
    name, number, label = match[1], match[2], match[3]
    if number is not None:
        digits = number.lstrip("0") or "0"
        if len(digits) > 19 or int(digits) >= 2**63:
            raise invalid(f"Failed to convert version: {digits[:40]} to numeric.")
        number = int(digits)
    return urllib.parse.unquote(name), number, label and urllib.parse.unquote(label)


def _json(message) -> str:
    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=1,
    )


def _metadata_json(response: get_model_metadata_pb2.GetModelMetadataResponse) -> str:
    """Returns the message with its `Any` unpacked, as TensorFlow Serving writes it."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return (
        f'{{\n"model_spec":{_json(response.model_spec)},\n'
        f'"metadata": {{"signature_def": {_json(signatures)}}}\n}}\n'
    )
