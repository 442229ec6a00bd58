"""Prints what an export answers: `predict SAVED_MODEL INPUT… [--json]`.

SAVED_MODEL is a version, or the folder of the versions, of which the newest answers. Nothing else
of the run is needed. An INPUT is what the model takes: the path of an image file; a prompt, which
it continues; the numbers of one example, as in 5.1,3.5,1.4,0.2 or length=5.1,width=3.5; or, of
several inputs, a JSON object that names them: {"ids": [3, 1], "title": "a text"}
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfbp.commands import flags
from tfbp.data import images
from tfbp.errors import UserError, mistake
from tfbp.exporting import inspection, layout
from tfbp.reporting.table import table
from tfbp.settings import Fields, field

BATCH = 32
# The first of these that a model has is called.
SIGNATURES = ("generate", "image_bytes", "serving_default")

# Input → its part of one row.
Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PredictFlags(Fields):
    json: bool = field(False, "print one JSON object a line, with all that is answered")
    length: int = field(200, "of a prompt: tokens to write", low=0)
    temperature: float = field(
        0.8, "of a prompt: 0 takes the likeliest token, 1 draws as the model says", low=0
    )
    top_k: int = field(0, "of a prompt: draw from so many likeliest tokens; 0: all", low=0)
    seed: int = field(0, "of a prompt: the same seed draws the same text", low=0)


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    settings, rest = flags.parse(PredictFlags, arguments, about=__doc__)
    if len(rest) < 2:
        raise mistake("predict", "must be given SAVED_MODEL and at least one INPUT", " ".join(rest))
    folder, inputs = layout.newest(pathlib.Path(rest[0])), rest[1:]
    model = _load(folder)
    name = next((name for name in SIGNATURES if name in model.signatures), None)
    if name is None:
        raise mistake("SAVED_MODEL", "must have one of these signatures", SIGNATURES)
    specs = model.signatures[name].structured_input_signature[1]
    known = {item.name for item in dataclasses.fields(settings)}
    scalars = {
        key: _scalar(key, getattr(settings, key), spec.dtype)
        for key, spec in specs.items()
        if spec.shape.rank == 0 and key in known
    }
    batched = {key: spec for key, spec in specs.items() if key not in scalars}
    read = _reader(name, batched, inspection.details(folder))
    # Images whose size the model does not fix may differ in it.
    size = BATCH if all(spec.shape[1:].is_fully_defined() for spec in batched.values()) else 1
    rows = []
    for start in range(0, len(inputs), size):
        batch = [_held(text, read(text), batched) for text in inputs[start : start + size]]
        tensors = {
            key: tf.constant(np.stack([row[key] for row in batch]), spec.dtype)
            for key, spec in batched.items()
        }
        try:
            answer = model.signatures[name](**tensors, **scalars)
        except tf.errors.OpError as error:
            raise UserError(f"`SAVED_MODEL` refuses this: {_reason(error)}") from error
        rows += _rows({key: value.numpy() for key, value in answer.items()})
    for text, row in zip(inputs, rows, strict=True):
        if name == "image_bytes" and _refused(row):
            rule = "must be a JPEG, PNG, GIF or BMP file, not larger than the model takes"
            raise mistake("INPUT", rule, text)
    print(_lines(inputs, rows) if settings.json else _table(inputs, rows))


def _load(path: pathlib.Path) -> tf.Module:
    try:
        return tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise mistake("SAVED_MODEL", f"must load ({reason})", str(path)) from error


def _scalar(key: str, value: float, dtype: tf.DType) -> tf.Tensor:
    if not dtype.min <= value <= dtype.max:
        raise mistake(f"--{key}", f"must be a number that {dtype.name} holds", value)
    return tf.constant(value, dtype)


def _reason(error: tf.errors.OpError) -> str:
    """Returns the message of a graph's error, without the names of its operations."""
    assertion = re.search(r"assertion failed: (.*)", error.message)
    return assertion[1] if assertion else error.message.strip().partition("\n")[0]


def _reader(
    name: str, specs: Mapping[str, tf.TensorSpec], details: Mapping
) -> Callable[[str], Row]:
    """Returns a function that turns an INPUT of the command line into one row of the batch."""
    if specs and all(spec.shape.rank == 1 and spec.dtype.is_floating for spec in specs.values()):
        # A SavedModel alone does not keep the order of its inputs.
        ordered = details.get("signatures", {}).get(name, {}).get("inputs")
        order = list(specs) if len(specs) == 1 else ordered and list(ordered)
        return lambda text: _columns(text, list(specs), order)
    if len(specs) != 1:
        return lambda text: _named(text, specs)
    ((key, spec),) = specs.items()
    if name == "image_bytes":
        return lambda text: {key: np.array(_content(text), object)}
    if spec.dtype == tf.string and spec.shape.rank == 1:
        return lambda text: {key: np.array(text.encode(), object)}
    if spec.shape.rank == 4 and spec.shape[-1] in (1, 3):
        return lambda text: {key: _image(text, *spec.shape[1:])}
    if spec.shape.rank == 2:
        return lambda text: {key: _numbers(text, spec.shape[1])}
    raise UserError(f"`SAVED_MODEL` must take images, text or numbers. It takes {spec}.")


def _content(path: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise mistake("INPUT", f"must be an image file ({error.strerror})", path) from error


def _image(path: str, height: int | None, width: int | None, channels: int) -> np.ndarray:
    try:
        image = tf.io.decode_image(_content(path), expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise mistake("INPUT", "must be a JPEG, PNG, GIF or BMP file", path) from error
    size = (height or image.shape[0], width or image.shape[1])
    return images.resize(image[tf.newaxis], *size, channels)[0].numpy()


def _columns(text: str, names: Sequence[str], order: Sequence[str] | None) -> Row:
    """Returns the columns of "a=1,b=2", or of "1,2" if their order is known."""
    if "=" not in text and order is not None:
        return dict(zip(order, _numbers(text, len(order)), strict=True))
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    values = {name.strip(): value for name, value in pairs}
    if values.keys() != set(names) or len(pairs) > len(values):
        raise mistake("INPUT", "must be name=number between commas, one of each", text, names)
    return {name: _numbers(value, 1)[0] for name, value in values.items()}


def _named(text: str, specs: Mapping[str, tf.TensorSpec]) -> Row:
    """Returns the inputs of a JSON object: `{"ids": [3, 1], "title": "…"}`."""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict) or values.keys() != specs.keys():
        rule = "must be a JSON object that holds one row of each input"
        raise mistake("INPUT", rule, text, specs)
    row = {}
    for key, spec in specs.items():
        shape = tf.TensorShape(spec.shape[1:])
        try:
            row[key] = tf.constant(values[key], spec.dtype).numpy()
        except (TypeError, ValueError):
            row[key] = None
        if row[key] is None or not shape.is_compatible_with(np.shape(row[key])):
            rule = f"must hold {spec.dtype.name} {shape.as_list()} as {key!r}"
            raise mistake("INPUT", rule, values[key])
    return row


def _numbers(text: str, count: int | None) -> np.ndarray:
    """Returns the numbers of "1,2", of which there must be `count`; None: any number."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise mistake("INPUT", "must be numbers between commas", text) from None
    if not all(map(math.isfinite, values)):
        raise mistake("INPUT", "must be finite numbers", text)
    if count not in (None, len(values)):
        wanted = "one number" if count == 1 else f"{count} numbers between commas"
        raise mistake("INPUT", f"must be {wanted}", text)
    return np.array(values)


def _held(text: str, row: Row, specs: Mapping[str, tf.TensorSpec]) -> Row:
    """Returns the row, if the model's types can hold its finite numbers."""
    for key, value in row.items():
        dtype = specs[key].dtype
        with np.errstate(over="ignore"):
            if dtype.is_floating and np.isinf(value.astype(dtype.as_numpy_dtype)).any():
                raise mistake("INPUT", f"must be numbers that {dtype.name} holds", text)
    return row


def _rows(answer: dict[str, np.ndarray]) -> list[dict]:
    """Returns the outputs of each row of the batch, as JSON values."""
    columns = {name: _plain(value) for name, value in answer.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(value: np.ndarray) -> list:
    if value.dtype == object:
        return np.vectorize(lambda text: text.decode(errors="replace"), otypes=[object])(
            value
        ).tolist()
    if value.dtype.kind == "f":  # NaN and infinity are not JSON
        return np.where(np.isfinite(value), value.astype(object), np.array(None)).tolist()
    return value.tolist()


def _refused(row: dict) -> bool:
    """Whether the row is the answer to an image file that cannot be read."""
    if "classes" in row:
        return set(row["classes"]) == {""}
    return row["class"] == "" if "class" in row else set(np.ravel(list(row.values()))) == {None}


def _lines(inputs: Sequence[str], rows: list[dict]) -> str:
    return "\n".join(
        json.dumps({"input": text, **row}, ensure_ascii=False, allow_nan=False)
        for text, row in zip(inputs, rows, strict=True)
    )


def _table(inputs: Sequence[str], rows: list[dict]) -> str:
    if "text" in rows[0]:
        return "\n\n".join(row["text"] for row in rows)
    shown = ("class", "probability") if "class" in rows[0] else ("labels", "probabilities")
    names = [name for name in shown if name in rows[0]] or list(rows[0])
    cells = [
        [text, *(_cell(row[name]) for name in names)]
        for text, row in zip(inputs, rows, strict=True)
    ]
    return table([["input", *names], *cells])


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_cell(each) for each in value if each != "")  # labels that are chosen
    return f"{value:.6g}" if isinstance(value, float) else str(value)
