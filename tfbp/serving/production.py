"""The files that `tensorflow_model_server` reads, for the models that the server serves here."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping

from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfbp import storage
from tfbp.errors import mistake
from tfbp.serving.limits import Limits
from tfbp.serving.models import model_folders

MODELS, BATCHING = "models.config", "batching.config"


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write` has written.

    Attributes:
        command: the command line of `tensorflow_model_server` that reads the files.
        unbatched: `model/signature` of signatures with an input or output without a batch
            dimension. TensorFlow Serving refuses those under `--enable_batching`, for which reason
            the command then leaves it out.
    """

    command: list[str]
    unbatched: list[str]


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
        tfbp.UserError: the folder holds no model, or a labelled version is not there.
    """
    models = model_folders(folder)
    if not models:
        raise mistake(
            "SAVED_MODELS", "must be a folder that holds MODEL/VERSION/ folders", str(folder)
        )
    config = model_server_config_pb2.ModelServerConfig()
    unbatched = []
    for name, path in models.items():
        one = config.model_config_list.config.add(
            name=name, base_path=str(path.resolve()), model_platform="tensorflow"
        )
        numbers = {int(child.name): child for child in path.iterdir() if child.name.isdecimal()}
        for label, number in sorted(labels.get(name, {}).items()):
            if number not in numbers:
                raise mistake("--labels", f"must name a version of {name}", number)
            one.version_labels[label] = number
        if one.version_labels:
            kept = {max(numbers), *one.version_labels.values()}
            one.model_version_policy.specific.versions.extend(sorted(kept))
        unbatched += [f"{name}/{key}" for key in _unbatched(numbers[max(numbers)])]
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
    return Written(command, unbatched)


def _batching(limits: Limits) -> str:
    values = {
        "max_batch_size": limits.max_batch_size,
        "batch_timeout_micros": round(limits.batch_timeout_ms * 1000),
        "max_enqueued_batches": math.ceil(limits.max_queue / limits.max_batch_size),
        "num_batch_threads": os.cpu_count() or 1,
    }
    return "".join(f"{name} {{ value: {value} }}\n" for name, value in values.items())


def _unbatched(version: pathlib.Path) -> list[str]:
    """Returns the signatures of a SavedModel that cannot be asked in batches."""
    model = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    found = []
    for key, signature in model.meta_graphs[0].signature_def.items():
        tensors = [*signature.inputs.values(), *signature.outputs.values()]
        shapes = [tensor.tensor_shape for tensor in tensors]
        if signature.inputs and not all(shape.dim and shape.dim[0].size == -1 for shape in shapes):
            found.append(key)
    return sorted(found)
