"""TensorFlow Serving's REST API, version 1, as an ASGI application."""

import asyncio
import contextlib
import dataclasses
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tfbp.serving import answers, failures, inference, json_text, metrics, rest_answer
from tfbp.serving.body import Body, ClientLeft, Memory, Receive
from tfbp.serving.gate import Gate
from tfbp.serving.limits import Limits
from tfbp.serving.models import Models
from tfbp.serving.reading import Reader
from tfbp.serving.rest_request import Bounds
from tfbp.serving.status import HTTP, Code, StatusError, invalid

# As in tensorflow_serving/model_servers/http_rest_api_util.cc.
_VERSION = r"(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?"
_ASK = re.compile(
    rf"/v1/models/([^/:]+){_VERSION}:(classify|regress|predict)", re.IGNORECASE | re.ASCII
)
_SHOW = re.compile(rf"/v1/models(?:/([^/:]+))?{_VERSION}(?:/(metadata))?", re.IGNORECASE | re.ASCII)

# Answers of more bytes are written in a thread of their own, so that others come in between.
_LARGE = 64 * 2**10
# Bodies of the largest size that are in memory at once; those that come slowly take no other place.
_BODIES = 16

Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Spec = tuple[str, int | None, str | None]  # model, version, label


@dataclasses.dataclass
class _Answer:
    code: Code
    text: str
    http: int = 200
    media_type: str = "application/json"
    headers: list[tuple[bytes, bytes]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Asked:
    """Which model and method a path names, for the metrics."""

    model: str = ""
    api: str = ""


class Rest:
    """The REST API over the models, an ASGI application."""

    def __init__(self, models: Models, gate: Gate, limits: Limits, counts: metrics.Metrics):
        self._models, self._gate, self._limits, self._metrics = models, gate, limits, counts
        self._memory = Memory(max(_BODIES * limits.max_body_bytes, _LARGE * limits.max_concurrency))
        self._reader = Reader(Bounds(limits.max_json_depth, limits.max_batch_size))

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        body = Body(dict(scope["headers"]), receive, self._memory, self._limits.max_body_bytes)
        try:
            answer = await self._answer(scope, body)
        finally:
            body.release()
        content = answer.text.encode(errors="replace")
        headers = [
            (b"content-type", answer.media_type.encode()),
            (b"content-length", str(len(content)).encode()),
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.http, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def close(self) -> None:
        """Ends what reads large bodies."""
        self._reader.close()

    async def _answer(self, scope: Mapping[str, Any], body: Body) -> _Answer:
        began = time.perf_counter()
        asked = _Asked()
        try:
            async with asyncio.timeout(self._limits.deadline_seconds) as deadline:
                answer = await self._route(scope, body, asked, deadline.when() or 0.0)
        except ClientLeft:  # Nobody reads the answer.
            return _Answer(Code.CANCELLED, "", HTTP[Code.CANCELLED])
        except Exception as error:  # Whatever it is, the client gets a code, the log the rest.
            fault = failures.status_of(error)
            text = json_text.member("error", json_text.string(fault.message))
            answer = _Answer(fault.code, text, fault.http)
            if fault.code is Code.UNAUTHENTICATED:
                answer.headers.append((b"www-authenticate", b"Bearer"))
        if self._models.known(asked.model):
            self._metrics.request(asked.model, answer.code.name)
            if answer.code is Code.OK:
                seconds = time.perf_counter() - began
                self._metrics.latency(asked.model, asked.api, "REST", seconds)
        # A body that has come too late is not waited for any more.
        late = answer.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
        if late or not await body.drain():
            answer.headers.append((b"connection", b"close"))
        return answer

    async def _route(
        self, scope: Mapping[str, Any], body: Body, asked: _Asked, deadline: float
    ) -> _Answer:
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        origins = _values(scope, b"origin")
        self._gate.check_page(_values(scope, b"host"), origins, method)
        self._gate.admit(_values(scope, b"authorization"))
        if path == metrics.PATH:
            return _Answer(Code.OK, self._metrics.page(), media_type="text/plain")
        if not path.lower().startswith("/v1/"):
            raise StatusError(Code.NOT_FOUND, f"Not found: {method} {path}")
        if method == "OPTIONS":
            if not any("http://" in origin or "https://" in origin for origin in origins):
                message = "Origin header is missing in CORS preflight"
                raise StatusError(Code.FAILED_PRECONDITION, message)
            return _Answer(Code.OK, "")
        if method == "POST" and (match := _ASK.fullmatch(path)):
            spec = _model_spec(match)
            asked.model, asked.api = spec[0], match[4].lower()
            content = await body.read()
            with self._gate.place():
                if asked.api == "predict":
                    return await self._predict(spec, content, deadline)
                return await self._infer(spec, asked.api, content, deadline)
        if method == "GET" and (match := _SHOW.fullmatch(path)):
            if not match[1]:
                raise invalid("Missing model name in request.")
            spec = _model_spec(match)
            asked.model = spec[0]
            with self._gate.place():
                return self._show(spec, bool(match[4]))
        raise invalid(f"Malformed request: {method} {path}")

    def _show(self, spec: Spec, metadata: bool) -> _Answer:
        if not metadata:
            name, number, _ = spec
            return _Answer(Code.OK, answers.status_json(self._models.status(name, number)))
        with self._models.use(*spec) as version:
            return _Answer(Code.OK, answers.metadata_json(spec[0], version))

    async def _predict(self, spec: Spec, body: bytes, deadline: float) -> _Answer:
        with contextlib.ExitStack() as used:
            try:
                version = used.enter_context(self._models.use(*spec))
            except StatusError as error:  # What is wrong with the JSON is said first.
                await self._reader.read(body, error)
                raise
            inputs = await self._reader.read(body, version.json)
            signature = version.signature(inputs.signature)
            outputs = await signature.answer(inputs.arrays, _seconds_to(deadline))
        write = rest_answer.rows if inputs.as_rows else rest_answer.columns
        size = sum(value.nbytes for value in outputs.values())
        return _Answer(Code.OK, await _call(size > _LARGE, write, outputs))

    async def _infer(self, spec: Spec, api: str, body: bytes, deadline: float) -> _Answer:
        inputs = await self._reader.read(body, None)
        method = inference.CLASSIFY if api == "classify" else inference.REGRESS
        with self._models.use(*spec) as version:
            missing = "No signature was found with the name"
            signature = inference.signature(version, inputs.signature, method, missing)
            outputs = await signature.answer(inputs.arrays, _seconds_to(deadline))
        (examples,) = inputs.arrays.values()
        if api == "classify":
            labels, scores = inference.classes(outputs, len(examples))
            return _Answer(Code.OK, rest_answer.classifications(labels, scores))
        values = inference.regressions(outputs, len(examples))
        return _Answer(Code.OK, rest_answer.regressions(values))


def _seconds_to(deadline: float) -> float:
    return deadline - asyncio.get_running_loop().time()


async def _call(in_thread: bool, write: Callable[..., str], *arguments: Any) -> str:
    if in_thread:
        return await asyncio.to_thread(write, *arguments)
    return write(*arguments)


def _values(scope: Mapping[str, Any], name: bytes) -> list[str]:
    """Returns all values that a request has for a header."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _model_spec(match: re.Match[str]) -> Spec:
    name, text, label = match[1], match[2], match[3]
    number = None
    if text is not None:
        digits = text.lstrip("0") or "0"
        if len(digits) > 19 or int(digits) >= 2**63:
            raise invalid(f"Failed to convert version: {text} to numeric.")
        number = int(digits)
    return urllib.parse.unquote(name), number, label and urllib.parse.unquote(label)
