import json
import re

import pytest
import tensorflow as tf

from tfbp import commands

DETAILS = {
    "recipe": "iris",
    "data": {"spec": "csv:iris.csv?target=kind"},
    "metrics": {"train": {"loss": 0.25, "accuracy": 0.9}, "test": {"loss": 0.5, "accuracy": 0.8}},
    "phases": [{"name": "head", "proof": {"trained_variables": 2, "frozen_variables": 26}}],
    "fingerprints": {"model": "0123abcd"},
    "signatures": {
        "serving_default": {
            "inputs": {"width": "float32 [batch]", "length": "float32 [batch]"},
            "outputs": {"class": "string [batch]", "logits": "float32 [batch, 3]"},
        }
    },
    "parity": {"difference": 2.5e-7, "tolerance": 1e-5},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Versions 1 and 2 of a model that classifies two columns; the second has its details."""
    column = tf.TensorSpec([None], tf.float32)

    @tf.function(input_signature=[column, column, tf.TensorSpec([None, None, 3])])
    def classify(length, width, image):
        logits = tf.stack([length, width, tf.reduce_mean(image, [1, 2])], axis=1)
        return {"logits": logits, "class": tf.as_string(length)}

    module = tf.Module()
    module.function = classify
    folder = tmp_path_factory.mktemp("iris")
    for version in (1, 2):
        tf.saved_model.save(module, str(folder / str(version)), {"serving_default": classify})
    extra = folder / "2" / "assets.extra"
    extra.mkdir()
    (extra / "tfbp.json").write_text(json.dumps(DETAILS))
    (extra / "labels.txt").write_text("setosa\nversicolor\nvirginica\n")
    return folder


def inspect(capsys, *arguments):
    code = commands.main("recipes", ["inspect", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_newest_version_says_what_it_is(saved, capsys):
    code, out, _ = inspect(capsys, saved)
    assert code == 0
    size = sum(path.stat().st_size for path in (saved / "2").rglob("*") if path.is_file())
    signatures, facts, metrics = out.split("\n\n")
    assert [re.split(r" {2,}", line.strip()) for line in signatures.splitlines()] == [
        ["signature", "name", "type"],
        ["serving_default", "in", "width", "float32 [batch]"],
        ["in", "length", "float32 [batch]"],
        ["in", "image", "float32 [batch, ?, 3]"],
        ["out", "class", "string [batch]"],
        ["out", "logits", "float32 [batch, 3]"],
    ]
    facts = dict(line.split("  ", 1) for line in facts.splitlines())
    assert {name: value.strip() for name, value in facts.items()} == {
        "folder": str(saved / "2"),
        "size": f"{size / 1e6:.2f} MB in 6 files",
        "recipe": "iris",
        "data": "csv:iris.csv?target=kind",
        "labels": "setosa, versicolor, virginica",
        "weights": "SHA-256 0123abcd",
        "proof of head": "2 variables learnt, 26 frozen ones are what they were",
        "parity": "off the trained model by 2.5e-07 of the largest magnitude; 1e-05 is allowed",
    }
    assert [line.split() for line in metrics.splitlines()] == [
        ["loss", "accuracy"],
        ["train", "0.2500", "0.9000"],
        ["test", "0.5000", "0.8000"],
    ]


def test_a_savedmodel_of_others_is_described_by_its_graph_alone(saved, capsys):
    code, out, _ = inspect(capsys, saved / "1")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[1:4] == [
        ["serving_default", "in", "image", "float32", "[batch,", "?,", "3]"],
        ["in", "length", "float32", "[batch]"],
        ["in", "width", "float32", "[batch]"],
    ]
    assert [row[0] for row in rows[-2:]] == ["folder", "size"]


def test_many_labels_are_counted(saved, tmp_path, capsys):
    extra = tmp_path / "assets.extra"
    extra.mkdir()
    (tmp_path / "saved_model.pb").write_bytes((saved / "1" / "saved_model.pb").read_bytes())
    (extra / "labels.txt").write_text("".join(f"class {number}\n" for number in range(30)))
    out = inspect(capsys, tmp_path)[1]
    assert "class 19, … (30 in all)" in out
    assert "class 20" not in out


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "`SAVED_MODEL` must be a SavedModel, or a folder"),
        (b"damaged", "`SAVED_MODEL` must hold one graph to serve, and be whole"),
        (b"", "`SAVED_MODEL` must hold one graph to serve, and be whole"),
    ],
)
def test_what_is_no_savedmodel_is_refused(content, rule, tmp_path, capsys):
    if content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)
    code, out, err = inspect(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert rule in err


def test_damaged_details_are_told(saved, tmp_path, capsys):
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "saved_model.pb").write_bytes((saved / "1" / "saved_model.pb").read_bytes())
    (tmp_path / "assets.extra" / "tfbp.json").write_text('{"recipe": ')
    code, _, err = inspect(capsys, tmp_path)
    assert code == 2 and "must have a whole tfbp.json" in err


def test_one_model_is_inspected_at_a_time(capsys):
    for arguments in ((), ("a", "b")):
        code, _, err = inspect(capsys, *arguments)
        assert code == 2 and "`inspect` must be given one SAVED_MODEL" in err
