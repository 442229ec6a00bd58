"""Layer paths: the names of nesting models and of the layer, joined by `/`: `vgg16/block5_conv3`.

Keras's own variable paths leave the nesting model's name out, so that two backbones in one model
look alike. Variables are keyed here by position in the layer tree, never by auto-generated names.
"""

import re
from collections.abc import Iterable, Iterator

import keras

from tfbp.errors import UserError, mistake
from tfbp.modeling import patterns


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


def with_weights(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Returns path → layer of the layers that own variables other than random seeds.

    A model that keeps variables of its own, outside any layer, is listed too, under `model`.

    Raises:
        tfbp.UserError: two layers have the same path, or the model has not been built.
    """
    known: dict[str, keras.layers.Layer] = {}
    if not model.built:
        raise mistake("model", "must be built before its layers are named", model.name)
    for path, layer in layers(model):
        if not layer.weights:
            continue
        if path in known:
            raise UserError(f"Two layers have the path {path!r}. Give one of them another name.")
        known[path] = layer
    covered = {id(variable) for layer in known.values() for variable in layer.weights}
    own = [variable for variable in model.weights if id(variable) not in covered]
    if own:
        raise UserError(
            f"`model` {model.name!r} keeps {len(own)} variables outside any of its layers "
            f"({own[0].path}, …). Put them into a keras.layers.Layer, so that phases can name them."
        )
    return known


def select(
    model: keras.Model, pattern: str, argument: str = "trainable"
) -> dict[str, keras.layers.Layer]:
    """Returns path → layer of those layers with variables whose whole path `pattern` matches.

    Args:
        pattern: regular expression, matched against the whole path.
        argument: the name under which the user gave the pattern, for the message.

    Raises:
        tfbp.UserError: not a regular expression; it, or one of its alternatives, matches no layer:
            the paths are listed; it only matches layers that are not built.
    """
    known = with_weights(model)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise mistake(argument, f"must be a regular expression ({error})", pattern) from error
    matched = {path: layer for path, layer in known.items() if expression.fullmatch(path)}
    unbuilt = [path for path, layer in layers(model) if not layer.built]
    if not matched and any(map(expression.fullmatch, unbuilt)):
        raise UserError(
            f"`model` {model.name!r} has layers without weights as yet: {', '.join(unbuilt[:4])}. "
            "Call it once on an example, `model(x[:1])`: `build` alone does not make the layers of "
            "a subclassed model."
        )
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
