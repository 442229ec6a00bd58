"""Status and metadata of models, as the messages that REST and gRPC both answer."""

from collections.abc import Iterable

from google.protobuf import json_format, message
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from tfbp.serving.status import Code, StatusError
from tfbp.serving.version import Version

States = Iterable[tuple[int, str, StatusError | None]]


def status(states: States) -> get_model_status_pb2.GetModelStatusResponse:
    """Returns the states of versions as a message."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, state, error in states:
        one = response.model_version_status.add(version=number, state=state)
        one.status.error_code = int(error.code if error else Code.OK)
        one.status.error_message = error.message if error else ""
    return response


def metadata(name: str, version: Version) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Returns all signatures of a version as a message."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = name
    response.model_spec.version.value = version.number
    response.metadata["signature_def"].Pack(_signatures(version))
    return response


def status_json(states: States) -> str:
    """Returns the states of versions as JSON."""
    return _json(status(states))


def metadata_json(name: str, version: Version) -> str:
    """Returns all signatures of a version as JSON, as TensorFlow Serving writes it."""
    return (
        f'{{\n"model_spec":{_json(metadata(name, version).model_spec)},\n'
        f'"metadata": {{"signature_def": {_json(_signatures(version))}}}\n}}\n'
    )


def _signatures(version: Version) -> get_model_metadata_pb2.SignatureDefMap:
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for key, definition in version.definitions.items():
        signatures.signature_def[key].CopyFrom(definition)
    return signatures


def _json(one: message.Message) -> str:
    return json_format.MessageToJson(
        one,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=1,
    )
