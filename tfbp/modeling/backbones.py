"""Where weights come from: ImageNet, a file, an earlier run, or a He start."""

import io
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence

import h5py
import keras

from tfbp.errors import UserError, mistake

IMAGENET = "imagenet"
STARTS = ("none", "random")
# The model of a run, inside its directory.
MODEL_FILE = "model.keras"


def build(
    architecture: Callable[..., keras.Model], shape: Sequence[int], weights: str, seed: int
) -> keras.Model:
    """Returns a model of `keras.applications` without its top, with weights.

    Args:
        architecture: such as `keras.applications.VGG16`.
        shape: height, width and channels of the images.
        weights: "imagenet"; "none" or "random": a He start; the path of a weights file; or the
            directory of an earlier run whose model contains a backbone of the same name.
        seed: of the He start.

    Raises:
        tfbp.UserError: the image size is under the architecture's minimum, or the weights cannot be
            had or do not fit.
    """
    shape = tuple(shape)
    if len(shape) != 3 or shape[2] != 3:
        raise mistake("data", "must be images of three channels", shape)
    try:
        backbone = architecture(include_top=False, weights=None, input_shape=shape)
    except ValueError as error:
        raise mistake("size", f"must suit the backbone ({error})", shape[:2]) from error
    if weights in STARTS:
        he_start(backbone, seed)
    elif weights == IMAGENET:
        return _imagenet(architecture, shape)
    else:
        load(backbone, weights)
    return backbone


def he_start(model: keras.Model, seed: int) -> None:
    """Draws all kernels of a model anew for ReLU (He et al. 2015, eq. 10).

    Keras's own start (Glorot) halves the variance in every ReLU layer: sixteen layers deep and
    without normalisation, VGG16 then stalls at chance.
    """
    for number, layer in enumerate(model.layers):
        if hasattr(layer, "kernel"):
            draw = keras.initializers.HeNormal(seed=seed * 1000 + number)
            layer.kernel.assign(draw(layer.kernel.shape, dtype=layer.kernel.dtype))
            layer.kernel_initializer = draw  # by which the audit knows a random start again


def load(backbone: keras.Model, source: str) -> None:
    """Loads weights into a backbone.

    Args:
        source: a `.weights.h5` file of the backbone, a weights-only `.h5` file of
            `keras.applications`, or the directory of an earlier run.

    Raises:
        tfbp.UserError: no such path, or the weights are not this backbone's.
    """
    path = pathlib.Path(source)
    if not path.exists():
        raise mistake(
            "weights",
            "must be 'imagenet', 'none', 'random', a weights file or the directory of an earlier "
            "run",
            source,
        )
    if path.is_dir():
        earlier = _of_run(path, backbone.name)
        try:
            backbone.set_weights(earlier.get_weights())
        except ValueError as error:
            raise _unfit(source, backbone, error) from error
        return
    if path.suffix != ".h5":
        raise mistake("weights", "must be a file that ends with .weights.h5 or .h5", source)
    _load_file(backbone, path, source)


def load_whole(model: keras.Model, source: str) -> None:
    """Loads all weights of a model.

    Args:
        source: a `.weights.h5` file, or the directory of an earlier run of an equal model.

    Raises:
        tfbp.UserError: no such path, or the weights are not this model's.
    """
    path = pathlib.Path(source)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        rule = "must be a weights file or the directory of an earlier run that has ended"
        raise mistake("weights", rule, source)
    _load_file(model, file, source)


def _load_file(model: keras.Model, file: pathlib.Path, source: str) -> None:
    try:
        model.load_weights(file)
    except (ValueError, OSError, KeyError) as error:
        raise _unfit(source, model, error) from error
    # Keras takes the first layers of a deeper model without a word.
    if (more := _arrays(file) - len(model.weights)) > 0:
        raise mistake(
            "weights", f"must hold the weights of {model.name!r} alone, not {more} more", source
        )


def _arrays(path: pathlib.Path) -> int:
    """Returns how many weights a file holds, without an optimizer's state and random seeds.

    0 for the files of `keras.applications`, whose layers Keras itself counts.
    """
    if path.suffix == ".keras":
        content = zipfile.ZipFile(path).read("model.weights.h5")
    elif path.name.endswith(".weights.h5"):
        content = path.read_bytes()
    else:
        return 0
    found = []
    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(lambda *item: found.append(item))
        return sum(
            isinstance(value, h5py.Dataset)
            and not re.match("optimizer/|(.*/)?seed_generator/", name)
            for name, value in found
        )


def _of_run(directory: pathlib.Path, name: str) -> keras.Model:
    file = directory / MODEL_FILE
    if not file.is_file():
        raise mistake(
            "weights", f"must be a run that has ended (it holds no {MODEL_FILE})", str(directory)
        )
    try:
        model = keras.models.load_model(file, compile=False)
    except (OSError, TypeError, ValueError) as error:  # TypeError: a class of a recipe's own
        rule = f"must be a run whose model is of Keras's own classes and contains {name!r}"
        raise mistake("weights", rule, str(directory)) from error
    models = {layer.name: layer for layer in model.layers if isinstance(layer, keras.Model)}
    if name not in models:
        raise mistake(
            "weights", f"must be a run whose model contains {name!r}", str(directory), models
        )
    return models[name]


def _unfit(source: str, model: keras.Model, error: Exception) -> UserError:
    reason = str(error).strip().partition("\n")[0]
    return mistake("weights", f"must hold the weights of {model.name!r} ({reason})", source)


def _imagenet(architecture: Callable[..., keras.Model], shape: tuple[int, int, int]) -> keras.Model:
    try:
        return architecture(include_top=False, weights=IMAGENET, input_shape=shape)
    except Exception as error:  # Keras raises a bare Exception when a download fails.
        if "fetch failure" not in str(error):
            raise
        file = str(error).partition(": ")[0].rpartition("/")[2]
        cache = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
        raise UserError(
            f"The ImageNet weights could not be downloaded: {cache / file} is not there, and the "
            "network did not answer. Copy the file to that place, or give other weights: "
            "`--weights=FILE` (.weights.h5), `--weights=RUN` (the directory of an earlier run), or "
            "`--weights=none` (train everything from a random start)."
        ) from error
