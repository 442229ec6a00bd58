"""What is particular to the language model: cells, targets, fine-tuning on other text."""

import pathlib
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp import driver, recipe

ONE = tf.distribute.get_strategy()

MODULE = recipe.load("lstm_lm", pathlib.Path(__file__).parents[2] / "recipes")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "my", "log"]
# Drawn, not repeated: the audit refuses a held-out text that is the training text.
TEXT = " ".join(random.Random(0).choices(WORDS, k=230))
TINY = {"steps": 8, "units": 5, "embedding": 4, "epochs": 1}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return f"text:{path}"


def build(text, **settings):
    return driver.build(MODULE, MODULE.Config(data=text, **(TINY | settings)), ONE)


def test_the_default_model_is_that_of_the_description():
    config = MODULE.Config()

    assert (config.vocabulary, config.embedding, config.units, config.depth) == (
        10_000,
        128,
        256,
        2,
    )
    assert (config.cell, config.targets, config.tokens) == ("lstm", "all", "word")


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("targets", ["all", "last"])
def test_the_model_answers_logits_for_each_target(text, cell, targets):
    it = build(text, cell=cell, targets=targets, tokens="char")
    tokens, following = it.splits.train.read(np.arange(2))

    logits = it.model(tokens)

    assert logits.shape == (*following.shape, it.splits.vocabulary.size)
    assert [type(layer) for layer in it.model.layers].count(MODULE.CELLS[cell]) == 2


def test_the_plain_cell_is_the_tanh_of_both_maps(text):
    it = build(text, cell="rnn", tokens="char", depth=1)
    tokens, _ = it.splits.train.read(np.arange(1))
    x = it.model.get_layer("embedding")(tokens).numpy()[0]
    w_x, w_h, b = it.model.get_layer("rnn_1").get_weights()

    h = np.zeros(5)
    for step in x:
        h = np.tanh(h @ w_h + step @ w_x + b)

    inner = keras.Model(it.model.input, it.model.get_layer("rnn_1").output)
    np.testing.assert_allclose(inner(tokens)[0, -1], h, atol=1e-5)


def test_tied_embeddings_have_no_output_kernel(text):
    tied, plain = (build(text, tie_embeddings=tie, tokens="char").model for tie in (True, False))

    assert "logits" in [layer.name for layer in plain.layers]
    assert "logits" not in [layer.name for layer in tied.layers]
    embedding, projection = tied.get_layer("embedding"), tied.get_layer("projection")
    logits = projection.output @ keras.ops.transpose(embedding.embeddings)
    probe = keras.Model(tied.input, [logits, tied.output])
    tokens = np.array([[1, 2, 3]], "int32")
    np.testing.assert_allclose(*probe(tokens), atol=1e-6)


def test_an_earlier_run_is_fine_tuned_with_its_own_vocabulary(text, tmp_path):
    first = build(text, tokens="char")
    folder = tmp_path / "run"
    tfbp.fit(
        first.model, first.splits, first.task, first.phases, tfbp.Settings(workdir=str(folder))
    )
    other = tmp_path / "other.txt"
    other.write_text("zebras sit. " * 60)

    second = build(f"text:{other}", tokens="char", weights=str(folder))

    assert second.splits.vocabulary == first.splits.vocabulary
    for ours, theirs in zip(second.model.get_weights(), first.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(tfbp.UserError, match="`tokens` must be 'char', as in the run"):
        build(f"text:{other}", tokens="word", weights=str(folder))
