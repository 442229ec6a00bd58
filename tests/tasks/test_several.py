"""Several outputs, beside plain Keras with a loss and metrics for each."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.errors import UserError
from tfbp.exporting import layout

layers = keras.layers
NUMBERS = np.random.default_rng(0)
LABELS = np.arange(48) % 3
X = (NUMBERS.normal(size=(48, 4)) + LABELS[:, None]).astype(np.float32)
SIZES = X.sum(axis=1, keepdims=True)
Y = {"species": np.array(["cat", "dog", "eel"])[LABELS], "size": SIZES}
WEIGHTS = {"size": 0.25}


def model(**units):
    keras.utils.set_random_seed(0)
    vector = keras.Input((4,), name="vector")
    x = layers.Dense(5, "tanh", name="body")(vector)
    names = units or {"species": 3, "size": 1}
    return keras.Model(vector, {name: layers.Dense(n, name=name)(x) for name, n in names.items()})


def splits(y=Y, **settings):
    return tfbp.Splits.from_arrays(X, y, **{"validation": 0.2, "test": 0.2, **settings})


def tasks(**settings):
    species = tfbp.Classification(("cat", "dog", "eel"), **settings)
    return tfbp.Tasks({"species": species, "size": tfbp.Regression()}, loss_weights=WEIGHTS)


def phase(epochs=1):
    return tfbp.Phase("fit", ".*", epochs=epochs, learning_rate=0.1, optimizer="sgd")


@pytest.fixture(scope="module")
def run():
    return tfbp.fit(model(), splits(), tasks(), phase(3), tfbp.Settings(batch_size=8))


@pytest.mark.parametrize("class_weights", [None, {"dog": 3.0}])
@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 2, 48)])
def test_one_update_is_that_of_keras_with_a_loss_for_each_output(class_weights, weights):
    ours, theirs = model(), model()
    whole = splits(weights=weights, validation=0, test=0)
    tfbp.fit(ours, whole, tasks(class_weights=class_weights), phase(), tfbp.Settings(batch_size=48))

    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = {"species": crossentropy, "size": keras.losses.MeanSquaredError()}
    theirs.compile(keras.optimizers.SGD(0.1), losses, loss_weights={"species": 1, **WEIGHTS})
    of_size = np.ones(48) if weights is None else weights
    of_species = of_size * np.where((LABELS == 1) & (class_weights is not None), 3.0, 1.0)
    y = {"species": LABELS, "size": SIZES}
    theirs.train_on_batch(X, y, sample_weight={"species": of_species, "size": of_size})
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_results_are_those_of_keras_by_its_names(run):
    x, y = run.splits.test.read(tf.range(run.splits.test.size))
    expected = run.model.evaluate(x, y, verbose=0, return_dict=True)
    found = run.result["metrics"]["test"]
    assert expected.keys() == found.keys() - {"species_report"}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert set(found["species_report"]["per_class"]) == {"cat", "dog", "eel"}


def test_each_epoch_has_the_loss_and_the_metrics_of_each_output(run):
    for row in run.history:
        for name in ("loss", "species_loss", "size_loss", "species_accuracy", "size_mae"):
            assert np.isfinite(row[name]) and np.isfinite(row[f"val_{name}"])
        total = row["val_species_loss"] + 0.25 * row["val_size_loss"]
        assert row["val_loss"] == pytest.approx(total)


def test_an_export_answers_what_each_task_does_by_the_name_of_its_output(run, tmp_path):
    version = run.export(str(tmp_path / "pets"))
    serve = tf.saved_model.load(version).signatures["serving_default"]
    answer = serve(features=tf.constant(X[:5]))
    outputs = run.model(X[:5])
    names = "class", "probability", "classes", "probabilities", "logits"
    assert set(answer) == {"size_y", *(f"species_{name}" for name in names)}
    np.testing.assert_allclose(answer["species_logits"], outputs["species"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answer["size_y"], outputs["size"], rtol=1e-5, atol=1e-5)
    due = np.array([b"cat", b"dog", b"eel"])[np.argmax(outputs["species"], axis=1)]
    assert answer["species_class"].numpy().tolist() == due.tolist()
    labels = tmp_path / "pets" / "1" / layout.EXTRA / "species_labels.txt"
    assert labels.read_text() == "cat\ndog\neel\n"


def test_two_tasks_of_one_kind_are_told_apart(tmp_path):
    y = {"left": LABELS, "right": (LABELS + 1) % 3}
    both = splits(y)
    one = tfbp.Tasks({name: tfbp.Classification(names) for name, names in both.classes.items()})
    run = tfbp.fit(model(left=3, right=3), both, one, phase(), tfbp.Settings(workdir=str(tmp_path)))
    assert {"left_accuracy", "right_accuracy"} <= run.result["metrics"]["test"].keys()
    signature = one.signatures(run.model, both.train)["serving_default"]
    assert {"left_class", "right_class"} <= signature.answer(signature.request(2)).keys()
    assert (tmp_path / "left_labels.txt").read_text() == "0\n1\n2\n"


def test_of_two_classes_one_logit_will_do():
    y = {"large": (SIZES[:, 0] > SIZES.mean()).astype(int), "size": SIZES}
    large = tfbp.Tasks({"large": tfbp.Classification(("no", "yes")), "size": tfbp.Regression()})
    run = tfbp.fit(model(large=1, size=1), splits(y), large, phase())
    x, y = run.splits.train.read(tf.range(run.splits.train.size))
    right = (run.model(x)["large"][:, 0] > 0) == (y["large"] == 1)
    assert run.result["metrics"]["train"]["large_accuracy"] == pytest.approx(np.mean(right))


def test_gradients_of_the_sum_are_checked():
    batch = X[:4], {"species": LABELS[:4], "size": SIZES[:4]}
    errors = tfbp.check_gradients(model(), batch, loss=tasks().loss(), entries=4)
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: (model(), splits(LABELS), tasks()), "`y` must be a dict .* size, species"),
        (
            lambda: (model(), splits({"kind": LABELS, "size": SIZES}), tasks()),
            r"what there are tasks for: size, species. Received: \['kind', 'size'\]",
        ),
        (
            lambda: (model(kind=3, size=1), splits(), tasks()),
            "by the same names: 'size', 'species'. Received: 'kind', 'size'",
        ),
        (
            lambda: (model(), splits(), tfbp.Classification(("cat", "dog", "eel"))),
            r"`y` must be one array .* `tfbp.Tasks.* Received: 'dict of size, species'",
        ),
        (
            lambda: (model(species=4, size=1), splits(), tasks()),
            "of the output 'species': `model` must answer one logit for each of the 3 classes",
        ),
        (
            lambda: (model(), splits(classes={"species": ["eel", "dog", "cat"]}), tasks()),
            "of the output 'species': `task` must name the classes as the examples do",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_named(given, message):
    with pytest.raises(UserError, match=message):
        tfbp.fit(*given(), phase())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "must be a dict: name of an output"),
        (
            ({"a": tfbp.Regression}, {"b": 1}),
            "a task for one output as 'a'|must be for the outputs",
        ),
        (({"a": tfbp.Regression()}, {"b": 1}), "must be for the outputs. Received: 'b'"),
        (({"a": tfbp.Regression()}, {"a": -1}), "at least 0 and finite, for 'a'"),
        (({"a": tfbp.Regression()}, {"a": "1"}), "a number that is at least 0 and finite, for 'a'"),
        (({"a": tfbp.Regression()}, [1]), "`loss_weights` must be name of an output → number"),
        (({"a": tfbp.LanguageModel(None)},), "a task for one output as 'a'"),
    ],
)
def test_tasks_that_cannot_be_are_refused(arguments, message):
    tasks, *weights = arguments
    with pytest.raises(UserError, match=message):
        tfbp.Tasks(tasks, loss_weights=weights[0] if weights else None)
