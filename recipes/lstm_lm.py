"""A language model of stacked LSTMs: learns to continue text, by character or by word.

    python -m recipes run lstm_lm
    python -m recipes run lstm_lm --data='text:tinyshakespeare.txt?validation=0' --tokens=char \\
        --steps=64 --batch_size=128 --learning_rate=6e-3 --dropout=0.1 --epochs=14
    python -m recipes predict saved_models/lstm_lm 'The import statement'

The second call, on 1,115,394 characters of Shakespeare, the last tenth held out, gave 1.508 nats
(2.176 bits) a character there, perplexity 4.52: 17.5 minutes of training on 2 cores, 18.6 minutes
from the command to its end.
"""

import dataclasses
import pathlib
from typing import Literal

import keras

import tfbp

CELLS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("reference", "text: reference or text:PATH")
    weights: str | None = tfbp.field(
        None, "the directory of an earlier run, to fine-tune on other text"
    )
    tokens: Literal["char", "word"] = tfbp.field("word", "what a token is")
    vocabulary: int = tfbp.field(10_000, "tokens known at most; the others are one", low=2)
    steps: int = tfbp.field(35, "tokens that a window spans", low=1)
    targets: Literal["all", "last"] = tfbp.field("all", "predict each next token or the last")
    cell: str = tfbp.field("lstm", "recurrent cell", choices=tuple(CELLS))
    embedding: int = tfbp.field(128, "width of the embedding", low=1)
    units: int = tfbp.field(256, "units of each recurrent layer", low=1)
    depth: int = tfbp.field(2, "recurrent layers", low=1)
    tie_embeddings: bool = tfbp.field(False, "read the logits off the embedding, transposed")
    dropout: float = tfbp.field(0.0, "rate of dropout after each recurrent layer", low=0, high=0.95)
    learning_rate: float = tfbp.field(2e-3, "peak rate of Adam", low=1e-8, high=1)
    schedule: str = tfbp.field("cosine", "of the rate", choices=("constant", "cosine"))
    clip_norm: float = tfbp.field(1.0, "largest norm of the gradient", low=1e-8)
    epochs: int = tfbp.field(4, "passes over the text", low=1)


def data(config: Config) -> tfbp.Splits:
    earlier = None
    if config.weights:
        file = pathlib.Path(config.weights, "vocabulary.json")
        if not file.is_file():
            raise tfbp.UserError(
                "`weights` must be the directory of an earlier run of lstm_lm, with its "
                f"vocabulary.json. Received: {config.weights!r}."
            )
        earlier = tfbp.Vocabulary.from_json(file.read_text(encoding="utf-8"))
        if earlier.kind != config.tokens:
            raise tfbp.UserError(
                f"`tokens` must be {earlier.kind!r}, as in the run that `weights` names. "
                f"Received: {config.tokens!r}."
            )
    return tfbp.load_text(
        config.data,
        kind=config.tokens,
        vocabulary_size=config.vocabulary,
        steps=config.steps,
        targets=config.targets,
        vocabulary=earlier,
    )


def task(config: Config, splits: tfbp.Splits) -> tfbp.Task:
    assert splits.vocabulary  # of text
    return tfbp.LanguageModel(splits.vocabulary)


def model(config: Config, splits: tfbp.Splits) -> keras.Model:
    assert splits.vocabulary  # of text
    tokens = keras.Input([None], dtype="int32", name="tokens")
    size = splits.vocabulary.size
    embedding = keras.layers.ReversibleEmbedding(size, config.embedding, name="embedding")
    x = embedding(tokens)
    for number in range(1, config.depth + 1):
        every = number < config.depth or config.targets == "all"
        layer = CELLS[config.cell](config.units, return_sequences=every, name=f"rnn_{number}")
        x = layer(x)
        if config.dropout:
            x = keras.layers.Dropout(config.dropout, name=f"dropout_{number}")(x)
    if config.tie_embeddings:
        x = keras.layers.Dense(config.embedding, name="projection")(x)
        logits = embedding(x, reverse=True)
    else:
        logits = keras.layers.Dense(size, name="logits")(x)
    network = keras.Model(tokens, logits, name="lstm_lm")
    return tfbp.load_weights(network, config.weights)


def phases(config: Config) -> list[tfbp.Phase]:
    return [
        tfbp.Phase(
            "fit",
            trainable=".*",
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            schedule=config.schedule,
            clip_norm=config.clip_norm,
        )
    ]
