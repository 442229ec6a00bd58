"""TensorFlow Serving's gRPC services, on its official protos.

The token is asked for before a message is received: where a call's method is looked up.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from tfbp.serving import answers, examples, failures, inference, tensors
from tfbp.serving.batching import Tensors
from tfbp.serving.gate import Gate
from tfbp.serving.limits import Limits
from tfbp.serving.metrics import Metrics
from tfbp.serving.models import Models
from tfbp.serving.rest_request import DEFAULT
from tfbp.serving.signature import Signature
from tfbp.serving.status import Code, StatusError, invalid
from tfbp.serving.version import Version

# Answers of more bytes are written in a thread, so that others are answered in between.
_LARGE = 64 * 2**10
_MISSING = "No signature was found with the name"

# Takes a request and the seconds until nobody waits for the answer any more.
Method = Callable[[Any, float], Awaitable[Any]]


class Rpc:
    """The services over the models."""

    def __init__(self, models: Models, gate: Gate, limits: Limits, counts: Metrics):
        self._models, self._gate, self._limits, self._metrics = models, gate, limits, counts

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds both services to a gRPC server."""
        services: dict[str, dict[str, tuple[Method, type]]] = {
            "tensorflow.serving.PredictionService": {
                "Predict": (self._predict, predict_pb2.PredictRequest),
                "Classify": (self._classify, classification_pb2.ClassificationRequest),
                "Regress": (self._regress, regression_pb2.RegressionRequest),
                "MultiInference": (self._infer, inference_pb2.MultiInferenceRequest),
                "GetModelMetadata": (
                    self._metadata,
                    get_model_metadata_pb2.GetModelMetadataRequest,
                ),
            },
            "tensorflow.serving.ModelService": {
                "GetModelStatus": (self._status, get_model_status_pb2.GetModelStatusRequest),
                "HandleReloadConfigRequest": (
                    self._reload,
                    model_management_pb2.ReloadConfigRequest,
                ),
            },
        }
        handlers = {
            f"/{service}/{name}": grpc.unary_unary_rpc_method_handler(
                self._handler(name, method, message)
            )
            for service, methods in services.items()
            for name, (method, message) in methods.items()
        }
        server.add_generic_rpc_handlers((_Guarded(handlers, self._gate),))

    def _handler(self, api: str, method: Method, message: type) -> Callable[..., Any]:
        """Returns what answers a call: exceptions as clean codes."""

        async def handle(content: bytes, context: Any) -> bytes:
            began, model = time.perf_counter(), ""
            try:
                with self._gate.place():
                    request = message.FromString(content)  # type: ignore[attr-defined]
                    model = _model(request)
                    most = self._limits.deadline_seconds
                    remaining = context.time_remaining()
                    seconds = most if remaining is None else min(remaining, most)
                    async with asyncio.timeout(seconds):
                        response = await method(request, seconds)
                    self._count(model, Code.OK, api, time.perf_counter() - began)
                    return bytes(response.SerializeToString())
            except Exception as error:  # Whatever it is, the client gets a code, the log the rest.
                fault = failures.status_of(error)
            self._count(model, fault.code, api, 0.0)
            await _abort(context, fault)
            raise AssertionError("abort raises")

        return handle

    def _count(self, model: str, code: Code, api: str, seconds: float) -> None:
        if self._models.known(model):
            self._metrics.request(model, code.name)
            if code is Code.OK:
                self._metrics.latency(model, api, "GRPC", seconds)

    async def _predict(self, request: Any, seconds: float) -> Any:
        long = any(map(tensors.is_long, request.inputs.values()))
        inputs = await _call(long, _inputs, request, self._limits.max_body_bytes)
        with self._models.use(*_model_spec(request)) as version:
            name = request.model_spec.signature_name or DEFAULT
            signature = version.signature(name)
            aliases = _chosen(list(request.output_filter), list(signature.outputs))
            outputs = await signature.answer(inputs, seconds)
            response = predict_pb2.PredictResponse()
            _describe(response.model_spec, request.model_spec.name, name, version)
        size = sum(outputs[alias].nbytes for alias in aliases)
        await _call(size > _LARGE, _fill, response, {alias: outputs[alias] for alias in aliases})
        return response

    async def _classify(self, request: Any, seconds: float) -> Any:
        response = classification_pb2.ClassificationResponse()
        outputs, count = await self._examples(inference.CLASSIFY, request, response, seconds)
        _fill_classes(response.result, outputs, count)
        return response

    async def _regress(self, request: Any, seconds: float) -> Any:
        response = regression_pb2.RegressionResponse()
        outputs, count = await self._examples(inference.REGRESS, request, response, seconds)
        _fill_regressions(response.result, outputs, count)
        return response

    async def _examples(
        self, method: str, request: Any, response: Any, seconds: float
    ) -> tuple[Tensors, int]:
        """Returns the outputs for a request's examples, and how many these are."""
        with self._models.use(*_model_spec(request)) as version:
            name = request.model_spec.signature_name
            signature = inference.signature(version, name, method, _MISSING)
            inputs = examples.of_input(request.input)
            outputs = await signature.answer(inputs, seconds)
            _describe(response.model_spec, request.model_spec.name, name or DEFAULT, version)
        return outputs, len(inputs[examples.INPUT])

    async def _infer(self, request: Any, seconds: float) -> Any:
        response = inference_pb2.MultiInferenceResponse()
        if not request.tasks:
            raise invalid("ModelSpec has no name specified.")
        spec = _model_spec(request.tasks[0])
        with self._models.use(*spec) as version:
            signatures = _tasks(request, version)
            inputs = examples.of_input(request.input)
            count = len(inputs[examples.INPUT])
            running = [signature.answer(inputs, seconds) for signature in signatures]
            for task, outputs in zip(request.tasks, await asyncio.gather(*running), strict=True):
                result = response.results.add()
                if task.method_name == inference.CLASSIFY:
                    _fill_classes(result.classification_result, outputs, count)
                else:
                    _fill_regressions(result.regression_result, outputs, count)
                name = task.model_spec.signature_name or DEFAULT
                _describe(result.model_spec, task.model_spec.name, name, version)
        return response

    async def _metadata(self, request: Any, seconds: float) -> Any:
        spec = _model_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        with self._models.use(*spec) as version:
            return answers.metadata(request.model_spec.name, version)

    async def _status(self, request: Any, seconds: float) -> Any:
        name, number, _ = _model_spec(request)
        return answers.status(self._models.status(name, number))

    async def _reload(self, request: Any, seconds: float) -> Any:
        raise StatusError(
            Code.UNIMPLEMENTED, "HandleReloadConfigRequest is not implemented: folders are watched"
        )


class _Guarded(grpc.GenericRpcHandler):
    """Finds the handler of a call for whoever may ask; for others one that reads no message."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler], gate: Gate):
        self._handlers, self._gate = handlers, gate

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        metadata = call.invocation_metadata or ()
        try:
            self._gate.admit([value for key, value in metadata if key == "authorization"])
        except StatusError as error:
            fault = error

            async def refuse(messages: object, context: Any) -> None:
                await _abort(context, fault)

            # On the wire a stream of which nothing is read.
            return grpc.stream_unary_rpc_method_handler(refuse)
        return self._handlers.get(call.method)


async def _abort(context: Any, fault: StatusError) -> None:
    await context.abort(getattr(grpc.StatusCode, fault.code.name), fault.message)


async def _call(in_thread: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments) if in_thread else function(*arguments)


def _inputs(request: Any, max_bytes: int) -> Tensors:
    return {key: tensors.of_proto(proto, max_bytes) for key, proto in request.inputs.items()}


def _fill(response: Any, outputs: Tensors) -> None:
    for alias, value in outputs.items():
        tensors.fill(response.outputs[alias], value)


def _fill_classes(result: Any, outputs: Tensors, count: int) -> None:
    labels, scores = inference.classes(outputs, count)
    for row_labels, row_scores in zip(labels, scores, strict=True):
        row = result.classifications.add()
        for label, score in zip(row_labels, row_scores, strict=True):
            row.classes.add(label=label.decode(errors="replace"), score=score)


def _fill_regressions(result: Any, outputs: Tensors, count: int) -> None:
    for value in inference.regressions(outputs, count).ravel():
        result.regressions.add(value=value)


def _tasks(request: Any, version: Version) -> list[Signature]:
    """Returns the signatures that the tasks of a request name."""
    signatures: list[Signature] = []
    for task in request.tasks:
        name = task.model_spec.signature_name or DEFAULT
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        if name in [one.name for one in signatures]:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        missing = "Requested signature not found in model graph"
        if name not in version.definitions:
            raise invalid(f"{missing}: {name}")
        if task.method_name not in (inference.CLASSIFY, inference.REGRESS):
            message = f"Unsupported signature method_name: {task.method_name}"
            raise StatusError(Code.UNIMPLEMENTED, message)
        signatures.append(inference.signature(version, name, task.method_name, missing))
    return signatures


def _describe(spec: Any, name: str, signature: str, version: Version) -> None:
    spec.name, spec.signature_name = name, signature
    spec.version.value = version.number


def _model(request: Any) -> str:
    one = request.tasks[0] if getattr(request, "tasks", None) else request
    return str(one.model_spec.name) if hasattr(one, "model_spec") else ""


def _model_spec(request: Any) -> tuple[str, int | None, str | None]:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    chosen = spec.WhichOneof("version_choice")
    number = spec.version.value if chosen == "version" else None
    return spec.name, number, spec.version_label if chosen == "version_label" else None


def _chosen(aliases: list[str], known: list[str]) -> list[str]:
    for alias in aliases:
        if alias not in known:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{','.join(known)}}}."
            )
        if aliases.count(alias) > 1:
            raise invalid(f"duplicate output tensor alias: {alias}")
    return aliases or known
