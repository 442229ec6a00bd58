"""Status and metadata of models, as the messages that REST and gRPC both answer."""

from collections.abc import Iterable

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from tfbp.serving.status import Code, StatusError
from tfbp.serving.version import Version


def status(
    states: Iterable[tuple[int, str, StatusError | None]],
) -> get_model_status_pb2.GetModelStatusResponse:
    """Returns the states of versions as a message."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, state, error in states:
        one = response.model_version_status.add(version=number, state=state)
        one.status.error_code = (error.code if error else Code.OK).value[0]
        one.status.error_message = error.message if error else ""
    return response


def metadata(name: str, version: Version) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Returns all signatures of a version as a message."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for key, definition in version.definitions.items():
        signatures.signature_def[key].CopyFrom(definition)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = name
    response.model_spec.version.value = version.number
    response.metadata["signature_def"].Pack(signatures)
    return response
