import contextlib
import json
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.data import text
from tfbp.data.examples import Examples
from tfbp.data.vocabulary import Vocabulary
from tfbp.errors import UserError
from tfbp.exporting import parity, versions, warmup
from tfbp.tasks.classification import Classification
from tfbp.tasks.language import LanguageModel
from tfbp.tasks.regression import Regression

NAMES = ("ant", "bee", "cat")


def classifier():
    x = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 1), dtype=np.uint8)
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(len(NAMES))]
    )
    return model, Classification(NAMES), Examples.from_arrays(x, np.arange(12) % 3)


def export(folder, model, task, examples, **settings):
    return versions.export(model, task, examples, folder, details={"recipe": "tiny"}, **settings)


@contextlib.contextmanager
def watching(folder):
    """Yields what another process would see: for each version, the files it ever had."""
    seen, done = {}, threading.Event()

    def watch():
        last = False
        while not last:
            last = done.wait(0.001)
            for version in folder.glob("[0-9]*"):
                files = frozenset(str(path.relative_to(version)) for path in version.rglob("*"))
                seen.setdefault(version.name, set()).add(files)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_an_export_appears_whole_as_the_next_version(tmp_path):
    model, task, examples = classifier()
    (tmp_path / "3").mkdir()
    with watching(tmp_path) as seen:
        path, proof = export(tmp_path, model, task, examples)
    assert path == tmp_path / "4"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["3", "4"]
    assert len(seen["4"]) == 1

    about = json.loads((path / "assets.extra/tfbp.json").read_text())
    assert (about["recipe"], about["parity"]) == ("tiny", proof)
    assert about["signatures"]["image_bytes"]["inputs"] == {"image_bytes": "string [batch]"}
    assert proof["difference"] <= proof["tolerance"] == 1e-5
    assert proof["batches"] == [1, 3, 32]
    assert list(proof["signatures"]) == ["serving_default", "image_bytes"]
    assert (path / "assets.extra/labels.txt").read_text().split() == list(NAMES)
    card = (path / "assets.extra/README.md").read_text()
    assert card.startswith(f"# {tmp_path.name}, version 4\n")
    assert "| `image_bytes` | `image_bytes`: string [batch] |" in card
    assert "ant, bee, cat" in card
    assert [name for name, _ in warmup.read(path)] == list(proof["signatures"])

    loaded = tf.saved_model.load(path)
    for batch in (1, 3, 32):
        images = np.random.default_rng(1).uniform(0, 255, (batch, 6, 6, 1)).astype(np.float32)
        answer = loaded.signatures["serving_default"](image=images)
        np.testing.assert_allclose(answer["logits"], model(images), rtol=1e-4, atol=1e-2)
        assert answer["classes"].shape == (batch, 3)


def test_a_language_model_is_exported_with_its_vocabulary(tmp_path):
    content = "to be or not to be, that is the question. " * 4
    vocabulary = Vocabulary.from_text(content, "word", 20)
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(vocabulary.size, 4),
            keras.layers.GRU(5, return_sequences=True),
            keras.layers.Dense(vocabulary.size),
        ]
    )
    examples = text.windows(content, vocabulary, steps=6)
    path, proof = export(tmp_path, model, LanguageModel(vocabulary), examples)
    signatures = ["score", "generate", "init_state", "step", "serving_default"]
    assert list(proof["signatures"]) == signatures

    loaded = tf.saved_model.load(path)
    assert set(loaded.signatures) == set(signatures)
    tokens = loaded.signatures["serving_default"](text=tf.constant(["to be, or not"]))["tokens"]
    assert tokens.numpy().tolist() == [4]


@pytest.mark.parametrize("kind", ["StringLookup", "TextVectorization"])
def test_layers_that_were_adapted_to_text_are_exported_with_their_vocabulary(
    tmp_path, in_process_parity, kind
):
    texts = np.array(["red fox", "blue cat", "red cat", "green fox"] * 3)
    settings = {"output_sequence_length": 2} if kind == "TextVectorization" else {}
    lookup = getattr(keras.layers, kind)(**settings)
    lookup.adapt(texts)
    text_input = keras.Input((), dtype="string", name="title")
    ids = lookup(text_input)
    embedded = keras.layers.Embedding(lookup.vocabulary_size(), 4)(ids)
    logits = keras.layers.Dense(len(NAMES))(keras.layers.Flatten()(embedded))
    model = keras.Model([text_input], logits)
    examples = Examples.from_arrays({"title": texts}, np.arange(12) % 3)
    path, _ = export(tmp_path, model, Classification(NAMES), examples)

    asked = tf.constant(["green fox", "never seen", "blue cat"])
    answer = tf.saved_model.load(path).signatures["serving_default"](title=asked)
    np.testing.assert_allclose(answer["logits"], model([asked]), rtol=1e-5, atol=1e-6)


def line():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    return model, Regression(), Examples.from_arrays(np.float32([1, 2, 3]), np.float32([1, 2, 3]))


def test_a_wrong_export_is_not_published(tmp_path, in_process_parity):
    model, task, examples = line()
    # Code that asks how it is run is traced otherwise than it was trained.
    wrong = keras.layers.Lambda(lambda x: x * (1 if tf.executing_eagerly() else 1.001))
    model = keras.Model(model.inputs, wrong(model.outputs[0]))
    with pytest.raises(parity.ParityError, match=r"must answer alike .* differs by 0\.000999"):
        export(tmp_path, model, task, examples)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_stops_half_way_leaves_nothing(tmp_path):
    def stop(folder, requests):
        assert (folder / "saved_model.pb").exists()
        raise KeyboardInterrupt

    with parity.answered_by(stop), pytest.raises(KeyboardInterrupt):
        export(tmp_path, *line())
    assert list(tmp_path.iterdir()) == []


def test_two_exports_at_once_take_two_versions(tmp_path):
    def after_another(folder, requests):
        (tmp_path / "1").mkdir(exist_ok=True)
        return parity.this_process(folder, requests)

    with parity.answered_by(after_another):
        path, _ = export(tmp_path, *line())
    assert path == tmp_path / "2"
    assert list((tmp_path / "1").iterdir()) == []
    assert (path / "saved_model.pb").exists()


def test_old_versions_are_removed_once_the_new_one_is_there(tmp_path):
    for name in ("2", "9", "10", "latest", ".11.5.tmp"):
        (tmp_path / name / "variables").mkdir(parents=True)
    (tmp_path / "1").symlink_to(tmp_path / "latest")
    (tmp_path / "3").write_text("no version")
    there = []

    def look(folder, requests):
        there.append({path.name for path in tmp_path.iterdir() if path != folder})
        return parity.this_process(folder, requests)

    with parity.answered_by(look):
        path, _ = export(tmp_path, *line(), keep=2)
        assert path.name == "11"
        assert there == [{"1", "2", "3", "9", "10", "latest", ".11.5.tmp"}]
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"3", "10", "11", "latest", ".11.5.tmp"}
        assert (tmp_path / "latest" / "variables").is_dir()
        assert export(tmp_path, *line())[0].name == "12"
    assert (tmp_path / "10").is_dir()


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], 1), (["1", "2"], 3), (["9", "10"], 11), (["latest", ".5.77.tmp", "2b"], 1)],
)
def test_the_next_version_follows_the_largest_integer(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).mkdir()
    assert versions.next_version(tmp_path) == expected


def test_a_folder_that_is_not_there_yet_is_writable_and_stays_away(tmp_path):
    versions.check_writable(tmp_path / "saved_models" / "mlp")
    assert versions.next_version(tmp_path / "saved_models" / "mlp") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_the_folder_is_refused(tmp_path):
    (tmp_path / "saved_models").write_text("")
    with pytest.raises(UserError, match="`export_dir` must be a folder that can be written"):
        versions.check_writable(tmp_path / "saved_models" / "mlp")
