"""Files of weights from elsewhere: their arrays are read, and no code and no other files."""

import pathlib

import keras

from tfbp.errors import mistake
from tfbp.modeling import hdf5

_SAVE = "model.save_weights('NAME.weights.h5')"


def check_name(source: str) -> None:
    """Refuses what is no file of weights by its name.

    Raises:
        tfbp.UserError: a `.keras` file, one of another kind, or no file.
    """
    if source.endswith(".keras"):
        rule = (
            "must be a file of weights alone: a .keras file says which classes to build. Give the "
            "directory of the run that wrote it; of a model from elsewhere save the weights where "
            f"it was made: {_SAVE}"
        )
        raise mistake("weights", rule, source)
    if not source.endswith(".h5"):
        raise mistake("weights", "must be a file that ends with .weights.h5 or .h5", source)
    if not pathlib.Path(source).is_file():  # Reading a pipe would wait for ever.
        raise mistake("weights", "must be a file or a directory", source)


def load(model: keras.Model, file: pathlib.Path, source: str) -> None:
    """Loads all weights of a model.

    Args:
        file: a `.weights.h5` file; a weights-only `.h5` file of `keras.applications`; or the
            `.keras` file of a run, of which the weights alone are read.
        source: what the user gave, for the message.

    Raises:
        tfbp.UserError: the file is damaged, holds the weights of another model or a whole model, or
            reads from other places. The weights of `model` may then be of both.
    """
    rule = f"must hold the weights of {model.name!r}"
    try:
        contents = hdf5.look_up(file)
    except ValueError as error:
        raise mistake("weights", f"{rule} ({error})", source) from error
    if contents.whole_model:
        alone = "must be a file of weights alone, not of a whole model. Save them where it was made"
        raise mistake("weights", f"{alone}: {_SAVE}", source)
    if contents.elsewhere:
        place = f"({contents.elsewhere!r} is a link, or its numbers lie elsewhere)"
        raise mistake("weights", f"{rule} itself, and lead to no other place {place}", source)
    try:
        model.load_weights(file)
    except Exception as error:  # What Keras raises for another model's weights is in no contract.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise mistake("weights", f"{rule} ({reason})", source) from error
    # Keras takes the first layers of a deeper model without a word; in the older form, that of
    # `keras.applications`, it counts them.
    more = contents.arrays - len(model.weights)
    if more > 0 and file.name.endswith((".weights.h5", ".keras")):
        raise mistake("weights", f"{rule} alone, not {more} more", source)
