"""A head on VGG16, then its last block with it: tfbp, plain Keras, and the floor.

    python benchmarks/two_phase.py [--data=folder:PATH] [--weights=FILE] [--turns=3]

Both sides train the head for some epochs, then block 5 and the head for some more, on the same
32 × 32 images from the same weights. The floor is one forward pass of all images by TensorFlow, cut
before block 5 and behind it, and Keras's `fit` of what trains in each phase on what the pass
answers there. The clock runs from the call of `fit` to its return, of both phases together; the
accuracy is of images that are held out.
"""

import dataclasses
import tempfile

import keras
import numpy as np
import turns
import vgg

from tfbp.modeling import heads
from tfbp.settings import field
from tfbp.training.phase import Phase

HEAD_RATE, TUNE_RATE = 1e-3, 1e-5


@dataclasses.dataclass(frozen=True)
class Flags(vgg.Flags):
    epochs: int = field(5, "of each phase", low=1)


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    images = vgg.load(settings)
    outcomes = measure(settings, images)
    epochs = settings.epochs
    trained = f"{epochs} epochs of the head, {epochs} of block 5 and the head"
    print(vgg.about(settings, trained))
    print(turns.report(outcomes, goals(outcomes, images)))


def measure(settings: Flags, images: vgg.Images) -> turns.Outcomes:
    epochs = settings.epochs
    phases = [
        Phase("head", "head.*", epochs=epochs, learning_rate=HEAD_RATE),
        Phase("tune", "head.*|vgg16/block5_.*", epochs=epochs, learning_rate=TUNE_RATE),
    ]
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "tfbp": lambda: vgg.ours(settings, images, phases, tempfile.mkdtemp(dir=folder)),
            "plain Keras": lambda: _plain(settings, images),
            "floor": lambda: _floor(settings, images),
        }
        return turns.by_turns(sides, settings.turns)


def goals(outcomes: turns.Outcomes, images: vgg.Images) -> list[turns.Goal]:
    faster = turns.ratio(outcomes, "plain Keras", "tfbp")
    return [
        turns.Goal("plain Keras / tfbp", faster, least=2),
        turns.Goal("tfbp / floor", turns.ratio(outcomes, "tfbp", "floor"), most=1.3),
        vgg.equal_accuracy(outcomes, "tfbp", "plain Keras", images),
    ]


def _plain(settings: Flags, images: vgg.Images) -> turns.Outcome:
    model, x = vgg.network(settings), images.x.astype(np.float32)
    backbone = model.get_layer("vgg16")
    options = {"batch_size": settings.batch_size, "epochs": settings.epochs, "verbose": 0}

    def fit():
        backbone.trainable = False
        vgg.compiled(model, HEAD_RATE).fit(x, images.y, **options)
        backbone.trainable = True
        for layer in backbone.layers:
            layer.trainable = layer.name.startswith("block5_")
        vgg.compiled(model, TUNE_RATE).fit(x, images.y, **options)

    return {"seconds": turns.seconds(fit), "accuracy": images.accuracy(model)}


def _floor(settings: Flags, images: vgg.Images) -> turns.Outcome:
    model = vgg.network(settings)
    backbone, head = model.get_layer("vgg16"), model.get_layer("head")
    cut = backbone.get_layer("block4_pool").output
    pixels = keras.Input(images.x.shape[1:])
    before = keras.Model(backbone.input, cut)(heads.preprocessing_of(backbone)(pixels))
    below, first = vgg.forward(keras.Model(pixels, before), images.x)
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
    pooled_rows, second = vgg.forward(keras.Model(cut, pooled), below)
    features = keras.Input(pooled_rows.shape[1:])
    options = {"batch_size": settings.batch_size, "epochs": settings.epochs, "verbose": 0}

    def fit():
        top = vgg.compiled(keras.Model(features, head(features)), HEAD_RATE)
        top.fit(pooled_rows, images.y, **options)
        last = vgg.compiled(keras.Model(cut, head(pooled)), TUNE_RATE)
        last.fit(below, images.y, **options)

    fitted = turns.seconds(fit)
    return {
        "seconds": first + second + fitted,
        "accuracy": images.accuracy(model),
        "forward pass, s": first + second,
        "its own steps, s": fitted,
    }


if __name__ == "__main__":
    main()
