"""The files that `tensorflow_model_server` reads, for the models that the server serves here."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.config import model_server_config_pb2

from tfbp import storage
from tfbp.errors import mistake
from tfbp.exporting import layout
from tfbp.serving.limits import Limits
from tfbp.serving.models import check_labels, model_folders

MODELS, BATCHING = "models.config", "batching.config"


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write` has written.

    Attributes:
        command: the command line of `tensorflow_model_server` that reads the files.
        unbatched: `model/signature` of signatures with an input or output without a batch
            dimension, or with rows of any size. Under `--enable_batching` TensorFlow Serving
            refuses the former, and fails requests for the latter that it joins, for which reason
            the command then leaves it out.
        whole: models of which TensorFlow Serving loads every version, because they have labels: it
            knows no policy for the newest and the labelled ones.
        skipped: models without a version that can be loaded, which are left out.
    """

    command: list[str]
    unbatched: list[str]
    whole: list[str]
    skipped: list[str]


def write(
    folder: pathlib.Path,
    *,
    port: int,
    grpc_port: int,
    limits: Limits,
    labels: Mapping[str, Mapping[str, int]],
) -> Written:
    """Writes `models.config` and `batching.config` into a folder of models.

    Raises:
        tfbp.UserError: the folder holds no model, or a label's model or version is not there.
    """
    found = model_folders(folder)
    versions = {name: _signatures(path) for name, path in found.items()}
    skipped = [name for name in found if not versions[name]]
    models = {name: path for name, path in found.items() if name not in skipped}
    if not models:
        raise mistake(
            "SAVED_MODELS", "must be a folder that holds MODEL/VERSION/ folders", str(folder)
        )
    check_labels(labels, models)
    config = model_server_config_pb2.ModelServerConfig()
    unbatched = []
    for name, path in models.items():
        one = config.model_config_list.config.add(
            name=name, base_path=str(path.resolve()), model_platform="tensorflow"
        )
        signatures = versions[name]
        for label, number in sorted(labels.get(name, {}).items()):
            if number not in signatures:
                raise mistake(
                    "--labels", f"must name a version of {name}", number, map(str, signatures)
                )
            one.version_labels[label] = number
        if one.version_labels:
            one.model_version_policy.all.SetInParent()
        unbatched += [f"{name}/{key}" for key in _unbatched(signatures[max(signatures)])]
    storage.write_text(folder / MODELS, text_format.MessageToString(config))
    storage.write_text(folder / BATCHING, _batching(limits))
    command = [
        "tensorflow_model_server",
        f"--port={grpc_port}",
        f"--rest_api_port={port}",
        f"--rest_api_timeout_in_ms={round(limits.deadline_seconds * 1000)}",
        f"--model_config_file={(folder / MODELS).resolve()}",
    ]
    if labels:
        command.append("--allow_version_labels_for_unavailable_models")
    if not unbatched:
        command.append("--enable_batching")
        command.append(f"--batching_parameters_file={(folder / BATCHING).resolve()}")
    whole = [one.name for one in config.model_config_list.config if one.version_labels]
    return Written(command, unbatched, whole, skipped)


def _batching(limits: Limits) -> str:
    values = {
        "max_batch_size": limits.max_batch_size,
        "batch_timeout_micros": round(limits.batch_timeout_ms * 1000),
        "max_enqueued_batches": math.ceil(limits.max_queue / limits.max_batch_size),
        "num_batch_threads": os.cpu_count() or 1,
    }
    return "".join(f"{name} {{ value: {value} }}\n" for name, value in values.items())


def _signatures(model: pathlib.Path) -> dict[int, Mapping[str, SignatureDef]]:
    """Returns version → signatures, of the versions that can be read."""
    versions = {}
    try:
        folders = layout.versions(model)
    except OSError:
        return {}
    for number, folder in folders.items():
        try:
            content = (folder / layout.GRAPH).read_bytes()
            saved = saved_model_pb2.SavedModel.FromString(content)
        except (OSError, DecodeError):
            continue
        if saved.meta_graphs:
            versions[number] = saved.meta_graphs[0].signature_def
    return versions


def _unbatched(signatures: Mapping[str, SignatureDef]) -> list[str]:
    """Returns the names of signatures that cannot be asked in batches."""
    found = []
    for key, signature in signatures.items():
        inputs = [tensor.tensor_shape for tensor in signature.inputs.values()]
        outputs = [tensor.tensor_shape for tensor in signature.outputs.values()]
        rows = all(shape.dim and shape.dim[0].size == -1 for shape in (*inputs, *outputs))
        alike = all(size.size >= 0 for shape in inputs for size in shape.dim[1:])
        if inputs and not (rows and alike):
            found.append(key)
    return sorted(found)
