"""Mistakes in preprocessing and in the examples, in the order of the audit's ids."""

from collections.abc import Callable

import keras
import numpy as np

import tfbp
from faults.setting import CLASSES, Fault, X, Y, examples, fit, network, ours
from tfbp.data.examples import Examples

SIZE = 8
IMAGES = np.random.default_rng(1).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)
BRIGHT = (IMAGES.mean(axis=(1, 2, 3)) > np.median(IMAGES.mean(axis=(1, 2, 3)))).astype("int64")


def vgg16(preprocess: Callable) -> keras.Model:
    """Returns a small model under the name of VGG16, behind its preprocessing, with a head."""
    images = keras.Input((SIZE, SIZE, 3))
    features = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(images)
    inner = keras.Model(images, features, name="vgg16")
    draw = np.random.default_rng(7)
    inner.set_weights([draw.uniform(-0.1, 0.1, each.shape) for each in inner.get_weights()])
    return tfbp.swap_head(inner, CLASSES, preprocess=preprocess)


def preprocessing(name: str, wrong: Callable) -> Fault:
    right = keras.applications.vgg16.preprocess_input

    def plain():
        model = vgg16(wrong)
        model.get_layer("vgg16").trainable = False
        fit(model, IMAGES.astype("float32"), BRIGHT)
        images = keras.ops.convert_to_tensor(IMAGES.astype("float32"))
        features = [model.get_layer("vgg16")(step(images)).numpy() for step in (right, wrong)]
        off = np.abs(features[1] - features[0]).mean() / np.abs(features[0]).mean()
        return f"features are off by {off:.0%} of their mean"

    splits = tfbp.Splits.from_arrays(IMAGES, BRIGHT, classes=CLASSES)
    return Fault(name, "preprocessing", plain, lambda: ours(vgg16(wrong), "head", splits))


def rounded_input() -> Fault:
    stamps = 1_700_000_000 + 60 * np.arange(80)
    minutes = np.arange(80) // 2 % 2  # changes every other minute

    def model():
        inputs = keras.Input((1,))
        x = keras.layers.Rescaling(1 / 2400, -1_700_002_400 / 2400)(inputs)
        return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))

    def plain():
        fit(model(), stamps[:, np.newaxis], minutes)
        return (
            f"{len(stamps)} different minutes are {len({*stamps.astype('float32')})} to the model"
        )

    def splits():
        return tfbp.Splits.from_arrays(stamps, minutes, classes=CLASSES)

    return Fault(
        "time stamps that float32 rounds",
        "rounded-input",
        plain,
        lambda: ours(model(), ".*", splits()),
    )


def split_overlap() -> Fault:
    # Labels by lot: nothing can be learnt of an example that was not trained on.
    lot = np.random.default_rng(3).integers(0, 2, len(X))
    rows = slice(0, 20)  # of the training data, taken for validation

    def model():
        return network(keras.layers.Dense(256, "relu"), keras.layers.Dense(256, "relu"))

    def plain():
        trained = model()
        settings = {"metrics": ["accuracy"], "epochs": 150, "validation_data": (X[rows], lot[rows])}
        accuracy = fit(trained, y=lot, **settings).history["val_accuracy"][-1]
        return f"validation accuracy {accuracy:.2f}, where labels are drawn by lot"

    def splits():
        train, validation = Examples.from_arrays(X, lot), Examples.from_arrays(X[rows], lot[rows])
        return tfbp.Splits(train, validation, None, classes=CLASSES)

    return Fault(
        "validation examples are trained on",
        "split-overlap",
        plain,
        lambda: ours(model(), ".*", splits()),
    )


def duplicates() -> Fault:
    x, y = (
        np.concatenate([X, np.repeat(X[:1], 80, axis=0)]),
        np.concatenate([Y, np.repeat(Y[0], 80)]),
    )

    def plain():
        fit(network(), x, y)
        return f"{np.mean((x == x[0]).all(axis=1)):.0%} of the loss is one example's"

    def splits():
        train = Examples.from_arrays(x, y)
        return tfbp.Splits(train, Examples.from_arrays(*examples(20)), None, classes=CLASSES)

    return Fault(
        "one example eighty times more",
        "duplicates",
        plain,
        lambda: ours(network(), ".*", splits()),
    )


def near_copies() -> Fault:
    """Makes the mistake of cutting readings of the same machine apart, whose labels are by lot."""
    draw = np.random.default_rng(5)
    machines = draw.normal(size=(40, 8)).astype("float32")
    x = machines.repeat(6, axis=0) + draw.normal(0, 1e-3, (240, 8)).astype("float32")
    lot = draw.integers(0, 2, 40).repeat(6)

    def model():
        inputs = keras.Input((8,))
        hidden = keras.layers.Dense(256, "relu", name="hidden")(inputs)
        return keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden))

    def splits():
        return tfbp.Splits.from_arrays(x, lot, classes=CLASSES, validation=0.2, test=0)

    def plain():
        train, held_out = (part.read(range(part.size)) for part in splits().parts().values())
        settings = {"metrics": ["accuracy"], "epochs": 150, "validation_data": held_out}
        accuracy = fit(model(), *train, **settings).history["val_accuracy"][-1]
        return f"validation accuracy {accuracy:.2f}, where labels are drawn by lot"

    return Fault(
        "readings of one machine on both sides of the cut",
        "near-copies",
        plain,
        lambda: ours(model(), ".*", splits()),
    )


def recall(model: keras.Model, label: int) -> str:
    x, y = examples(200)
    right = model(x[y == label]).numpy().argmax(axis=-1) == label
    return f"finds {right.sum()} of {right.size} new examples of {CLASSES[label]!r}"


def few_of_a_class(name: str, due: str, count: int) -> Fault:
    """Makes the mistake of training on `count` examples of the second class."""
    kept = np.concatenate([np.flatnonzero(Y == 0), np.flatnonzero(Y == 1)[:count]])

    def plain():
        model = network()
        fit(model, X[kept], Y[kept], epochs=50)
        return recall(model, 1)

    def splits():
        train = Examples.from_arrays(X[kept], Y[kept])
        return tfbp.Splits(train, Examples.from_arrays(*examples(20)), None, classes=CLASSES)

    return Fault(name, due, plain, lambda: ours(network(), ".*", splits()))


def faults() -> list[Fault]:
    vgg = keras.applications.vgg16.preprocess_input
    other = keras.applications.resnet_v2.preprocess_input
    return [
        preprocessing("preprocessing left out", lambda x: x),
        preprocessing("preprocessing applied twice", lambda x: vgg(vgg(x))),
        preprocessing("preprocessing of ResNet50V2 for VGG16", other),
        rounded_input(),
        split_overlap(),
        duplicates(),
        near_copies(),
        few_of_a_class("no training example of a class", "class-missing", 0),
        few_of_a_class("two training examples of a class", "imbalance", 2),
    ]
