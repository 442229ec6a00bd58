"""From a `--data` spec to splits: `NAME[:PATH][?key=value&…]`.

For example::

    load("digits?per_class=5", seed=0, size=32)
    load("folder:flowers?classes=rose,tulip&validation=0.2", seed=0, size=224)
    load_text("text:novel.txt?test=0.05", kind="char", vocabulary_size=100, steps=64)
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfbp.data import folders, glyphs, image_files, images, tables, text, tfds
from tfbp.data.splits import Splits
from tfbp.data.vocabulary import Kind, Vocabulary
from tfbp.errors import UserError, mistake


def load_data(
    spec: str,
    *,
    seed: int,
    size: int | None = None,
    channels: int = 3,
    on_bad_example: image_files.OnBad = "fail",
) -> Splits:
    """Loads images or a table.

    Args:
        spec: names one of `SOURCES`.
        seed: of the splits, of the labels that `per_class` keeps, and of data that is made up.
        size: edge of the square images, in pixels; None leaves them as they are. The key `size` of
            the spec comes before it.
        channels: of images: 1 (grey) or 3 (RGB).
        on_bad_example: of a folder of images or a table: see `folders.image_folder` and
            `tables.load`.

    Raises:
        tfbp.UserError: an unknown name or key, a value that its key does not take, a text source,
            data that cannot be used, or a package that is not installed.
    """
    source, path, options = _parse(spec, SOURCES, TEXTS, "images or a table")
    request = _Request(path, options, seed, options.get("size", size), channels, on_bad_example)
    try:
        splits = source.load(request)
    except ImportError as error:
        raise UserError(
            f"{spec!r} needs a package that is not installed: {error}. "
            "Try: pip install 'tfbp[recipes]'"
        ) from error
    if "per_class" in options:
        splits = splits.keep_per_class(options["per_class"], seed=seed)
    return dataclasses.replace(splits, description=spec)


def load_text(
    spec: str,
    *,
    kind: Kind,
    vocabulary_size: int,
    steps: int,
    targets: text.Targets = "all",
    vocabulary: Vocabulary | None = None,
) -> Splits:
    """Loads a text, in windows.

    Args:
        spec: names one of `TEXTS`.
        kind, vocabulary_size, steps, targets, vocabulary: see `text.cut`.

    Raises:
        tfbp.UserError: an unknown name or key, a value that its key does not take, a source that is
            not text, or a text that is too short.
    """
    source, path, options = _parse(spec, TEXTS, SOURCES, "text")
    splits = text.cut(
        source.load(path),
        kind=kind,
        vocabulary_size=vocabulary_size,
        steps=steps,
        targets=targets,
        vocabulary=vocabulary,
        **options,
    )
    return dataclasses.replace(splits, description=spec)


@dataclasses.dataclass(frozen=True)
class _Source:
    """How a name of the catalog is loaded: what stands behind its colon, and the keys it takes."""

    load: Callable
    keys: Mapping[str, Callable[[str], object]]
    path: str = ""


@dataclasses.dataclass(frozen=True)
class _Request:
    path: str
    options: Mapping[str, Any]
    seed: int
    size: int | None
    channels: int
    on_bad_example: image_files.OnBad

    @property
    def cut(self) -> dict[str, Any]:
        """What decides which examples are held out."""
        fractions = {key: self.options[key] for key in _FRACTIONS if key in self.options}
        return {"seed": self.seed, **fractions}

    def splits(self, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> Splits:
        """Cuts labelled images of the requested classes, and resizes them."""
        chosen = self.options.get("classes", names)
        for name in chosen:
            if name not in names:
                raise mistake("classes", "must be names of this data's classes", name, names)
        rows = np.isin(y, [names.index(name) for name in chosen])
        x, y = x[rows], np.array(names)[y[rows]]
        splits = Splits.from_arrays(x, y, classes=chosen, **self.cut)
        return images.resized(splits, self.size, self.channels)


def _parse(
    spec: str, sources: Mapping[str, _Source], others: Mapping[str, _Source], kind: str
) -> tuple[_Source, str, dict[str, Any]]:
    head, _, query = spec.partition("?")
    name, _, path = head.partition(":")
    if name in others:
        raise mistake("data", f"must be {kind} here", spec, sources)
    if name not in sources:
        raise mistake("data", "must begin with the name of a source", name, sources)
    source = sources[name]
    if source.path and not path:
        raise mistake("data", f"must name {source.path}: `{name}:PATH`", spec)
    if path and not source.path:
        raise mistake("data", f"takes no path after `{name}`", spec)
    options = {}
    for pair in query.split("&") if query else ():
        key, _, value = pair.partition("=")
        if key not in source.keys:
            raise mistake("data", f"has a key that `{name}` does not take", key, source.keys)
        if key in options:
            raise mistake("data", "must have each key once", key)
        try:
            options[key] = source.keys[key](value)
        except ValueError as error:
            raise mistake(key, str(error), value) from None
    return source, path, options


# What keys take. A parser raises a ValueError that ends the sentence "`key` must …".


def _count(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError("must be a whole number of at least 1")
    return int(value)


def _fraction(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("must be a fraction of at least 0 and under 1") from None


def _word(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


def _names(value: str) -> tuple[str, ...]:
    return tuple(_word(name.strip()) for name in value.split(","))


def _shape(value: str) -> tuple[int, ...]:
    shape = tuple(_count(part.strip()) for part in value.split(","))
    if len(shape) not in (1, 3):
        raise ValueError("must be one number (features) or three (height, width, channels)")
    return shape


# What names load.


def _digits(request: _Request) -> Splits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    return request.splits(x, bunch.target, [str(name) for name in bunch.target_names])


def _glyphs(request: _Request) -> Splits:
    x, y = glyphs.render(request.options.get("count", 54), request.seed)
    return request.splits(x, y, glyphs.LETTERS)


def _folder(request: _Request) -> Splits:
    if request.size is None:
        raise mistake("size", "must be given for a folder of images", None)
    return folders.image_folder(
        request.path,
        size=request.size,
        channels=request.channels,
        classes=request.options.get("classes"),
        group=request.options.get("group"),
        on_bad_example=request.on_bad_example,
        **request.cut,
    )


def _tfds(request: _Request) -> Splits:
    return tfds.load(
        request.path,
        size=request.size,
        channels=request.channels,
        classes=request.options.get("classes"),
        data_dir=request.options.get("dir"),
        **request.cut,
    )


def _csv(request: _Request) -> Splits:
    if "target" not in request.options:
        raise mistake("target", "must name the column to predict: `csv:PATH?target=COLUMN`", None)
    keys = ("classes", *_TABLE)
    return tables.load(
        request.path,
        on_bad_example=request.on_bad_example,
        **{key: request.options[key] for key in keys if key in request.options},
        **request.cut,
    )


def _random(request: _Request) -> Splits:
    """Classes that differ by a random pattern, so that they can be learnt."""
    shape = request.options.get("shape", (28, 28, 1))
    classes = request.options.get("classes", 10)
    generator = np.random.default_rng(request.seed)
    patterns = generator.normal(size=(classes, *shape))
    y = np.arange(request.options.get("count", 1000)) % classes
    x = patterns[y] + generator.normal(size=(len(y), *shape))
    if len(shape) == 3:
        x = np.clip(128 + 40 * x, 0, 255).astype(np.uint8)
    names = tuple(map(str, range(classes)))
    splits = Splits.from_arrays(x, y, classes=names, **request.cut)
    return images.resized(splits, request.size, request.channels) if x.ndim == 4 else splits


def _line(request: _Request) -> Splits:
    return tables.line(seed=request.seed)


def _proportional(request: _Request) -> Splits:
    return tables.proportional()


def _text(path: str) -> str:
    try:
        return pathlib.Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        rule = f"must name a text file in UTF-8 that can be read ({error})"
        raise mistake("data", rule, path) from error


def _reference(path: str) -> str:
    """The English text of the Python language reference, as CPython carries it."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


_FRACTIONS = {"validation": _fraction, "test": _fraction}
_LABELLED = {"classes": _names, "per_class": _count, **_FRACTIONS}
_TABLE = dict.fromkeys(("target", "weight", "group", "split", "order"), _word)
_IMAGES = {"size": _count, **_LABELLED}

SOURCES: Mapping[str, _Source] = {
    "csv": _Source(_csv, {**_TABLE, **_LABELLED}, "a CSV file"),
    "digits": _Source(_digits, _IMAGES),
    "folder": _Source(_folder, {"group": _word, **_IMAGES}, "a folder of images"),
    "glyphs": _Source(_glyphs, {"count": _count, **_IMAGES}),
    "line": _Source(_line, {}),
    "proportional": _Source(_proportional, {}),
    "random": _Source(_random, {**_IMAGES, "shape": _shape, "classes": _count, "count": _count}),
    "tfds": _Source(_tfds, {"dir": _word, **_IMAGES}, "a data set"),
}

TEXTS: Mapping[str, _Source] = {
    "reference": _Source(_reference, _FRACTIONS),
    "text": _Source(_text, _FRACTIONS, "a text file"),
}
