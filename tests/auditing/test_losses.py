import keras
import numpy as np
import pytest

from tfbp import (
    Classification,
    LanguageModel,
    MultiLabel,
    Ordinal,
    Regression,
    Splits,
    Vocabulary,
)
from tfbp.auditing import losses
from tfbp.data import text
from tfbp.data.examples import Examples
from tfbp.errors import UserError

NAMES = ("ant", "bee", "cat")
X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
LABELS, VALUES = np.arange(12) % 3, X.sum(axis=1)
ROWS = np.eye(3, dtype=np.float32)[LABELS]


def dense(units=3, activation=None):
    x = keras.Input((4,))
    return keras.Model(x, keras.layers.Dense(units, activation)(x))


def trained_with(loss):
    """Returns a task like Classification, but for its loss."""

    class Own(Classification):
        def loss(self):
            return loss

    return Own(NAMES)


def found(model, y, task):
    return list(losses.findings(model, Splits(Examples.from_arrays(X, y)), task))


SPARSE = keras.losses.SparseCategoricalCrossentropy
CATEGORICAL = keras.losses.CategoricalCrossentropy
BINARY = keras.losses.BinaryCrossentropy
TWO = LABELS % 2
TAGS = (X[:, :3] > 0).astype(np.float32)
FOCAL = keras.losses.CategoricalFocalCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    ("model", "y", "task"),
    [
        (dense, LABELS, Classification(NAMES)),
        (dense, LABELS, Classification(NAMES, label_smoothing=0.1)),
        (lambda: dense(3, "softmax"), LABELS, trained_with(SPARSE())),
        (dense, ROWS, trained_with(CATEGORICAL(from_logits=True))),
        (lambda: dense(3, "softmax"), ROWS, trained_with(CATEGORICAL())),
        (lambda: dense(1), TWO, trained_with(BINARY(from_logits=True))),
        (lambda: dense(1, "sigmoid"), TWO, trained_with(BINARY())),
        (lambda: dense(1), VALUES, Regression()),
        (lambda: dense(1, "sigmoid"), np.abs(VALUES) / 10, Regression()),
        (lambda: dense(3), ROWS, Regression()),
        (lambda: dense(1), TWO, Classification(NAMES[:2], logits=1)),
        (dense, LABELS, Classification(NAMES, loss=FOCAL)),
        (dense, TAGS, MultiLabel(NAMES)),
        (lambda: dense(2), LABELS, Ordinal(NAMES)),
    ],
    ids=[
        *(
            "logits",
            "smoothed",
            "softmax",
            "rows",
            "rows, softmax",
            "binary",
            "sigmoid",
            "1",
            "1 of 0 to 1",
            "3",
        ),
        *("one logit", "focal", "several", "ranks"),
    ],
)
def test_what_fits_passes(model, y, task):
    assert found(model(), y, task) == []


def scalars():
    """Returns a model that answers [batch], not [batch, 1]."""
    x = keras.Input((4,))
    return keras.Model(x, keras.layers.Reshape(())(keras.layers.Dense(1)(x)))


def zeros(units):
    model = dense(units)
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    return model


@pytest.mark.parametrize(
    ("model", "y", "task", "message"),
    [
        (
            lambda: dense(3, "softmax"),
            LABELS,
            Classification(NAMES),
            "answers are probabilities. Leave the softmax of its last layer out",
        ),
        (
            lambda: dense(3, "softmax"),
            LABELS,
            Classification(NAMES, label_smoothing=0.1),
            "Leave the softmax",
        ),
        (
            lambda: keras.Sequential([keras.Input((4,)), dense(3), keras.layers.Softmax()]),
            LABELS,
            Classification(NAMES),
            "Leave the softmax",
        ),
        (lambda: dense(3, "sigmoid"), LABELS, Classification(NAMES), "answers are probabilities"),
        (dense, LABELS, trained_with(SPARSE()), "has `from_logits=False`; its answers range from"),
        (lambda: zeros(3), LABELS, trained_with(SPARSE()), "do not sum to 1"),
        (dense, ROWS, trained_with(CATEGORICAL()), "Give the loss `from_logits=True`"),
        (lambda: dense(1), TWO, trained_with(BINARY()), "Give the loss `from_logits=True`"),
        (
            lambda: dense(1, "sigmoid"),
            TWO,
            trained_with(BINARY(from_logits=True)),
            "Leave the sigmoid",
        ),
        (
            lambda: dense(1, "sigmoid"),
            TWO,
            Classification(NAMES[:2], logits=1),
            "Leave the sigmoid of its last layer out",
        ),
        (lambda: dense(3, "sigmoid"), TAGS, MultiLabel(NAMES), "Leave the sigmoid of its last"),
        (lambda: dense(3, "softmax"), TAGS, MultiLabel(NAMES), "Leave the softmax of its last"),
        (
            lambda: dense(3, "sigmoid"),
            TAGS,
            MultiLabel(NAMES, positive_weights={"ant": 2}),
            "Leave the sigmoid of its last",
        ),
        (lambda: dense(2, "softmax"), LABELS, Ordinal(NAMES), "Leave the softmax of its last"),
        (lambda: dense(3, "softmax"), LABELS, Classification(NAMES, loss=FOCAL), "the softmax"),
        (lambda: dense(3, "relu"), LABELS, Classification(NAMES), "Leave the relu of its last"),
        (lambda: dense(3, "softplus"), TAGS, MultiLabel(NAMES), "Leave the softplus of its last"),
        (lambda: dense(2, "tanh"), LABELS, Ordinal(NAMES), "Leave the tanh of its last"),
        (lambda: dense(3, "hard_sigmoid"), TAGS, MultiLabel(NAMES), "answers are probabilities"),
        (lambda: dense(1, "sigmoid"), VALUES, Regression(), "which are .* of its last layer"),
        (lambda: dense(1, "relu"), VALUES, Regression(), "relu of its last layer answers 0 to inf"),
        (dense, LABELS, MultiLabel(NAMES), "0 or 1 for each label, as floats, .* int64 []"),
        (dense, TAGS, Classification(NAMES), "has 2 labels: several are for `tfbp.MultiLabel`"),
        (lambda: dense(5), LABELS, Classification(NAMES), "the 3 classes. Received: .* [5]"),
        (lambda: dense(2), LABELS, Classification(NAMES), "the 3 classes. Received: .* [2]"),
        (dense, ROWS, Classification(NAMES), "one-hot rows: give `targets.argmax(axis=-1)`"),
        (dense, VALUES, Classification(NAMES), "one label, a whole number"),
        (
            dense,
            LABELS,
            trained_with(CATEGORICAL(from_logits=True)),
            "They are labels: the loss for them is keras.losses.SparseCategoricalCrossentropy",
        ),
        (
            lambda: dense(5),
            ROWS,
            trained_with(CATEGORICAL(from_logits=True)),
            "targets of float32 [3] against answers of shape [5]",
        ),
        (scalars, VALUES, Regression(), "[n] against [n, 1] broadcasts to [n, n]. .* shape []"),
        (lambda: dense(1), ROWS, Regression(), "must answer [3] for each example"),
        (lambda: dense(1), LABELS, Regression(), "must carry numbers to predict, as floats"),
    ],
)
def test_what_does_not_fit_is_named(model, y, task, message):
    (finding,) = found(model(), y, task)
    assert finding.id == "loss-mismatch" and not finding.warning
    rest = finding.message
    for part in message.split(".*"):
        assert part.strip() in rest
        rest = rest.partition(part.strip())[2]


def test_a_loss_of_ones_own_may_compare_several_answers_with_one_value_but_no_other_rank():
    class Quantiles(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)

    class Task(Regression):
        def loss(self):
            return Quantiles()

    assert found(dense(3), VALUES, Task()) == []
    (finding,) = found(scalars(), VALUES, Task())
    assert "broadcasts" in finding.message


WORDS = "to be or not to be that is the question " * 12


@pytest.mark.parametrize(
    ("activation", "extra", "count"), [(None, 0, 0), ("softmax", 0, 1), (None, 2, 1)]
)
@pytest.mark.parametrize("targets", ["all", "last"])
def test_a_language_model_answers_a_logit_for_each_token(targets, activation, extra, count):
    vocabulary = Vocabulary.from_text(WORDS, "word", 20)
    splits = Splits(
        text.windows(WORDS, vocabulary, steps=4, targets=targets), vocabulary=vocabulary
    )
    tokens = keras.Input([None], dtype="int32")
    x = keras.layers.Embedding(vocabulary.size, 3)(tokens)
    x = keras.layers.GRU(3, return_sequences=targets == "all")(x)
    x = keras.layers.Dense(vocabulary.size + extra, activation)(x)
    assert (
        len(list(losses.findings(keras.Model(tokens, x), splits, LanguageModel(vocabulary))))
        == count
    )


def test_what_cannot_be_asked_at_all_is_an_error_of_its_own():
    x = keras.Input((5,))
    with pytest.raises(UserError, match=r"must take the examples, which are float32 \[4\]"):
        found(keras.Model(x, keras.layers.Dense(3)(x)), LABELS, Classification(NAMES))


@pytest.mark.parametrize("given", [("cat", "bee", "ant"), ("ant", "bee", "owl")])
def test_classes_that_a_task_names_otherwise_than_the_examples_are_found(given):
    splits = Splits(Examples.from_arrays(X, LABELS), classes=NAMES)
    (finding,) = losses.findings(dense(), splits, Classification(given))
    assert finding.id == "loss-mismatch"
    assert f"{', '.join(given)} against ant, bee, cat" in finding.message
    assert not list(losses.findings(dense(), splits, Classification(NAMES)))


def test_a_task_may_name_classes_that_have_numbers():
    splits = Splits(Examples.from_arrays(X, LABELS), classes=("0", "1", "2"))
    assert not list(losses.findings(dense(), splits, Classification(NAMES)))


@pytest.mark.parametrize(
    ("task", "units", "y"),
    [
        (Classification(("bee", "ant")), 2, TWO),
        (Classification(("bee", "ant"), logits=1), 1, TWO),
        (Ordinal(("cat", "bee", "ant")), 2, LABELS),
        (MultiLabel(("cat", "bee", "ant")), 3, TAGS),
    ],
    ids=["two logits", "one logit", "ranks", "several"],
)
def test_names_in_another_order_than_those_of_the_examples_are_an_error(task, units, y):
    names = tuple(sorted(task.classes))
    splits = Splits(Examples.from_arrays(X, y), classes=names)
    (finding,) = losses.findings(dense(units), splits, task)
    assert "Give the task `splits.classes`" in finding.message
    if y is TAGS:
        (finding,) = losses.findings(
            dense(units), Splits(Examples.from_arrays(X, y, values=names)), task
        )
        assert "Give the task `splits.classes`" in finding.message


@pytest.mark.parametrize(
    ("task", "units", "y"),
    [
        (MultiLabel(NAMES), 3, TAGS),
        (Classification(NAMES[:2], logits=1), 1, TWO),
        (Ordinal(NAMES), 2, LABELS),
    ],
    ids=["several", "one logit", "ranks"],
)
def test_answers_of_a_subclassed_model_that_look_like_a_sigmoid_s_are_a_warning(task, units, y):
    class Own(keras.Model):
        def __init__(self, end):
            super().__init__()
            self.dense, self.end = keras.layers.Dense(units), end

        def call(self, x, training=None):
            return self.end(self.dense(x))

    (finding,) = found(Own(keras.ops.sigmoid), y, task)
    assert (finding.id, finding.warning) == ("loss-mismatch", True)
    assert "all between 0 and 1, as those of a sigmoid" in finding.message
    keras.utils.set_random_seed(0)
    assert not found(Own(lambda logits: logits), y, task)


def test_a_model_that_does_not_say_that_it_has_one_logit_is_told_how_to():
    (finding,) = found(dense(1), TWO, Classification(NAMES[:2]))
    assert "`Classification(…, logits=1)`" in finding.message
