import numpy as np
import pytest
import tensorflow as tf

from tfbp.data import text
from tfbp.data.text import windows
from tfbp.data.vocabulary import Vocabulary
from tfbp.errors import UserError

POEM = "The fox, the dog;\nthe fox's den. The dog's den?\n\n\tÉtude (No. 7) — ça va!\n" * 3


def test_windows_predict_each_token_once():
    vocabulary = Vocabulary.from_text(POEM, "char", 1000)
    tokens = vocabulary.encode([POEM])[0].numpy()
    examples = windows(POEM, vocabulary, steps=10)
    x, y = tf.function(examples.read)(tf.range(examples.size))
    assert examples.size == (len(tokens) - 1) // 10
    assert np.array_equal(x.numpy().ravel(), tokens[: examples.size * 10])
    assert np.array_equal(y.numpy().ravel(), tokens[1 : examples.size * 10 + 1])
    assert np.array_equal(y, examples.targets)
    assert examples.spec == (tf.TensorSpec((10,), tf.int32), tf.TensorSpec((10,), tf.int32))
    assert examples.labels is None


def test_windows_with_one_target_predict_the_token_after_them():
    vocabulary = Vocabulary.from_text(POEM, "char", 1000)
    tokens = vocabulary.encode([POEM])[0].numpy()
    examples = windows(POEM, vocabulary, steps=10, targets="last")
    _, y = examples.read(np.arange(examples.size))
    assert np.array_equal(y, tokens[10:])
    assert np.array_equal(y, examples.targets)
    assert examples.spec[1] == tf.TensorSpec((), tf.int32)
    x, y = windows(POEM, vocabulary, steps=10, targets="last", stride=3).read([2])
    assert np.array_equal(x[0], tokens[6:16])
    assert y.numpy() == [tokens[16]]


def test_a_word_stands_for_several_characters():
    vocabulary = Vocabulary.from_text("one two ", "word", 10)
    assert windows("one two " * 5, vocabulary, steps=2).characters_per_token == 4
    assert windows("one two " * 5, vocabulary, steps=2).take([0]).characters_per_token == 4


def test_text_is_cut_in_one_piece_each_and_only_training_text_makes_the_vocabulary():
    content = "ab" * 40 + "cd" * 10 + "ef" * 10
    settings = {"kind": "char", "vocabulary_size": 100, "steps": 4}
    splits = text.cut(content, **settings, validation=1 / 6, test=1 / 6)
    assert splits.vocabulary.tokens == ("[UNK]", "a", "b")
    assert splits.train.size == 19
    assert splits.validation.size == splits.test.size == 4
    assert np.all(splits.test.targets == 0)
    assert splits.classes is None
    again = text.cut(content, **settings, vocabulary=Vocabulary(("[UNK]", "e", "f"), "char"))
    assert again.vocabulary.tokens == ("[UNK]", "e", "f")
    assert text.cut(content, **settings, validation=0, test=0).test is None


def test_text_shorter_than_one_window_is_refused():
    with pytest.raises(UserError, match=r"test text is shorter.* has 10 tokens, and 21 are needed"):
        text.cut("a" * 100, kind="char", vocabulary_size=10, steps=20, validation=0)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"targets": "some"}, {"stride": 0}],
)
def test_settings_out_of_range_are_refused(settings):
    vocabulary = Vocabulary.from_text(POEM, "char", 10)
    with pytest.raises(UserError, match=f"`{next(iter(settings))}`"):
        windows(POEM, vocabulary, **{"steps": 5, **settings})
