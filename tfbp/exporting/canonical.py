"""A SavedModel whose bytes do not tell what else its process has done.

TensorFlow names each function by a number that counts all functions of a process, and identifies
a SavedModel by a random number. Here functions are numbered within the SavedModel, in the order in
which they were made, and the identity is that of the contents. Seen on TensorFlow 2.21.
"""

import pathlib
import re
from collections.abc import Iterable
from typing import Any

from tensorflow.core.protobuf import fingerprint_pb2, saved_model_pb2

from tfbp.exporting import layout

_NUMBERED = re.compile(r"(.*_)(\d+)")
_UNUSED = re.compile(r"_\d+(___redundant_placeholder\d+)$")
_FINGERPRINT = "fingerprint.pb"
_ARGUMENT = "_user_specified_name"


def rewrite(folder: pathlib.Path) -> None:
    """Rewrites the SavedModel in a folder."""
    file = folder / layout.GRAPH
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for meta_graph in saved.meta_graphs:
        _rename(meta_graph)
    file.write_bytes(saved.SerializeToString(deterministic=True))
    file = folder / _FINGERPRINT
    fingerprint = fingerprint_pb2.FingerprintDef.FromString(file.read_bytes())
    for name in ("saved_model_checksum", "saved_object_graph_hash", "graph_def_program_hash"):
        fingerprint.ClearField(name)  # They are of what has been rewritten.
    fingerprint.uuid = str(fingerprint.checkpoint_hash)
    file.write_bytes(fingerprint.SerializeToString(deterministic=True))


def _rename(meta_graph: Any) -> None:
    library = meta_graph.graph_def.library
    names = _numbered(function.signature.name for function in library.function)
    for function in library.function:
        name = function.signature.name
        function.signature.name = names.get(name, name)
        _rename_calls(function.node_def, names)
        for argument in function.signature.input_arg:  # unused ones, named after a function
            argument.name = _UNUSED.sub(r"\1", argument.name)
        for argument in function.arg_attr.values():
            if argument.attr[_ARGUMENT].s.isdigit():  # of a variable: a count of tensors
                del argument.attr[_ARGUMENT]
    functions = sorted(library.function, key=lambda function: str(function.signature.name))
    copies = [type(function).FromString(function.SerializeToString()) for function in functions]
    del library.function[:]
    library.function.extend(copies)
    for gradient in library.gradient:
        gradient.function_name = names.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = names.get(gradient.gradient_func, gradient.gradient_func)
    _rename_calls(meta_graph.graph_def.node, names)
    objects = meta_graph.object_graph_def
    for node in objects.nodes:
        if node.HasField("function"):
            renamed = [names.get(name, name) for name in node.function.concrete_functions]
            node.function.concrete_functions[:] = renamed
        elif node.HasField("bare_concrete_function"):
            one = node.bare_concrete_function
            one.concrete_function_name = names.get(
                one.concrete_function_name, one.concrete_function_name
            )
        elif node.HasField("captured_tensor"):
            one = node.captured_tensor
            one.concrete_function = names.get(one.concrete_function, one.concrete_function)
    concrete = {
        name: function.SerializeToString() for name, function in objects.concrete_functions.items()
    }
    objects.concrete_functions.clear()
    for name, content in concrete.items():
        objects.concrete_functions[names.get(name, name)].ParseFromString(content)


def _numbered(functions: Iterable[str]) -> dict[str, str]:
    """Returns each name with its number replaced by its rank among all numbers."""
    matches = {name: match for name in functions if (match := _NUMBERED.fullmatch(name))}
    numbers = sorted({int(match[2]) for match in matches.values()})
    ranks = {number: rank for rank, number in enumerate(numbers)}
    return {name: f"{match[1]}{ranks[int(match[2])]}" for name, match in matches.items()}


def _rename_calls(nodes: Iterable[Any], names: dict[str, str]) -> None:
    for node in nodes:
        node.op = names.get(node.op, node.op)
        for value in node.attr.values():
            if value.HasField("func"):
                value.func.name = names.get(value.func.name, value.func.name)
            elif value.HasField("list"):
                for function in value.list.func:
                    function.name = names.get(function.name, function.name)
