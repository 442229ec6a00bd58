"""Prints what an export answers: `predict SAVED_MODEL INPUT… [--json]`.

SAVED_MODEL is a version, or the folder of the versions, of which the newest answers. Nothing else
of the run is needed. An INPUT is what the model takes: the path of an image file; a prompt, which
it continues; or the numbers of one example, as in 5.1,3.5,1.4,0.2
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfbp import recipe
from tfbp.commands import flags
from tfbp.data import images
from tfbp.errors import UserError, mistake
from tfbp.reporting.table import table

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Settings(flags.Settings):
    json: bool = recipe.field(False, "print one JSON object a line, with all that is answered")
    length: int = recipe.field(200, "of a prompt: tokens to write", low=0)
    temperature: float = recipe.field(
        0.8, "of a prompt: 0 takes the likeliest token, 1 draws as the model says", low=0
    )
    top_k: int = recipe.field(0, "of a prompt: draw from so many likeliest tokens; 0: all", low=0)
    seed: int = recipe.field(0, "of a prompt: the same seed draws the same text", low=0)


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    settings, rest = flags.parse(Settings, arguments, about=__doc__)
    if len(rest) < 2:
        raise mistake("predict", "must be given SAVED_MODEL and at least one INPUT", " ".join(rest))
    model = _load(_version(pathlib.Path(rest[0])))
    function, batched, scalars = _signature(model, settings)
    spec = function.structured_input_signature[1][batched]
    inputs = rest[1:]
    read = _reader(spec)
    rows = []
    for start in range(0, len(inputs), BATCH):
        values = np.stack([read(text) for text in inputs[start : start + BATCH]])
        answer = function(**{batched: tf.constant(values, spec.dtype)}, **scalars)
        rows += _rows({name: value.numpy() for name, value in answer.items()})
    print(_lines(inputs, rows) if settings.json else _table(inputs, rows))


def _version(path: pathlib.Path) -> pathlib.Path:
    if (path / "saved_model.pb").is_file():
        return path
    versions = [child for child in path.glob("*/saved_model.pb") if child.parent.name.isdecimal()]
    if not versions:
        raise mistake("SAVED_MODEL", "must be a SavedModel, or a folder of its versions", str(path))
    return max(versions, key=lambda child: int(child.parent.name)).parent


def _load(path: pathlib.Path) -> tf.Module:
    try:
        return tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise mistake("SAVED_MODEL", f"must load ({reason})", str(path)) from error


def _signature(model: tf.Module, settings: Settings) -> tuple[Callable, str, dict[str, tf.Tensor]]:
    """Returns the signature to ask, the name of its batched input, and its other inputs."""
    name = "generate" if "generate" in model.signatures else "serving_default"
    if name not in model.signatures:
        raise mistake("SAVED_MODEL", "must have this signature", name, model.signatures)
    function = model.signatures[name]
    specs = function.structured_input_signature[1]
    batched = [name for name, spec in specs.items() if spec.shape.rank != 0]
    known = [item.name for item in dataclasses.fields(settings)]
    scalars = {name: spec for name, spec in specs.items() if name not in batched}
    if len(batched) != 1 or not scalars.keys() <= set(known):
        raise mistake(f"signature {name}", "must take one batch of inputs", sorted(specs))
    values = {key: tf.constant(getattr(settings, key), spec.dtype) for key, spec in scalars.items()}
    return function, batched[0], values


def _reader(spec: tf.TensorSpec) -> Callable[[str], np.ndarray]:
    """Returns what makes one input, as the command line gives it, one row of the batch."""
    if spec.dtype == tf.string and spec.shape.rank == 1:
        return lambda text: np.array(text.encode(), object)
    if spec.shape.rank == 4 and spec.shape[-1] in (1, 3):
        return lambda text: _image(text, *spec.shape[1:])
    if spec.shape.rank in (1, 2):
        return lambda text: _numbers(text, spec)
    raise UserError(f"`SAVED_MODEL` must take images, text or numbers. It takes {spec}.")


def _image(path: str, height: int | None, width: int | None, channels: int) -> np.ndarray:
    try:
        content = tf.constant(pathlib.Path(path).read_bytes())
        image = tf.io.decode_image(content, expand_animations=False)
    except OSError as error:
        raise mistake("INPUT", f"must be an image file ({error.strerror})", path) from error
    except tf.errors.InvalidArgumentError as error:
        raise mistake("INPUT", "must be a JPEG, PNG, GIF or BMP file", path) from error
    size = (height or image.shape[0], width or image.shape[1])
    return images.resize(image[tf.newaxis], *size, channels)[0].numpy()


def _numbers(text: str, spec: tf.TensorSpec) -> np.ndarray:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise mistake("INPUT", "must be numbers between commas", text) from None
    if not all(map(math.isfinite, values)):
        raise mistake("INPUT", "must be finite numbers", text)
    count = 1 if spec.shape.rank == 1 else spec.shape[1] or len(values)
    if len(values) != count:
        wanted = "one number" if count == 1 else f"{count} numbers between commas"
        raise mistake("INPUT", f"must be {wanted}", text)
    return np.array(values).reshape(spec.shape[1:].rank and [count])


def _rows(answer: dict[str, np.ndarray]) -> list[dict]:
    """Returns for each row of the batch its outputs as JSON values."""
    columns = {name: _plain(value) for name, value in answer.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(value: np.ndarray) -> list:
    if value.dtype == object:
        return np.vectorize(lambda text: text.decode(errors="replace"), otypes=[object])(
            value
        ).tolist()
    if value.dtype.kind == "f":  # NaN and infinity are not JSON
        return np.where(np.isfinite(value), value.astype(object), None).tolist()
    return value.tolist()


def _lines(inputs: Sequence[str], rows: list[dict]) -> str:
    return "\n".join(
        json.dumps({"input": text, **row}, ensure_ascii=False, allow_nan=False)
        for text, row in zip(inputs, rows, strict=True)
    )


def _table(inputs: Sequence[str], rows: list[dict]) -> str:
    if "text" in rows[0]:
        return "\n\n".join(row["text"] for row in rows)
    names = [name for name in ("class", "probability") if name in rows[0]] or list(rows[0])
    cells = [
        [text, *(_cell(row[name]) for name in names)]
        for text, row in zip(inputs, rows, strict=True)
    ]
    return table([["input", *names], *cells])


def _cell(value) -> str:
    if isinstance(value, list):
        return ",".join(map(_cell, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
