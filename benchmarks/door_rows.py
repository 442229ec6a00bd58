"""What is tried by `doors.py`: each row a model, examples, a task and phases, all of them tiny.

A row's first phase trains its head alone, so that what is frozen is cached, and the second all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import tfbp

layers = keras.layers
COUNT = 90
WORDS = np.array(["plot", "actor", "score", "scene", "dull", "great", "slow", "warm"])


@dataclasses.dataclass(frozen=True)
class Row:
    """One way in.

    Attributes:
        splits: makes the examples.
        task: makes the task, of the splits.
        model: makes the model, of the splits and the rate of its dropout, which resuming repeats;
            what its first phase trains is called `head…`.
        frozen: whether what comes before the head is cached; what a table looks up is not.
    """

    splits: Callable[[], tfbp.Splits]
    task: Callable[[tfbp.Splits], Any]
    model: Callable[[tfbp.Splits, float], keras.Model]
    frozen: bool = True

    def phases(self) -> list[tfbp.Phase]:
        rates = {"epochs": 2, "learning_rate": 1e-2, "optimizer": "sgd"}
        return [tfbp.Phase("head", ".*head.*", **rates), tfbp.Phase("all", ".*", **rates)]


def numbers() -> np.random.Generator:
    return np.random.default_rng(0)


def labels() -> np.ndarray:
    return np.arange(COUNT) % 3


def _head(x: Any, units: int, rate: float, name: str = "head") -> Any:
    return layers.Dense(units, name=name)(layers.Dropout(rate)(x))


def _two_inputs() -> tfbp.Splits:
    images = numbers().integers(0, 128, (COUNT, 8, 8, 3), dtype=np.uint8)
    images[np.arange(COUNT), :, :, labels()] += 100
    place = numbers().normal(size=(COUNT, 2)) + labels()[:, np.newaxis]
    return tfbp.Splits.from_arrays({"image": images, "place": place}, labels())


def _of_two_inputs(splits: tfbp.Splits, rate: float) -> keras.Model:
    image, place = keras.Input((8, 8, 3), name="image"), keras.Input((2,), name="place")
    x = layers.Conv2D(4, 3, activation="relu", name="body")(layers.Rescaling(1 / 255)(image))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), place])
    return keras.Model({"image": image, "place": place}, _head(x, 3, rate))


def _tokens() -> tfbp.Splits:
    ids = numbers().integers(1, 30, (COUNT, 12))
    ids[:, 3] = 1 + labels()
    lengths = 4 + np.arange(COUNT) % 9
    mask = np.arange(12) < lengths[:, np.newaxis]
    segments = np.zeros((COUNT, 12), int)
    x = {"token_ids": ids * mask, "padding_mask": mask, "segment_ids": segments}
    return tfbp.Splits.from_arrays(x, labels())


def _bert(splits: tfbp.Splits, rate: float) -> keras.Model:
    import keras_hub  # of the extra [hub]

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        dropout=0.0,  # which would draw anew in each epoch, also where it is frozen
        max_sequence_length=12,
    )
    pooled = backbone(backbone.input)["pooled_output"]
    return keras.Model(backbone.input, _head(pooled, 3, rate))


def _strings() -> tfbp.Splits:
    chosen = WORDS[numbers().integers(0, len(WORDS), (COUNT, 5))]
    chosen[:, 2] = WORDS[labels()]
    return tfbp.Splits.from_arrays({"review": [" ".join(row) for row in chosen]}, labels())


def _of_strings(splits: tfbp.Splits, rate: float) -> keras.Model:
    review = keras.Input((), dtype="string", name="review")
    tokens = layers.TextVectorization(output_sequence_length=6, vocabulary=list(WORDS))(review)
    x = layers.Embedding(len(WORDS) + 2, 4, name="words")(tokens)
    return keras.Model({"review": review}, _head(layers.Flatten()(x), 3, rate))


def _vectors() -> np.ndarray:
    return numbers().normal(size=(COUNT, 6)) + labels()[:, np.newaxis]


def _weighted() -> tfbp.Splits:
    return tfbp.Splits.from_arrays(_vectors(), labels(), weights=0.5 + np.arange(COUNT) % 4)


def _grouped() -> tfbp.Splits:
    return tfbp.Splits.from_arrays(_vectors(), labels(), groups=np.arange(COUNT) // 5)


def _of_vectors(splits: tfbp.Splits, rate: float, units: int = 3) -> keras.Model:
    vector = keras.Input((6,))
    x = layers.Dense(8, "tanh", name="body")(vector)
    return keras.Model(vector, _head(x, units, rate))


def _two_kinds() -> tfbp.Splits:
    y = {"species": np.array(["cat", "dog", "eel"])[labels()], "size": _vectors()[:, 0]}
    return tfbp.Splits.from_arrays(_vectors(), y)


def _of_two_outputs(splits: tfbp.Splits, rate: float) -> keras.Model:
    vector = keras.Input((6,))
    x = layers.Dense(8, "tanh", name="body")(vector)
    outputs = {"species": _head(x, 3, rate, "head_species"), "size": _head(x, 1, rate, "head_size")}
    return keras.Model(vector, outputs)


def _two_tasks(splits: tfbp.Splits) -> tfbp.Tasks:
    species = tfbp.Classification(splits.classes["species"])
    return tfbp.Tasks({"species": species, "size": tfbp.Regression()}, loss_weights={"size": 0.5})


def _classification(splits: tfbp.Splits) -> tfbp.Classification:
    return tfbp.Classification(splits.classes)


def _two_classes() -> tfbp.Splits:
    return tfbp.Splits.from_arrays(_vectors(), np.where(labels() > 0, "yes", "no"))


def _of_one_unit(splits: tfbp.Splits, rate: float) -> keras.Model:
    return _of_vectors(splits, rate, 1)


def _tagged() -> tfbp.Splits:
    x = _vectors()
    tags = [[name for name, value in zip("abc", row, strict=False) if value > 1] for row in x]
    return tfbp.Splits.from_arrays(x, tags)


def _several_labels(splits: tfbp.Splits) -> tfbp.MultiLabel:
    return tfbp.MultiLabel(splits.classes, thresholds={"c": 0.3})


def _ranked() -> tfbp.Splits:
    return tfbp.Splits.from_arrays(_vectors(), labels(), classes=("low", "middle", "high"))


def _ranks(splits: tfbp.Splits) -> tfbp.Ordinal:
    return tfbp.Ordinal(splits.classes)


def _of_two_units(splits: tfbp.Splits, rate: float) -> keras.Model:
    return _of_vectors(splits, rate, 2)


def _valued() -> tfbp.Splits:
    return tfbp.Splits.from_arrays(_vectors(), _vectors()[:, :1] * 3)


def _robust(splits: tfbp.Splits) -> tfbp.Regression:
    loss = keras.losses.Huber(delta=0.1)  # which no config of Keras tells
    return tfbp.Regression(loss=loss, metrics=["RootMeanSquaredError"])


# The first three are tried on two workers too.
ROWS = {
    "two inputs": Row(_two_inputs, _classification, _of_two_inputs),
    "KerasHub's BERT": Row(_tokens, _classification, _bert),
    "strings": Row(_strings, _classification, _of_strings, frozen=False),
    "two outputs": Row(_two_kinds, _two_tasks, _of_two_outputs),
    "weights": Row(_weighted, _classification, _of_vectors),
    "groups": Row(_grouped, _classification, _of_vectors),
    "one unit": Row(_two_classes, _classification, _of_one_unit),
    "several labels": Row(_tagged, _several_labels, _of_vectors),
    "ranks": Row(_ranked, _ranks, _of_two_units),
    "own loss and metric": Row(_valued, _robust, _of_one_unit),
}
