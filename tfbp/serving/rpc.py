"""TensorFlow Serving's gRPC services, on its official protos."""

import functools
from collections.abc import Callable

import grpc
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfbp.serving import answers, status, tensors
from tfbp.serving.gate import Gate
from tfbp.serving.limits import Limits
from tfbp.serving.models import Models
from tfbp.serving.status import Code, StatusError, invalid
from tfbp.serving.version import DEFAULT


def _answered(method: Callable) -> Callable:
    """Makes a method a handler: behind the gate, its exceptions as clean codes."""

    @functools.wraps(method)
    def handler(self, request, context):
        authorization = dict(context.invocation_metadata()).get("authorization", "")
        try:
            self.gate.admit(authorization)
            with self.gate.place():
                return method(self, request, context)
        except Exception as error:
            cleaned = status.of(error)
        context.abort(cleaned.code, cleaned.message)

    return handler


def _unimplemented(name: str) -> Callable:
    @_answered
    def handler(self, request, context):
        raise StatusError(Code.UNIMPLEMENTED, f"{name} is not implemented; use Predict")

    return handler


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata."""

    def __init__(self, models: Models, gate: Gate, limits: Limits):
        self.gate = gate
        self._models, self._limits = models, limits

    @_answered
    def Predict(self, request, context):
        inputs = {
            key: tensors.of_proto(proto, self._limits.max_body_bytes)
            for key, proto in request.inputs.items()
        }
        name = request.model_spec.signature_name or DEFAULT
        with self._models.use(*_model_spec(request)) as version:
            if name not in version.signatures:
                raise StatusError(
                    Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
                )
            signature = version.signatures[name]
            chosen = _chosen(list(request.output_filter), list(signature.outputs))
            most = self._limits.deadline_seconds
            remaining = context.time_remaining()
            seconds = most if remaining is None else min(remaining, most)
            future = signature.submit(inputs, seconds)
            try:
                outputs = future.result(seconds)
            except TimeoutError:
                future.cancel()
                raise
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.signature_name = name
        response.model_spec.version.value = version.number
        for key in chosen:
            response.outputs[key].CopyFrom(tensors.to_proto(outputs[key]))
        return response

    @_answered
    def GetModelMetadata(self, request, context):
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        with self._models.use(*_model_spec(request)) as version:
            return answers.metadata(request.model_spec.name, version)

    Classify = _unimplemented("Classify")
    Regress = _unimplemented("Regress")
    MultiInference = _unimplemented("MultiInference")


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    def __init__(self, models: Models, gate: Gate):
        self.gate = gate
        self._models = models

    @_answered
    def GetModelStatus(self, request, context):
        return answers.status(self._models.status(*_model_spec(request)))

    HandleReloadConfigRequest = _unimplemented("HandleReloadConfigRequest")


def add_to(server: grpc.Server, models: Models, gate: Gate, limits: Limits) -> None:
    """Adds both services to a gRPC server."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(models, gate, limits), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models, gate), server)


def _model_spec(request) -> tuple[str, int | None, str | None]:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    chosen = spec.WhichOneof("version_choice")
    number = spec.version.value if chosen == "version" else None
    return spec.name, number, spec.version_label if chosen == "version_label" else None


def _chosen(asked: list[str], known: list[str]) -> list[str]:
    for alias in asked:
        if alias not in known:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{','.join(known)}}}."
            )
        if asked.count(alias) > 1:
            raise invalid(f"duplicate output tensor alias: {alias}")
    return asked or known
