"""Where weights come from: ImageNet, a file, an earlier run, or a He start."""

import os
import pathlib
from collections.abc import Callable, Sequence

import keras

from tfbp import storage
from tfbp.errors import UserError, mistake, reason
from tfbp.modeling import keras_graph, weight_files

IMAGENET = "imagenet"
STARTS = ("none", "random")
# The model of a run, inside its directory.
MODEL_FILE = "model.keras"


def load_backbone(
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
        load_backbone_weights(backbone, weights)
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


def load_backbone_weights(backbone: keras.Model, source: str) -> None:
    """Loads weights into a backbone.

    Args:
        source: a `.weights.h5` file of the backbone, a weights-only `.h5` file of
            `keras.applications`, or the directory of an earlier run.

    Raises:
        tfbp.UserError: no such path, the weights are not this backbone's, a file that holds more
            than weights, or a run whose files are not what its manifest says.
    """
    path = pathlib.Path(source)
    if not path.exists():
        starts = ", ".join(map(repr, (IMAGENET, *STARTS)))
        rule = f"must be {starts}, a weights file or the directory of an earlier run"
        raise mistake("weights", rule, source)
    if not path.is_dir():
        weight_files.check_name(source)
        weight_files.load(backbone, path, source)
        return
    earlier = _nested(_model_of_run(path, source), backbone.name, source)
    try:
        backbone.set_weights(earlier.get_weights())
    except ValueError as error:
        rule = f"must hold the weights of {backbone.name!r} ({reason(error)})"
        raise mistake("weights", rule, source) from error


def load_weights(model: keras.Model, source: str | None) -> keras.Model:
    """Loads all weights of a model, and returns it.

    Args:
        source: a `.weights.h5` file, or the directory of an earlier run of an equal model; None:
            the weights stay as they are.

    Raises:
        tfbp.UserError: as `load_backbone_weights`.
    """
    if source is None:
        return model
    path = pathlib.Path(source)
    if path.is_dir():
        path = _model_of_run(path, source)
    elif not path.exists():
        raise mistake("weights", "must be a weights file or the directory of a run", source)
    else:
        weight_files.check_name(source)
    weight_files.load(model, path, source)
    return model


def _model_of_run(directory: pathlib.Path, source: str) -> pathlib.Path:
    """Returns the file of a run's model, when it is what the run's manifest says."""
    file = directory / MODEL_FILE
    if not file.is_file():
        rule = f"must be a run that has ended (it holds no {MODEL_FILE})"
        raise mistake("weights", rule, source)
    try:
        storage.verify(directory, [MODEL_FILE])
    except storage.Damaged as error:
        rule = (
            f"must be the directory of a run that nobody has changed since. {error} Of a model "
            "from elsewhere give a file of its weights, NAME.weights.h5"
        )
        raise mistake("weights", rule, source) from error
    return file


def _nested(file: pathlib.Path, name: str, source: str) -> keras.Model:
    """Returns the model of that name inside the model of a run."""
    try:
        model = keras_graph.load_safely(file)
    except Exception as error:  # what a class that is not known here or a Lambda layer raises
        rule = (
            f"must be a run whose model is of Keras's own classes, without Lambda layers, and "
            f"contains {name!r}"
        )
        raise mistake("weights", rule, source) from error
    models = {layer.name: layer for layer in model.layers if isinstance(layer, keras.Model)}
    if name not in models:
        raise mistake("weights", f"must be a run whose model contains {name!r}", source, models)
    return models[name]


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
