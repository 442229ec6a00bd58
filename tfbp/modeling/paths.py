"""Layer paths: the names of nesting models and of the layer, joined by `/`: `vgg16/block5_conv3`.

Keras's own variable paths leave the nesting model's name out, so that two backbones in one model
look alike. Variables are keyed here by position in the layer tree, never by auto-generated names.

Paths lead into layers that consist of others too: `vit/encoder/block_3/attention/query`. Such a
layer is opened like a model if all its variables belong to layers inside it.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator

import keras

from tfbp.errors import UserError, mistake
from tfbp.modeling import keras_graph, patterns


def layers(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields (path, layer) of each layer that is no model itself, once, in the graph's order."""
    yield from _walk(model, prefix, set())


def _walk(
    model: keras.Model, prefix: str, seen: set[int]
) -> Iterator[tuple[str, keras.layers.Layer]]:
    for layer in model.layers:
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        path = prefix + layer.name
        if isinstance(layer, keras.Model):
            yield from _walk(layer, path + "/", seen)
        else:
            yield path, layer


@dataclasses.dataclass(frozen=True)
class Division:
    """A model's variables, divided among its layers.

    Attributes:
        layers: path → innermost layer that owns variables, in the order of the graph.
        opened: path → layer that consists of others, the outer ones first.
        names: path of each of `layers` → that, and the paths of the opened layers around it: a
            pattern that matches one of them means this layer.
    """

    layers: dict[str, keras.layers.Layer]
    opened: dict[str, keras.layers.Layer]
    names: dict[str, list[str]]


def divide(model: keras.Model) -> Division:
    """Finds the layers that own variables other than random seeds.

    Raises:
        tfbp.UserError: two layers have the same path, the model keeps variables outside any layer,
            or it has not been built.
    """
    if not model.built:
        raise mistake("model", "must be built before its layers are named", model.name)
    division = Division({}, {}, {})
    known: dict[int, str] = {}
    for path, layer in layers(model):
        for part_path, part, around in _parts(path, layer, division.opened):
            if id(part) in known:  # also in another layer that was opened
                division.names[known[id(part)]] += around
                continue
            if part_path in division.layers:
                raise UserError(
                    f"Two layers have the path {part_path!r}. Give one of them another name."
                )
            known[id(part)] = part_path
            division.layers[part_path], division.names[part_path] = part, [part_path, *around]
    covered = _ids(weight for layer in division.layers.values() for weight in layer.weights)
    own = [variable for variable in model.weights if id(variable) not in covered]
    if own:
        raise UserError(
            f"`model` {model.name!r} keeps {len(own)} variables outside any of its layers "
            f"({own[0].path}, …). Put them into a keras.layers.Layer, so that phases can name them."
        )
    return division


def _parts(
    path: str, layer: keras.layers.Layer, opened: dict[str, keras.layers.Layer]
) -> Iterator[tuple[str, keras.layers.Layer, list[str]]]:
    """Yields (path, layer, paths of opened layers around it) of what owns a layer's variables."""
    if not layer.weights:
        return
    inside = _inside(layer)
    if not inside:
        yield path, layer, []
        return
    opened[path] = layer
    for part in inside:
        for part_path, owner, around in _parts(f"{path}/{part.name}", part, opened):
            yield part_path, owner, [path, *around]


def _inside(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers that a layer consists of; none, if it is one by itself.

    A recurrent layer's cell is its arithmetic, and no layer that anybody knows by name.
    """
    if isinstance(layer, keras.layers.RNN):
        return []
    # A sequential model keeps its graph among its sublayers.
    parts = layer.layers if isinstance(layer, keras.Model) else keras_graph.sublayers(layer)
    parts = [part for part in parts if part.weights]
    covered = _ids(weight for part in parts for weight in part.weights)
    names = {part.name for part in parts}
    whole = len(names) < len(parts) or _ids(layer.weights) - covered
    return [] if whole else parts


def _ids(variables: Iterable[keras.Variable]) -> set[int]:
    return {id(variable) for variable in variables}


def with_weights(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Returns path → layer of the innermost layers that own variables other than random seeds.

    Raises:
        tfbp.UserError: as `divide`.
    """
    return divide(model).layers


def select(
    model: keras.Model, pattern: str, argument: str = "trainable"
) -> dict[str, keras.layers.Layer]:
    """Returns path → layer of those layers with variables whose whole path `pattern` matches, or
    the path of a layer around them.

    Args:
        pattern: regular expression, matched against the whole path.
        argument: the name under which the user gave the pattern, for the message.

    Raises:
        tfbp.UserError: not a regular expression; it, or one of its alternatives, matches no layer:
            the paths are listed; it only matches layers that are not built.
    """
    division = divide(model)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise mistake(argument, f"must be a regular expression ({error})", pattern) from error
    matched = {
        path: layer
        for path, layer in division.layers.items()
        if any(map(expression.fullmatch, division.names[path]))
    }
    unbuilt = [path for path, layer in layers(model) if not layer.built]
    if not matched and any(map(expression.fullmatch, unbuilt)):
        raise UserError(
            f"`model` {model.name!r} has layers without weights as yet: {', '.join(unbuilt[:4])}. "
            "Call it once on an example, `model(x[:1])`: `build` alone does not make the layers of "
            "a subclassed model."
        )
    known = [*division.layers, *division.opened]
    if not matched:
        raise mistake(argument, "must match the path of at least one layer", pattern, known)
    check_alternatives(argument, expression, known)
    return matched


def check_alternatives(argument: str, pattern: re.Pattern[str], known: Iterable[str]) -> None:
    """Checks that each alternative of a pattern that matches some paths matches one itself.

    Raises:
        tfbp.UserError: one matches none.
    """
    known = list(known)
    for alternative in patterns.unmatched(pattern, known):
        rule = f"must match at least one layer with each alternative of {pattern.pattern!r}"
        raise mistake(argument, rule, alternative, known)
