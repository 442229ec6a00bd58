"""The body of a REST request as arrays, as https://www.tensorflow.org/tfx/serving/api_rest has it.

Nothing here needs TensorFlow: bodies that are large are read by a process of their own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfbp.serving import examples, json_document, json_numbers, json_text
from tfbp.serving.json_tensor import Array, is_binary, tensor
from tfbp.serving.status import StatusError, invalid

DEFAULT = "serving_default"


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an input of a signature takes.

    Attributes:
        dtype: TensorFlow's name of the type.
        batched: whether the first dimension is there and may have any size.
    """

    dtype: str
    batched: bool


Specs = Mapping[str, Spec]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a body may hold.

    Attributes:
        depth: lists and objects in each other.
        rows: of a signature that takes rows.
    """

    depth: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a request.

    Attributes:
        signature: the name that was asked for, "" for the default one.
        arrays: name of an input → array.
        as_rows: whether they came as rows (`instances`), as which they are answered.
    """

    signature: str
    arrays: dict[str, Array]
    as_rows: bool


def predict(body: bytes, signatures: Mapping[str, Specs] | StatusError, bounds: Bounds) -> Inputs:
    """Returns the inputs that a body for `:predict` holds.

    Args:
        body: JSON.
        signatures: name → what its inputs take; or why there are none, which is raised when the
            body turns out to be JSON.
        bounds: more is refused before any value is looked at.

    Raises:
        StatusError: it holds no inputs that the signature takes.
    """
    if not isinstance(signatures, StatusError):
        inputs = _numbers(body, signatures, bounds)
        if inputs is not None:
            return inputs
    document = json_document.parse(body, bounds.depth)
    name = _signature_name(document)
    specs = _specs(name or DEFAULT, signatures)
    if not specs:
        raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise _format(
            document,
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
        )
    if "instances" in document:
        instances = document["instances"]
        if type(instances) is not list:
            raise _format(document, "Expecting 'instances' to be an list/array")
        if not instances:
            raise _format(document, "No values in 'instances' array")
        if any(spec.batched for spec in specs.values()):
            check_rows(len(instances), bounds.rows)
        return Inputs(name, _rows(instances, specs), True)
    if "inputs" in document:
        return Inputs(name, _columns(document["inputs"], specs, bounds), False)
    raise invalid("Missing 'inputs' or 'instances' key")


def inspect(body: bytes, bounds: Bounds) -> Inputs:
    """Returns the examples that a body for `:classify` or `:regress` holds, serialized.

    Raises:
        StatusError: it holds none.
    """
    document = json_document.parse(body, bounds.depth, last=True)
    name = _signature_name(document)
    context = b""
    if "context" in document:
        context = examples.serialized(document["context"])
    if "examples" not in document:
        raise _format(
            document, "When method is classify, key 'examples' is expected and was not found"
        )
    values = document["examples"]
    if type(values) is not list:
        raise _format(document, "Expecting 'examples' value to be an list/array")
    if not values:
        raise _format(document, "'examples' value is an empty array")
    check_rows(len(values), bounds.rows)
    array = np.empty(len(values), object)
    # Two messages behind each other are one that has the fields of both.
    array[:] = [context + examples.serialized(value) for value in values]
    return Inputs(name, {examples.INPUT: array}, True)


def check_rows(count: int, most: int) -> None:
    """Refuses a request of more rows than a batch has.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    if count > most:
        raise invalid(f"Task size {count} is larger than maximum input batch size {most}")


def _numbers(body: bytes, signatures: Mapping[str, Specs], bounds: Bounds) -> Inputs | None:
    """Returns the inputs of a body that is right and holds nothing but numbers, which is fast."""
    numbers = json_numbers.read(body, bounds.depth)
    if numbers is None or numbers.key not in ("instances", "inputs"):
        return None
    name = numbers.strings.get("signature_name", "")
    specs = signatures.get(name or DEFAULT, {})
    if len(specs) != 1 or {"instances", "inputs"} & numbers.strings.keys():
        return None
    ((key, spec),) = specs.items()
    if spec.batched and numbers.shape[0] > bounds.rows:
        return None
    array = numbers.array(spec.dtype)
    return None if array is None else Inputs(name, {key: array}, numbers.key == "instances")


def _signature_name(document: dict[str, Any]) -> str:
    name = document.get("signature_name", "")
    if type(name) is not str:
        raise _format(
            document, "not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def _specs(name: str, signatures: Mapping[str, Specs] | StatusError) -> Specs:
    if isinstance(signatures, StatusError):
        raise signatures
    if name not in signatures:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    return signatures[name]


def _rows(instances: list[Any], specs: Specs) -> dict[str, Array]:
    if not _named(instances[0]):
        if len(specs) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple input "
                "tensors required as per tensorinfo_map"
            )
        for number, element in enumerate(instances):
            if _named(element):
                raise invalid(f"Expecting value/list but got object at item {number} of input list")
        ((name, spec),) = specs.items()
        return {name: _column(instances, spec, "")}
    for number, element in enumerate(instances):
        if not _named(element):
            raise invalid(f"Expecting object but got list at item {number} of input list")
        if element.keys() != specs.keys():
            where = f"Failed to process element: {number}"
            for key in element.keys() - specs.keys():
                raise invalid(
                    f"{where} key: {key} of 'instances' list. Error: INVALID_ARGUMENT: "
                    f"JSON object: does not have named input: {key}"
                )
            raise invalid(
                f"{where} of 'instances' list. JSON object: {json_text.shown(element)} "
                f"keys must be equal to: {','.join(sorted(specs))}"
            )
    return {
        name: _column([element[name] for element in instances], spec, f" key: {name}")
        for name, spec in specs.items()
    }


def _column(values: list[Any], spec: Spec, key: str) -> Array:
    """Returns one input of all rows. Where it is wrong, says in which row."""
    try:
        return tensor(values, spec.dtype)
    except StatusError as error:
        fault = error
    first = None
    for number, value in enumerate(values):
        try:
            row = tensor(value, spec.dtype)
            first = row if first is None else first
            if row.size != first.size:
                raise invalid(f"Expecting tensor size: {first.size} but got: {row.size}")
            if row.shape != first.shape:
                shapes = [f"[{','.join(map(str, one.shape))}]" for one in (first, row)]
                raise invalid(f"Expecting shape {shapes[0]} but got: {shapes[1]}")
        except StatusError as error:
            raise invalid(
                f"Failed to process element: {number}{key} of 'instances' list. "
                f"Error: {error.code.name}: {error.message}"
            ) from None
    raise fault


def _columns(value: Any, specs: Specs, bounds: Bounds) -> dict[str, Array]:
    if not _named(value):
        if len(specs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = dict.fromkeys(specs, value)
    for name, spec in specs.items():
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        if spec.batched and type(value[name]) is list:
            check_rows(len(value[name]), bounds.rows)
    return {name: tensor(value[name], spec.dtype) for name, spec in specs.items()}


def _named(value: Any) -> bool:
    return type(value) is dict and not is_binary(value)


def _format(document: Any, message: str) -> StatusError:
    return invalid(f"JSON Value: {json_text.shown(document)} {message}")
