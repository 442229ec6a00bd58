"""Models of several inputs, and of text, from their arrays to what a server is asked."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.caching import cache as feature_cache
from tfbp.caching import prefix
from tfbp.commands import predict
from tfbp.errors import UserError
from tfbp.modeling import freezing
from tfbp.tasks import sample_outputs
from tfbp.training import batches

layers = keras.layers
NUMBERS = np.random.default_rng(0)
LABELS = np.arange(48) % 3
WORDS = np.array(["plot", "actor", "score"])
X = {
    "ids": np.where(np.arange(5) == 2, 4 + LABELS[:, None], NUMBERS.integers(0, 4, (48, 5))),
    "age": NUMBERS.normal(size=48) + LABELS,
    "about": [f"a {word} {row}" for row, word in enumerate(WORDS[LABELS])],
}
TOKENS = np.zeros((2, 5), np.int32)


def splits(*names, **settings):
    return tfbp.Splits.from_arrays({name: X[name] for name in names}, LABELS, **settings)


def of_numbers(structure=dict, dropout=0.0):
    """Returns a model of ids [5] and an age, which it takes as a dict or as a list."""
    inputs = {
        "ids": keras.Input((5,), dtype="int32", name="ids"),
        "age": keras.Input((1,), name="age"),
    }
    x = layers.Flatten()(layers.Embedding(7, 4, name="words")(inputs["ids"]))
    x = layers.Dense(6, "tanh", name="body")(layers.Concatenate()([x, inputs["age"]]))
    outputs = layers.Dense(3, name="head")(layers.Dropout(dropout)(x))
    return keras.Model(inputs if structure is dict else list(inputs.values()), outputs)


def of_text():
    about = keras.Input((), dtype="string", name="about")
    vectorize = layers.TextVectorization(output_sequence_length=3, vocabulary=list(WORDS))
    x = layers.Flatten()(layers.Embedding(5, 4, name="words")(vectorize(about)))
    return keras.Model({"about": about}, layers.Dense(3, name="head")(x))


def phase(**settings):
    usual = {"trainable": ".*", "epochs": 2, "learning_rate": 0.1, "optimizer": "sgd"}
    return tfbp.Phase(**{"name": "fit", **usual, **settings})


@pytest.mark.parametrize("structure", [dict, list])
def test_one_update_is_that_of_keras_with_a_dict(structure):
    keras.utils.set_random_seed(0)
    ours = of_numbers(structure)
    theirs = keras.models.clone_model(ours)
    theirs.set_weights(ours.get_weights())
    whole = splits("ids", "age", validation=0, test=0)
    task = tfbp.Classification(whole.classes)
    tfbp.fit(ours, whole, task, phase(epochs=1), tfbp.Settings(batch_size=48))

    theirs.compile(keras.optimizers.SGD(0.1), task.loss())
    x = {"ids": X["ids"].astype(np.int32), "age": X["age"].astype(np.float32)}
    theirs.fit(x, LABELS, batch_size=48, verbose=0)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns the run of a model of numbers, and its export's folder."""
    folder = tmp_path_factory.mktemp("numbers")
    keras.utils.set_random_seed(0)
    parts = splits("ids", "age")
    run = tfbp.fit(of_numbers(list), parts, tfbp.Classification(parts.classes), phase())
    return run, run.export(str(folder))


def test_an_export_takes_each_input_by_its_name(exported):
    run, folder = exported
    loaded = tf.saved_model.load(folder)
    serve = loaded.signatures["serving_default"]
    specs = serve.structured_input_signature[1]
    assert specs["ids"] == tf.TensorSpec([None, 5], tf.int32, name="ids")
    assert specs["age"] == tf.TensorSpec([None], tf.float32, name="age")
    x, _ = run.splits.test.read([0, 1])
    np.testing.assert_allclose(serve(**x)["logits"], run.model(x), rtol=1e-5, atol=1e-6)


def test_predict_takes_a_json_object(exported, capsys):
    run, folder = exported
    row = {"ids": [1, 2, 5, 3, 0], "age": 1.25}
    predict.main(None, [folder, json.dumps(row), "--json"])
    answer = json.loads(capsys.readouterr().out)
    x = {"ids": np.array([row["ids"]]), "age": np.array([row["age"]], np.float32)}
    np.testing.assert_allclose(answer["logits"], run.model(x)[0], rtol=1e-4, atol=1e-5)
    for wrong, message in (
        ("1,2", "must be a JSON object"),
        ('{"ids": [1, 2, 5, 3, 0]}', "must be a JSON object"),
        ('{"ids": [1, 2], "age": 1}', r"must hold int32 \[5\] as 'ids'"),
        ('{"ids": "abcde", "age": 1}', r"must hold int32 \[5\] as 'ids'"),
    ):
        with pytest.raises(UserError, match=message):
            predict.main(None, [folder, wrong])


def test_text_is_trained_on_and_served(tmp_path):
    keras.utils.set_random_seed(0)
    parts = splits("about")
    settings = phase(epochs=12, learning_rate=0.5)
    run = tfbp.fit(of_text(), parts, tfbp.Classification(parts.classes), settings)
    assert run.result["metrics"]["test"]["accuracy"] == 1
    loaded = tf.saved_model.load(run.export(str(tmp_path / "text")))
    answer = loaded.signatures["serving_default"](about=tf.constant(["an actor", "a score 7"]))
    assert answer["class"].numpy().tolist() == [b"1", b"2"]


def test_a_tuple_is_served_by_the_names_of_the_models_inputs(tmp_path):
    x = X["ids"], X["age"]
    parts = tfbp.Splits.from_arrays(x, LABELS)
    run = tfbp.fit(of_numbers(list), parts, tfbp.Classification(parts.classes), phase(epochs=1))
    serve = tf.saved_model.load(run.export(str(tmp_path / "pair"))).signatures["serving_default"]
    assert set(serve.structured_input_signature[1]) == {"ids", "age"}


def test_what_is_frozen_is_cached_whichever_inputs_lead_to_it(monkeypatch, tmp_path):
    monkeypatch.setattr(feature_cache, "seconds_saved", lambda *arguments: 1.0)
    parts, weights = splits("ids", "age"), []
    for cache in (True, False):
        keras.utils.set_random_seed(0)
        model = of_numbers(dropout=0.3)
        settings = tfbp.Settings(
            batch_size=10, cache=cache, cache_dir=str(tmp_path), allow=("random-frozen",)
        )
        task = tfbp.Classification(parts.classes)
        run = tfbp.fit(model, parts, task, phase(trainable="head", epochs=3), settings)
        weights.append(model.get_weights())
        assert run.result["phases"][0]["features"].get("cut") == (["body"] if cache else None)
    for cached, plain in zip(*weights, strict=True):
        np.testing.assert_allclose(cached, plain, rtol=1e-5, atol=1e-6)


def test_sizes_that_a_model_leaves_open_are_those_of_the_examples():
    inputs = {
        "ids": keras.Input((None,), dtype="int32", name="ids"),
        "age": keras.Input((1,), name="age"),
    }
    x = layers.Conv1D(4, 2, name="body")(layers.Embedding(7, 4)(inputs["ids"]))
    x = layers.Concatenate(name="both")([layers.GlobalMaxPooling1D()(x), inputs["age"]])
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    frozen = freezing.freeze(model, "head")
    assert prefix.find(model, frozen) is None
    found = prefix.find(model, frozen, splits("ids", "age").train.spec[0])
    assert found.cut == ("both",)
    assert [spec.shape.as_list() for spec in found.specs] == [[5]]


class Stop(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    """Ends a run in the middle of an epoch, as a kill does; without a batch, never."""

    def __init__(self, batch=None):
        super().__init__()
        self.batch, self.batches = batch, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.batch:
            raise Stop


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    ends = {}
    for name, stops in (("whole", [None]), ("stopped", [8, None])):
        for stop in stops:
            keras.utils.set_random_seed(0)
            model, parts = of_numbers(dropout=0.3), splits("ids", "age")
            settings = tfbp.Settings(
                workdir=str(tmp_path / name), batch_size=8, checkpoint_seconds=0
            )
            task = tfbp.Classification(parts.classes)
            try:
                tfbp.fit(model, parts, task, phase(), settings, callbacks=[StopAt(stop)])
            except Stop:
                assert stop
        ends[name] = model.get_weights()
    for whole, stopped in zip(ends["whole"], ends["stopped"], strict=True):
        assert np.array_equal(whole, stopped)


def test_weights_of_classes_and_examples_reach_every_leaf_of_y():
    y = {"kind": LABELS, "size": X["age"]}
    examples = tfbp.Examples.from_arrays(X["ids"], y, weights=np.arange(1, 49))
    batching = batches.Batching(16, class_weights={"kind": np.array([1, 2, 4]), "size": None})
    read = batches.reader(examples, batching)
    _, y, weight, _ = read(tf.constant(0, tf.int64), tf.constant(0, tf.int64), 1)
    np.testing.assert_allclose(weight["kind"], weight["size"] * np.array([1, 2, 4])[y["kind"]])


@pytest.mark.parametrize(
    ("x", "build", "message"),
    [
        (
            {"ids": X["ids"], "ages": X["age"]},
            of_numbers,
            "named like the inputs of `model`. Received: ages, ids. `model` takes: age, ids",
        ),
        (
            {"ids": X["ids"], "age": X["age"], "more": X["age"]},
            lambda: of_numbers(list),
            "Received: age, ids, more. `model` takes: age, ids",
        ),
        ((X["ids"], X["age"]), of_numbers, "what `model` takes: age, ids. Give a dict"),
        (X["ids"], of_numbers, "what `model` takes: age, ids"),
        (
            {"ids": [str(row) for row in range(48)], "age": X["age"]},
            of_numbers,
            r'`x\["ids"\]` must be int32, .* Received: \'string\'',
        ),
        ({"about": X["age"]}, of_text, r'`x\["about"\]` must be string'),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused_by_name(x, build, message):
    examples = tfbp.Examples.from_arrays(x, LABELS)
    with pytest.raises(UserError, match=message):
        sample_outputs.outputs(build(), examples)


def test_the_audit_sees_a_leaf_that_the_model_would_round(monkeypatch):
    ids = 2**24 + np.arange(48)
    parts = tfbp.Splits.from_arrays({"id": ids, "age": X["age"]}, LABELS)
    inputs = {name: keras.Input((1,), name=name) for name in ("id", "age")}
    model = keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(list(inputs.values()))))
    found = tfbp.audit(model, parts, tfbp.Classification(parts.classes), phase())
    (finding,) = [each for each in found if each.id == "rounded-input"]
    assert "`id` takes float32" in finding.message


def test_the_audit_sees_fractions_that_the_model_would_cut():
    parts = tfbp.Splits.from_arrays({"ids": X["ids"] + 0.5, "age": X["age"]}, LABELS)
    found = tfbp.audit(of_numbers(), parts, tfbp.Classification(parts.classes), phase())
    (finding,) = [each for each in found if each.id == "rounded-input"]
    assert "`ids` takes int32, which rounds the fractions of 39" in finding.message


def test_the_audit_sees_near_copies_in_a_leaf():
    x = np.repeat(NUMBERS.normal(size=(16, 12)), 3, axis=0)
    x += NUMBERS.normal(scale=1e-5, size=x.shape)
    parts = tfbp.Splits.from_arrays({"reading": x, "ids": X["ids"]}, LABELS)
    inputs = {"reading": keras.Input((12,), name="reading"), "ids": keras.Input((5,), name="ids")}
    model = keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(list(inputs.values()))))
    found = tfbp.audit(model, parts, tfbp.Classification(parts.classes), phase())
    near = [each.message for each in found if each.id == "near-copies"]
    assert near and all('`train` in `x["reading"]`' in message for message in near)


def test_gradients_of_a_model_of_several_inputs_are_checked():
    keras.utils.set_random_seed(0)
    x = {"ids": X["ids"][:4], "age": X["age"][:4].astype(np.float32)}
    loss = tfbp.Classification(("a", "b", "c")).loss()
    errors = tfbp.check_gradients(of_numbers(), (x, LABELS[:4]), loss=loss, entries=4)
    assert max(errors.values()) < 1e-4
