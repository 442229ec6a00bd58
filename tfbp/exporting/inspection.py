"""An export's signatures and details, read from its files: nothing is loaded or run."""

import json
import pathlib
from collections.abc import Iterable, Mapping

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from tfbp.errors import mistake
from tfbp.exporting import layout

# Signature → "inputs" and "outputs" → name → type, such as "float32 [batch, 10]".
Signatures = dict[str, dict[str, dict[str, str]]]


def signatures(folder: pathlib.Path) -> Signatures:
    """Returns the signatures of a SavedModel; of an export of tfbp in the order of its task.

    Raises:
        tfbp.UserError: it is damaged, or holds no graph to serve.
    """
    try:
        content = (folder / layout.GRAPH).read_bytes()
        graphs = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    except DecodeError:
        graphs = []
    served = [graph.signature_def for graph in graphs if "serve" in graph.meta_info_def.tags]
    if len(served) != 1:
        raise mistake("SAVED_MODEL", "must hold one graph to serve, and be whole", str(folder))
    order = details(folder).get("signatures", {})
    described = {
        name: {part: _types(getattr(signature, part)) for part in ("inputs", "outputs")}
        for name, signature in served[0].items()
        if not name.startswith("__")  # TensorFlow's own
    }
    return {
        name: {
            part: _ordered(types, order.get(name, {}).get(part, ()))
            for part, types in described[name].items()
        }
        for name in _ordered(described, order)
    }


def details(folder: pathlib.Path) -> dict:
    """Returns `tfbp.json` of an export; {} of a SavedModel without one.

    Raises:
        tfbp.UserError: it is damaged.
    """
    file = folder / layout.DETAILS
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise mistake("SAVED_MODEL", f"must have a whole tfbp.json ({error})", str(file)) from error


def _ordered(items: Mapping, first: Iterable[str]) -> dict:
    """Returns the items whose names are in `first` in that order, then the others by name."""
    names = [name for name in first if name in items]
    return {name: items[name] for name in [*names, *sorted(items.keys() - set(names))]}


def _types(tensors: Mapping) -> dict[str, str]:
    types = {}
    for name, tensor in tensors.items():
        sizes = [dimension.size for dimension in tensor.tensor_shape.dim]
        sizes = ["?" if size < 0 else str(size) for size in sizes]
        if sizes[:1] == ["?"]:
            sizes[0] = "batch"
        shape = "any shape" if tensor.tensor_shape.unknown_rank else f"[{', '.join(sizes)}]"
        types[name] = f"{tf.as_dtype(tensor.dtype).name} {shape}"
    return types
