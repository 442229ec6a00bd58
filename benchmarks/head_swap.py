"""A head trained on a frozen VGG16: tfbp, cold and warm, plain Keras, PyTorch, and the floor.

    python benchmarks/head_swap.py [--data=folder:PATH] [--weights=FILE] [--turns=3]

All sides train the same head on the same 32 × 32 images from the same weights. The warm side finds
the cache that the cold one has filled. The floor is one forward pass of all images by TensorFlow
and Keras's `fit` of the head alone on what it answers. The clock runs from the call of `fit` to its
return; the accuracy is of images that are held out. PyTorch runs in a process of its own.
"""

import dataclasses
import tempfile

import keras
import numpy as np
import torch_sides
import turns
import vgg

from tfbp.settings import field
from tfbp.training.phase import Phase

RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Flags(vgg.Flags):
    epochs: int = field(10, "of the head alone", low=1)
    torch_python: str = field("", "the Python that has PyTorch; default: this one")


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    images = vgg.load(settings)
    outcomes = measure(settings, images)
    print(vgg.about(settings, f"{settings.epochs} epochs of the head"))
    print(turns.report(outcomes, goals(outcomes, images)))


def measure(settings: Flags, images: vgg.Images) -> turns.Outcomes:
    phases = [Phase("head", "head.*", epochs=settings.epochs, learning_rate=RATE)]
    with tempfile.TemporaryDirectory() as folder:
        place = ""

        def cold():
            nonlocal place
            place = tempfile.mkdtemp(dir=folder)
            return vgg.ours(settings, images, phases, place)

        sides = {
            "tfbp": cold,
            "tfbp, warm": lambda: vgg.ours(settings, images, phases, place),
            "plain Keras": lambda: _plain(settings, images),
            "PyTorch": lambda: _torch(settings, images),
            "floor": lambda: _floor(settings, images),
        }
        return turns.by_turns(sides, settings.turns)


def goals(outcomes: turns.Outcomes, images: vgg.Images) -> list[turns.Goal]:
    def ratio(over, under, **bound):
        return turns.Goal(f"{over} / {under}", turns.ratio(outcomes, over, under), **bound)

    return [
        ratio("plain Keras", "tfbp", least=6),
        ratio("plain Keras", "tfbp, warm", least=30),
        ratio("tfbp", "floor", most=1.3),
        ratio("PyTorch", "tfbp"),
        ratio("PyTorch", "tfbp, warm"),
        vgg.equal_accuracy(outcomes, "tfbp", "plain Keras", images),
    ]


def _plain(settings: Flags, images: vgg.Images) -> turns.Outcome:
    model, x = vgg.network(settings), images.x.astype(np.float32)
    model.get_layer("vgg16").trainable = False
    vgg.compiled(model, RATE)
    options = {"batch_size": settings.batch_size, "epochs": settings.epochs, "verbose": 0}
    taken = turns.seconds(lambda: model.fit(x, images.y, **options))
    return {"seconds": taken, "accuracy": images.accuracy(model)}


def _torch(settings: Flags, images: vgg.Images) -> turns.Outcome:
    model = vgg.network(settings)
    layers = model.get_layer("vgg16").layers
    weights = [layer.get_weights() for layer in layers if hasattr(layer, "kernel")]
    kernel, bias = model.get_layer("head").get_weights()
    return torch_sides.run(
        "head_swap",
        settings.torch_python,
        x=images.x.astype(np.float32),
        y=images.y,
        test_x=images.held_out_x.astype(np.float32),
        test_y=images.held_out_y,
        **{f"kernel_{number}": pair[0] for number, pair in enumerate(weights)},
        **{f"bias_{number}": pair[1] for number, pair in enumerate(weights)},
        kernel=kernel,
        bias=bias,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        rate=RATE,
    )


def _floor(settings: Flags, images: vgg.Images) -> turns.Outcome:
    model = vgg.network(settings)
    head = model.get_layer("head")
    rows, passed = vgg.forward(keras.Model(model.input, head.input), images.x)
    features = keras.Input(rows.shape[1:])
    small = vgg.compiled(keras.Model(features, head(features)), RATE)
    options = {"batch_size": settings.batch_size, "epochs": settings.epochs, "verbose": 0}
    fitted = turns.seconds(lambda: small.fit(rows, images.y, **options))
    return {
        "seconds": passed + fitted,
        "accuracy": images.accuracy(model),
        "forward pass, s": passed,
        "its own steps, s": fitted,
    }


if __name__ == "__main__":
    main()
