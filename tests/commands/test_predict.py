import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfbp import commands


def save(folder, function, *, name="serving_default"):
    module = tf.Module()
    module.function = function
    tf.saved_model.save(module, str(folder), {name: function})
    return folder


@pytest.fixture(scope="module")
def doubling(tmp_path_factory):
    """Versions 2, 9 and 10 of a model; version n answers n·x, and NaN to 0."""
    folder = tmp_path_factory.mktemp("doubling")
    for version in (2, 9, 10):

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
        def multiply(x, version=float(version)):
            return {"y": tf.where(x == 0, np.nan, x * version)}

        save(folder / str(version), multiply)
    (folder / "latest").mkdir()
    return folder


@pytest.fixture(scope="module")
def mean_colour(tmp_path_factory):
    """A model that answers the mean of each channel of an image of 2 by 4 pixels."""

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 4, 3], tf.float32, "image")])
    def mean(image):
        means = tf.reduce_mean(image, [1, 2])
        names = tf.constant(["red", "green", "blue"])
        best = tf.argmax(means, axis=-1)
        probability = tf.reduce_max(means, axis=-1) / 255
        return {"class": tf.gather(names, best), "probability": probability, "means": means}

    return save(tmp_path_factory.mktemp("colour") / "1", mean)


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """A model that writes each prompt `length` times."""
    signature = [
        tf.TensorSpec([None], tf.string, "prompt"),
        tf.TensorSpec([], tf.int32, "length"),
        tf.TensorSpec([], tf.float32, "temperature"),
        tf.TensorSpec([], tf.int32, "top_k"),
        tf.TensorSpec([], tf.int64, "seed"),
    ]

    @tf.function(input_signature=signature)
    def repeat(prompt, length, temperature, top_k, seed):
        with tf.control_dependencies([tf.Assert(length < 100, ["`length` is over:", length])]):
            length = tf.identity(length)
        text = tf.strings.reduce_join(tf.repeat(prompt[:, tf.newaxis], length, axis=1), axis=1)
        return {"text": text}

    return save(tmp_path_factory.mktemp("echo") / "1", repeat, name="generate")


def predict(capsys, *arguments):
    code = commands.main("recipes", ["predict", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def png(path, pixels):
    path.write_bytes(tf.io.encode_png(np.array(pixels, np.uint8)).numpy())
    return path


def test_the_newest_version_of_a_folder_answers(doubling, capsys):
    code, out, _ = predict(capsys, doubling, "1,2", "-3,0.5")
    assert code == 0
    assert out == "input   y\n1,2     10,20\n-3,0.5  -30,5\n"


def test_one_version_may_be_named(doubling, capsys):
    assert predict(capsys, doubling / "2", "1,2")[1] == "input  y\n1,2    2,4\n"


def test_nan_becomes_null_in_json(doubling, capsys):
    _, out, _ = predict(capsys, doubling, "0,1", "--json")
    assert json.loads(out) == {"input": "0,1", "y": [None, 10.0]}


def test_more_inputs_than_a_batch_keep_their_order(doubling, capsys):
    inputs = [f"{i},1" for i in range(1, 71)]
    _, out, _ = predict(capsys, doubling, *inputs, "--json")
    assert [json.loads(line)["y"][0] for line in out.splitlines()] == [10 * i for i in range(1, 71)]


def test_images_are_decoded_to_what_the_signature_takes(mean_colour, tmp_path, capsys):
    blue = png(tmp_path / "blue.png", np.full((8, 16, 3), [0, 51, 204]))
    grey = png(tmp_path / "grey.png", np.full((2, 4, 1), 102))
    code, out, _ = predict(capsys, mean_colour, blue, grey, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    means = np.array([answer["means"] for answer in answers])
    np.testing.assert_allclose(means, [[0, 51, 204], [102, 102, 102]], rtol=1e-6)
    assert answers[0]["class"] == "blue"


def test_a_table_shows_the_label_and_its_probability_alone(mean_colour, tmp_path, capsys):
    blue = png(tmp_path / "blue.png", np.full((2, 4, 3), [0, 51, 204]))
    rows = [line.split() for line in predict(capsys, mean_colour, blue)[1].splitlines()]
    assert rows == [["input", "class", "probability"], [str(blue), "blue", "0.8"]]


def test_prompts_are_continued_by_the_flags(echo, capsys):
    code, out, _ = predict(capsys, echo, "one ", "zwei ü", "--length=2")
    assert (code, out) == (0, "one one \n\nzwei üzwei ü\n")


def test_what_the_model_refuses_is_a_mistake(echo, capsys):
    for flag, rule in (
        ("--length=101", "`SAVED_MODEL` refuses this: [`length` is over:] [101]"),
        ("--seed=99999999999999999999", "`--seed` must be a number that int64 holds"),
        ("--top_k=9999999999", "`--top_k` must be a number that int32 holds"),
    ):
        code, out, err = predict(capsys, echo, "one", flag)
        assert (code, out) == (2, "")
        assert rule in err and "Traceback" not in err


def test_mistakes_name_the_input(doubling, mean_colour, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    for model, argument, rule in (
        (doubling, "1,2,3", "`INPUT` must be 2 numbers between commas"),
        (doubling, "1,two", "`INPUT` must be numbers between commas"),
        (doubling, "1,nan", "`INPUT` must be finite numbers"),
        (doubling, "1,1e39", "`INPUT` must be numbers that float32 holds"),
        (mean_colour, tmp_path / "none.png", "`INPUT` must be an image file (No such file"),
        (mean_colour, tmp_path, "`INPUT` must be an image file (Is a directory"),
        (mean_colour, tmp_path / "text.png", "`INPUT` must be a JPEG, PNG, GIF or BMP file"),
        (mean_colour, tmp_path / "empty.png", "`INPUT` must be a JPEG, PNG, GIF or BMP file"),
        (tmp_path, "1,2", "`SAVED_MODEL` must be a SavedModel"),
    ):
        code, out, err = predict(capsys, model, argument)
        assert (code, out) == (2, "")
        assert rule in err
        assert str(tmp_path if model == tmp_path else argument) in err


def test_a_damaged_model_is_refused(doubling, tmp_path, capsys):
    (tmp_path / "saved_model.pb").write_bytes(b"damaged")
    code, _, err = predict(capsys, tmp_path, "1,2")
    assert code == 2
    assert "`SAVED_MODEL` must load" in err


@pytest.fixture(scope="module")
def ratio(tmp_path_factory):
    """A model of two columns that answers top / bottom."""
    specs = [tf.TensorSpec([None], tf.float32, name) for name in ("top", "bottom")]

    @tf.function(input_signature=specs)
    def divide(top, bottom):
        return {"ratio": top / bottom}

    return save(tmp_path_factory.mktemp("ratio") / "1", divide)


def test_columns_are_given_by_name_in_any_order(ratio, capsys):
    code, out, _ = predict(capsys, ratio, "top=1,bottom=4", "bottom=2, top=3")
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()] == ["ratio", "0.25", "1.5"]


def test_a_single_column_needs_no_name(tmp_path, capsys):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def half_plus_two(x):
        return {"y": 0.5 * x + 2}

    model = save(tmp_path / "1", half_plus_two)
    out = predict(capsys, model, "1", "x=2", "-3")[1]
    assert [line.split()[-1] for line in out.splitlines()] == ["y", "2.5", "3", "0.5"]


def test_without_names_columns_are_in_the_order_that_the_export_tells(ratio, tmp_path, capsys):
    for order in ("top,bottom", "bottom,top"):
        folder = shutil.copytree(ratio, tmp_path / order)
        (folder / "assets.extra").mkdir()
        inputs = dict.fromkeys(order.split(","), "float32 [batch]")
        details = {"signatures": {"serving_default": {"inputs": inputs}}}
        (folder / "assets.extra" / "tfbp.json").write_text(json.dumps(details))
    assert predict(capsys, tmp_path / "top,bottom", "1,4")[1].split()[-1] == "0.25"
    assert predict(capsys, tmp_path / "bottom,top", "1,4")[1].split()[-1] == "4"
    assert "must be 2 numbers" in predict(capsys, tmp_path / "bottom,top", "1,4,5")[2]


@pytest.mark.parametrize(
    "given", ["1,4", "top=1", "top=1,top=2,bottom=3", "top=1,bottom=2,side=3", "top=1,bottom"]
)
def test_columns_that_are_not_all_named_are_refused(ratio, given, capsys):
    code, out, err = predict(capsys, ratio, given)
    assert (code, out) == (2, "")
    assert "`INPUT` must be " in err


def test_inputs_that_are_no_columns_are_a_json_object_of_their_names(tmp_path, capsys):
    specs = [tf.TensorSpec([None, 2], tf.float32, name) for name in ("left", "right")]

    @tf.function(input_signature=specs)
    def add(left, right):
        return {"sum": left + right}

    model = save(tmp_path / "1", add)
    code, out, _ = predict(capsys, model, '{"left": [1, 2], "right": [0.5, 4]}', "--json")
    assert code == 0
    assert json.loads(out)["sum"] == [1.5, 6]
    code, _, err = predict(capsys, model, "1")
    assert code == 2
    assert " - left\n - right" in err


@pytest.mark.parametrize(("answer", "bad"), [("class", ""), ("y", float("nan"))])
def test_image_files_are_sent_as_they_are_and_a_bad_one_is_named(answer, bad, tmp_path, capsys):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def sizes(image_bytes):
        length = tf.strings.length(image_bytes)
        value = tf.as_string(length) if answer == "class" else tf.cast(length, tf.float32)
        return {answer: tf.where(length > 20, value, bad)}

    model = save(tmp_path / "1", sizes, name="image_bytes")
    files = [png(tmp_path / f"{edge}.png", np.zeros((edge, edge, 3))) for edge in (2, 40)]
    code, out, _ = predict(capsys, model, *files)
    assert code == 0
    assert [float(line.split()[-1]) for line in out.splitlines()[1:]] == [
        file.stat().st_size for file in files
    ]
    (tmp_path / "text.png").write_text("no image")
    code, out, err = predict(capsys, model, *files, tmp_path / "text.png")
    assert (code, out) == (2, "")
    assert "`INPUT` must be a JPEG, PNG, GIF or BMP file" in err and "text.png" in err
    assert "No such file" in predict(capsys, model, tmp_path / "none.png")[2]


def test_several_labels_are_shown_by_those_that_are_chosen(tmp_path, capsys):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "features")])
    def choose(features):
        names = tf.constant(["red", "green", "blue"])
        every = tf.broadcast_to(names, tf.shape(features))
        return {
            "labels": tf.where(features > 0.5, every, ""),
            "classes": every,
            "probabilities": features,
        }

    model = save(tmp_path / "1", choose)
    code, out, _ = predict(capsys, model, "0.75,0.25,1", "0,0.125,0")
    assert code == 0
    first, second = out.splitlines()[-2:]
    assert first.split() == ["0.75,0.25,1", "red,blue", "0.75,0.25,1"]
    assert second.split() == ["0,0.125,0", "0,0.125,0"]
