"""Swaps the head of VGG16 and fine-tunes it: first the head alone, then block 5 and the head.

python -m recipes run vgg16 --weights=none --data=glyphs          # pretrain from scratch
python -m recipes run vgg16 --weights=runs/vgg16/1 --data='digits?per_class=5'
python -m recipes run vgg16 --data=folder:flowers --size=224      # from ImageNet
"""

import dataclasses

import keras

import tfbp
from tfbp.data import catalog
from tfbp.modeling import backbones


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("digits", "images with labels")
    weights: str = tfbp.field(
        "imagenet",
        "of the backbone: imagenet; a file; the directory of an earlier run; none: train everything "
        "from a random start; random: keep a random start frozen, to compare with",
    )
    size: int = tfbp.field(32, "height and width that images are scaled to, pixels", low=1)
    hidden: tuple[int, ...] = tfbp.field((), "units of the head's hidden layers", low=1)
    dropout: float = tfbp.field(0.0, "rate of dropout in the head", low=0, high=0.95)
    scratch_epochs: int = tfbp.field(4, "epochs of --weights=none", low=1)
    scratch_rate: float = tfbp.field(1e-4, "learning rate of --weights=none", low=1e-8, high=1)
    head_epochs: int = tfbp.field(60, "epochs of the head alone; 0 leaves the phase out", low=0)
    head_rate: float = tfbp.field(1e-3, "learning rate of the head alone", low=1e-8, high=1)
    tune_epochs: int = tfbp.field(10, "epochs of block 5 and head; 0 leaves the phase out", low=0)
    tune_rate: float = tfbp.field(1e-5, "learning rate of block 5 and head", low=1e-8, high=1)


def data(config):
    return catalog.load(config.data, seed=config.seed, size=config.size)


def task(config, splits):
    return tfbp.Classification(splits.classes)


def model(config, splits):
    backbone = backbones.build(
        keras.applications.VGG16, splits.train.spec[0].shape, config.weights, config.seed
    )
    return tfbp.swap_head(backbone, splits.classes, hidden=config.hidden, dropout=config.dropout)


def phases(config):
    if config.weights == "none":
        wanted = [("scratch", ".*", config.scratch_epochs, config.scratch_rate)]
    else:
        wanted = [
            ("head", "head.*", config.head_epochs, config.head_rate),
            ("tune", "head.*|vgg16/block5_.*", config.tune_epochs, config.tune_rate),
        ]
    return [
        tfbp.Phase(name, trainable, epochs=epochs, learning_rate=rate, schedule="cosine")
        for name, trainable, epochs, rate in wanted
        if epochs
    ]
