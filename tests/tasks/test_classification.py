import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support
from sklearn.utils.class_weight import compute_class_weight

from tfbp.data.examples import Examples
from tfbp.errors import UserError
from tfbp.tasks.classification import Classification
from tfbp.tasks.multi_label import MultiLabel
from tfbp.tasks.ordinal import Ordinal

NAMES = ("ant", "bee", "cat")


def vectors(size=6, labels=None):
    x = np.random.default_rng(0).normal(size=(size, 4)).astype(np.float32)
    return Examples.from_arrays(x, np.arange(size) % 3 if labels is None else np.array(labels))


def dense(units=3, activation=None, features=4):
    layer = keras.layers.Dense(units, activation)
    return keras.Sequential([keras.Input((features,)), layer])


def each(label, predicted):
    return {
        "loss": np.zeros(len(label), np.float32),
        "label": np.array(label),
        "predicted": np.array(predicted),
    }


def test_the_report_of_a_case_counted_by_hand():
    # ant: 2 of 3 found, 1 of 3 guesses wrong; bee: 1 of 2 found; cat: never there, guessed once.
    results = Classification(NAMES).evaluate(
        each([0, 0, 0, 1, 1], [0, 0, 1, 0, 2]) | {"loss": np.float32([1, 2, 3, 4, 5])},
        None,
    )
    assert results["loss"] == 3
    assert results["accuracy"] == 2 / 5
    report = results["report"]
    assert report["per_class"]["ant"] == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3}
    )
    assert report["per_class"]["bee"] == {"precision": 0, "recall": 0, "f1": 0, "support": 2}
    assert report["per_class"]["cat"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert report["macro"] == pytest.approx({"precision": 2 / 9, "recall": 2 / 9, "f1": 2 / 9})
    assert report["weighted"] == pytest.approx({"precision": 0.4, "recall": 0.4, "f1": 0.4})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_the_report_is_that_of_scikit_learn(pairs):
    label, predicted = zip(*pairs, strict=True)
    report = Classification(NAMES).evaluate(each(label, predicted), None)["report"]

    def expected(average):
        return precision_recall_fscore_support(
            label, predicted, labels=range(3), average=average, zero_division=0
        )

    for average in ("macro", "weighted"):
        np.testing.assert_allclose(list(report[average].values()), expected(average)[:3])
    per_class = [list(scores.values()) for scores in report["per_class"].values()]
    np.testing.assert_allclose(per_class, np.transpose(expected(None)))


def test_the_measured_loss_is_the_trained_one():
    task, (x, y) = Classification(NAMES), vectors().read(tf.range(6))
    logits = dense()(x)
    per_example = task.per_example(x, y, logits)
    np.testing.assert_allclose(np.mean(per_example["loss"]), task.loss()(y, logits), rtol=1e-6)
    np.testing.assert_array_equal(per_example["predicted"], np.argmax(logits, axis=1))


def test_the_answer_names_the_likeliest_class():
    task, examples, model = Classification(NAMES), vectors(), dense()
    signature = task.signatures(model, examples)["serving_default"]
    request = signature.request(4)
    assert {name: value.shape for name, value in request.items()} == {"features": (4, 4)}
    answer = {name: value.numpy() for name, value in signature.function(**request).items()}

    logits = request["features"] @ model.get_weights()[0]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-5)
    np.testing.assert_allclose(answer["probabilities"], probabilities, rtol=1e-5)
    np.testing.assert_allclose(answer["probability"], probabilities.max(1), rtol=1e-5)
    assert answer["class"].tolist() == [NAMES[best].encode() for best in logits.argmax(1)]
    assert answer["classes"].tolist() == [[name.encode() for name in NAMES]] * 4


def test_images_are_asked_for_by_that_name():
    images = Examples.from_arrays(np.zeros((3, 8, 8, 1), np.uint8), np.arange(3))
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    signatures = Classification(NAMES).signatures(model, images)
    assert {name: list(signature.inputs) for name, signature in signatures.items()} == {
        "serving_default": ["image"],
        "image_bytes": ["image_bytes"],
    }


def test_labels_txt_lists_the_classes():
    assert Classification(NAMES).assets() == {"labels.txt": "ant\nbee\ncat\n"}


def two_outputs():
    features = keras.Input((4,))
    return keras.Model(features, [keras.layers.Dense(3)(features), features])


def broken():
    model = dense()
    model.set_weights([np.full((4, 3), np.nan), np.zeros(3)])
    return model


@pytest.mark.parametrize(
    ("model", "examples", "message"),
    [
        (lambda: dense(10), vectors(), r"one logit for each of the 3 classes.*\[10\]"),
        (lambda: dense(3, features=5), vectors(), r"take the examples, which are float32 \[4\]"),
        (two_outputs, vectors(), "must have one output"),
        (broken, vectors(), "finite"),
        (dense, vectors(labels=[0, 1, 7, 2, 9, 0]), "from 0 to 2.*7 at row 2, and 1 more"),
        (dense, vectors(labels=[0.5] * 6), "carry one label"),
    ],
    ids=["width", "input", "outputs", "nan", "labels", "targets"],
)
def test_what_does_not_fit_is_refused(model, examples, message):
    with pytest.raises(UserError, match=message):
        Classification(NAMES).check(model(), examples)


def test_what_fits_is_accepted():
    Classification(NAMES).check(dense(), vectors())


@pytest.mark.parametrize("classes", [None, (), ("one",), ("a", "b", "a")])
def test_names_must_be_several_and_different(classes):
    with pytest.raises(UserError, match="two different names"):
        Classification(classes)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_balanced_weights_are_those_of_scikit_learn_and_one_on_average(labels):
    examples = vectors(len(labels), labels)
    weights = Classification(NAMES, class_weights="balanced").class_weights_for(examples)
    present = np.unique(labels)
    expected = compute_class_weight("balanced", classes=present, y=np.array(labels))
    np.testing.assert_allclose(weights[present], expected, rtol=1e-6)
    np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-5)
    assert weights.dtype == np.float32 and weights.shape == (3,)


def test_weights_by_name_are_in_label_order_and_one_where_there_is_none():
    assert Classification(NAMES).class_weights_for(vectors()) is None
    task = Classification(NAMES, class_weights={"cat": 4, "ant": 0.5})
    assert task.class_weights_for(vectors()).tolist() == [0.5, 1, 4]


def test_a_number_weighs_the_class_of_that_name_where_names_are_whole_numbers_and_else_the_label():
    numbered = Classification(("5", "0", "-1"), class_weights={0: 4, np.int64(-1): 3})
    assert numbered.class_weights_for(vectors()).tolist() == [1, 4, 3]
    with pytest.raises(UserError, match=r"`class_weights` must name classes\. Received: '1'"):
        Classification((5, 0, 2), class_weights={1: 4})
    by_label = Classification(NAMES, class_weights={0: 4, 2: 3})
    assert by_label.class_weights_for(vectors()).tolist() == [4, 1, 3]


@pytest.mark.parametrize("classes", [{"ant", "bee"}, "ant", {"species": ("ant", "bee")}, 7])
def test_what_is_no_list_of_names_is_refused(classes):
    for task in (Classification, MultiLabel, Ordinal):
        with pytest.raises(UserError, match="must be a list of names, in the order"):
            task(classes)


def test_weights_and_smoothing_change_the_loss_that_trains_and_not_the_one_measured():
    plain = Classification(NAMES)
    task = Classification(NAMES, label_smoothing=0.3, class_weights="balanced")
    x, y = vectors().read(tf.range(6))
    logits = dense()(x)
    assert float(task.loss()(y, logits)) != float(plain.loss()(y, logits))
    np.testing.assert_array_equal(
        task.per_example(x, y, logits)["loss"], plain.per_example(x, y, logits)["loss"]
    )


def test_classes_are_balanced_by_labels_of_theirs():
    task = Classification(NAMES, class_weights="balanced")
    with pytest.raises(UserError, match=r"from 0 to 2.*7 at row 1"):
        task.class_weights_for(vectors(2, [0, 7]))
    with pytest.raises(UserError, match="carry one label"):
        task.class_weights_for(vectors(2, [0.5, 1.5]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_smoothing": 1}, "`label_smoothing` must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, "`label_smoothing` must be at least 0 and below 1"),
        ({"class_weights": "balance"}, "`class_weights` must be None, 'balanced' or name → weight"),
        ({"class_weights": {"bees": 2}}, "`class_weights` must name classes.*Did you mean 'bee'"),
        ({"class_weights": {"bee": 0}}, "`class_weights` must be above 0 and finite, for 'bee'"),
        ({"class_weights": {"bee": np.nan}}, "`class_weights` must be above 0 and finite"),
        ({"class_weights": {"bee": "2"}}, "`class_weights` must be a number that is above 0"),
        ({"class_weights": {"ant": None}}, "`class_weights` must be a number that is above 0"),
        ({"class_weights": {3: 2.0}}, "`class_weights` must be for the labels 0 to 2"),
        ({"loss": "log_cosh"}, "`loss` must take logits"),
    ],
)
def test_weights_and_smoothing_out_of_range_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Classification(NAMES, **arguments)
