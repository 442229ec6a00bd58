import collections
import re

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.data.vocabulary import Vocabulary
from tfbp.errors import UserError

POEM = "The fox, the dog;\nthe fox's den. The dog's den?\n\n\tÉtude (No. 7) — ça va!\n" * 3


@pytest.mark.parametrize("kind", ["char", "word"])
def test_the_most_frequent_tokens_are_known(kind):
    pieces = POEM if kind == "char" else re.findall(r"\w+|\n|[^\w\s]", POEM)
    ranked = sorted(collections.Counter(pieces).items(), key=lambda item: (-item[1], item[0]))
    vocabulary = Vocabulary.from_text(POEM, kind, 8)
    assert vocabulary.tokens == ("[UNK]", *(piece for piece, _ in ranked[:7]))
    assert vocabulary.size == 8


@pytest.mark.parametrize("kind", ["char", "word"])
def test_tokens_are_found_exactly_and_the_rest_is_unknown(kind):
    vocabulary = Vocabulary.from_text(POEM, kind, 1000)
    tokens = vocabulary.encode([POEM, "", "Z zebra"])
    pieces = POEM if kind == "char" else re.findall(r"\w+|\n|[^\w\s]", POEM)
    assert tokens.dtype == tf.int32
    assert [vocabulary.tokens[token] for token in tokens[0].numpy()] == list(pieces)
    assert tokens[1].shape == (0,)
    assert tokens[2].numpy()[0] == 0


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_characters_come_back_as_they_were(strings):
    vocabulary = Vocabulary.from_text("".join(strings), "char", 1000)
    decoded = vocabulary.decode(vocabulary.encode(strings)).numpy()
    assert [string.decode() for string in decoded] == strings


@given(st.text(alphabet="ab '.,\n\t(]é—9_\u00a0", max_size=40))
@settings(max_examples=40, deadline=None)
def test_decoded_words_are_the_same_words_again(string):
    vocabulary = Vocabulary.from_text(string, "word", 1000)
    tokens = vocabulary.encode([string])
    again = vocabulary.encode(vocabulary.decode(tokens))
    assert again.to_list() == tokens.to_list()


def test_decoded_words_read_like_text():
    line = "The fox's den.\nÉtude, ça va!\n"
    vocabulary = Vocabulary.from_text(POEM, "word", 1000)
    assert vocabulary.decode(vocabulary.encode([line])).numpy()[0].decode() == line


def test_vocabularies_go_through_json():
    vocabulary = Vocabulary.from_text(POEM, "word", 1000)
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


def test_an_exported_function_carries_the_vocabulary(tmp_path):
    vocabulary = Vocabulary.from_text(POEM, "word", 1000)
    module = tf.Module()
    module.round_trip = tf.function(
        lambda strings: vocabulary.decode(vocabulary.encode(strings)),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    strings = tf.constant(["the dog; the zebra", "", "den?"])
    expected = [b"the dog; the [UNK]", b"", b"den?"]
    assert loaded.round_trip(strings).numpy().tolist() == expected


def test_vocabulary_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match="Did you mean 'word'"):
        Vocabulary.from_text(POEM, "words", 10)
    with pytest.raises(UserError, match="`vocabulary_size` must be at least 2"):
        Vocabulary.from_text(POEM, "char", 1)
