"""Swaps the head of VGG16 and fine-tunes it: first the head alone, then the last block with it.

    python -m recipes run vgg16 --weights=none --data=glyphs          # pretrain from scratch
    python -m recipes run vgg16 --weights=runs/vgg16/1 --data='digits?per_class=5'
    python -m recipes run vgg16 --data=folder:flowers --size=224      # from ImageNet

`make run` pretrains on `glyphs` and fine-tunes on `digits?per_class=5` with `--last_block=4`: test
accuracy 0.939, on a frozen random backbone 0.866 (seed 0, 2 cores, 4:04 minutes in all). Over seeds
0 to 4 and 1,438 test images each (benchmarks/glyphs_to_digits.py, 8:02 minutes): 0.874 against
0.817, the 95 % interval of the difference +0.047 to +0.067. From six classes of CIFAR-10 to the
other four, 50 labels a class, `--tune_rate=1e-4`: 0.734 after the head, 0.746 after both phases, on
4,000 test images.
"""

import dataclasses

import keras

import tfbp


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("digits", "images with labels")
    weights: str = tfbp.field(
        "imagenet",
        "of the backbone: imagenet; a file; the directory of an earlier run; none: train all of it "
        "from a random start; random: keep a random start frozen, to compare with, which needs "
        "--allow=random-frozen",
    )
    size: int = tfbp.field(32, "height and width that images are scaled to, pixels", low=1)
    flip: bool = tfbp.field(False, "augmentation: mirror every second image, left to right")
    shift: float = tfbp.field(0.0, "augmentation: largest shift, part of an edge", low=0, high=0.9)
    crop: float = tfbp.field(0.0, "augmentation: largest part of an edge cut off", low=0, high=0.9)
    colour: float = tfbp.field(0.0, "augmentation: largest change of colours", low=0, high=0.9)
    last_block: int = tfbp.field(
        5,
        "blocks after this one are left out: fewer suit small images and far-off tasks",
        low=1,
        high=5,
    )
    hidden: tuple[int, ...] = tfbp.field((), "units of the head's hidden layers", low=1)
    dropout: float = tfbp.field(0.0, "rate of dropout in the head", low=0, high=0.95)
    label_smoothing: float = tfbp.field(
        0.0, "part of each label that is spread over all classes", low=0, high=0.9
    )
    class_weights: str = tfbp.field(
        "none", "of the loss; balanced: rare classes count more", choices=("none", "balanced")
    )
    scratch_epochs: int = tfbp.field(4, "epochs of --weights=none", low=1)
    scratch_rate: float = tfbp.field(1e-4, "learning rate of --weights=none", low=1e-8, high=1)
    head_epochs: int = tfbp.field(30, "epochs of the head alone; 0 leaves the phase out", low=0)
    head_rate: float = tfbp.field(1e-3, "learning rate of the head alone", low=1e-8, high=1)
    tune_epochs: int = tfbp.field(
        10, "epochs of last block and head; 0 leaves the phase out", low=0
    )
    tune_rate: float = tfbp.field(1e-5, "learning rate of last block and head", low=1e-8, high=1)


def data(config: Config) -> tfbp.Splits:
    splits = tfbp.load_data(
        config.data, seed=config.seed, size=config.size, on_bad_example=config.on_bad_example
    )
    return splits.augmented(
        tfbp.augmentation(
            flip=config.flip, shift=config.shift, crop=config.crop, colour=config.colour
        )
    )


def task(config: Config, splits: tfbp.Splits) -> tfbp.Task:
    return tfbp.Classification(
        splits.classes,
        label_smoothing=config.label_smoothing,
        class_weights=None if config.class_weights == "none" else config.class_weights,
    )


def model(config: Config, splits: tfbp.Splits) -> keras.Model:
    backbone = tfbp.load_backbone(
        keras.applications.VGG16, splits.train.spec[0].shape, config.weights, config.seed
    )
    if config.last_block < 5:
        features = backbone.get_layer(f"block{config.last_block}_pool").output
        backbone = keras.Model(backbone.input, features, name=backbone.name)
    return tfbp.swap_head(backbone, splits.classes, hidden=config.hidden, dropout=config.dropout)


def phases(config: Config) -> list[tfbp.Phase]:
    if config.weights == "none":
        epochs, rate = config.scratch_epochs, config.scratch_rate
        return [tfbp.Phase("scratch", trainable=".*", epochs=epochs, learning_rate=rate)]
    wanted = [
        ("head", "head.*", config.head_epochs, config.head_rate),
        ("tune", f"head.*|vgg16/block{config.last_block}_.*", config.tune_epochs, config.tune_rate),
    ]
    return [
        tfbp.Phase(name, trainable, epochs=epochs, learning_rate=rate, schedule="cosine")
        for name, trainable, epochs, rate in wanted
        if epochs
    ]
