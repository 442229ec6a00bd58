"""Weights, run directories and `.keras` files from elsewhere (and our own, changed since)."""

import ast
import json
import os
import pathlib
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest

import tfbp
from tfbp import commands, storage
from tfbp.modeling import backbones

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
TINY = ("--data=random?shape=4,4,1&classes=3&count=61", "--layers=16,8,3", "--epochs=1")


def parts():
    """Returns the recipe's splits, task, model and phases, without the command line."""
    module, config = commands.flags.recipe_and_config(RECIPES, ["mlp", *TINY], about="")
    splits = module.data(config)
    return splits, module.task(config, splits), module.model(config, splits), module.phases(config)


def network():
    return parts()[2]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Returns the directory of a run that has ended."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    splits, task, model, phases = parts()
    tfbp.fit(model, splits, task, phases, tfbp.Settings(workdir=folder))
    return folder


@pytest.fixture
def run(ended, tmp_path):
    """Returns a copy of it, to be changed."""
    return shutil.copytree(ended, tmp_path / "run")


def refused(weights, capsys):
    """Asserts that `--weights` is refused before anything is written; returns what is said."""
    folder = pathlib.Path(weights).parent
    before = sorted(folder.iterdir())
    flags = (f"--weights={weights}", f"--workdir={folder / 'new'}")
    code = commands.main(RECIPES, ["run", "mlp", *TINY, *flags])
    message = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in message
    assert "`weights` must" in message
    assert repr(str(weights)) in message
    assert sorted(folder.iterdir()) == before
    return message


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change(run, **entries):
    """Replaces entries of a run's manifest; None removes one."""
    path = run / storage.MANIFEST
    files = json.loads(path.read_text())["files"]
    changed = {**files, **{name.replace("_", "."): entry for name, entry in entries.items()}}
    kept = {name: entry for name, entry in changed.items() if entry}
    path.write_text(json.dumps({"files": kept}))


def lead_out(run):
    shutil.copy(run / "model.keras", run.parent / "model.keras")
    files = json.loads((run / storage.MANIFEST).read_text())["files"]
    entries = files | {"../model.keras": files["model.keras"]}
    (run / storage.MANIFEST).write_text(json.dumps({"files": entries}))


def link_out(run):
    os.rename(run / "model.keras", run.parent / "model.keras")
    (run / "model.keras").symlink_to(run.parent / "model.keras")


CHANGES = {
    "a flipped bit": (lambda run: flip(run / "model.keras"), "'model.keras' has changed"),
    "truncated": (lambda run: os.truncate(run / "model.keras", 9), "'model.keras' has 9 bytes"),
    "another file changed": (lambda run: flip(run / "config.json"), "'config.json' has changed"),
    "a file gone": (lambda run: (run / "history.csv").unlink(), "'history.csv' is missing"),
    "no manifest": (lambda run: (run / "manifest.json").unlink(), "'manifest.json' is missing"),
    "not in the manifest": (lambda run: change(run, model_keras=None), "is not in manifest.json"),
    "no hash": (lambda run: change(run, model_keras={"bytes": 1}), "is no manifest"),
    "a path that leads out": (lead_out, "'../model.keras' leads out of the folder"),
    "a link that leads out": (link_out, "'model.keras' leads out of the folder"),
}


def test_a_run_loads_as_it_was_when_it_ended(run):
    stored = keras.models.load_model(run / "model.keras", safe_mode=True).get_weights()
    model = network()
    backbones.load_weights(model, str(run))
    for ours, theirs in zip(model.get_weights(), stored, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_that_has_been_changed_since_is_refused_by_file_and_reason(run, name, capsys):
    apply, reason = CHANGES[name]
    apply(run)
    message = refused(run, capsys)
    assert "must be the directory of a run that nobody has changed since" in message
    assert reason in message


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_changed_run_is_not_read_by_the_other_commands_either(run, command, capsys):
    flip(run / "model.keras")
    assert commands.main(RECIPES, [command, str(run)]) == 2
    assert "is damaged: 'model.keras' has changed" in capsys.readouterr().err


@pytest.mark.parametrize("inside", [True, False])
def test_a_keras_file_is_refused_with_what_to_give_instead(run, inside, capsys):
    file = run / "model.keras" if inside else shutil.copy(run / "model.keras", run.parent)
    message = refused(file, capsys)
    assert "Give the directory of the run that wrote it" in message
    assert "model.save_weights('NAME.weights.h5')" in message


@pytest.mark.parametrize("name", ["model.h5", "model.weights.h5"])
def test_a_whole_model_in_hdf5_is_refused_and_its_weights_alone_load(tmp_path, name, capsys):
    model = network()
    model.save(tmp_path / "whole.h5")
    os.rename(tmp_path / "whole.h5", tmp_path / name)
    message = refused(tmp_path / name, capsys)
    assert "must be a file of weights alone, not of a whole model" in message

    model.save_weights(tmp_path / "alone.weights.h5")
    again = network()
    backbones.load_weights(again, str(tmp_path / "alone.weights.h5"))
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def as_external_link(file, name, elsewhere):
    file[name] = h5py.ExternalLink(str(elsewhere), name)


def as_external_storage(file, name, elsewhere):
    with h5py.File(elsewhere) as other:
        value = other[name]
        place = [(str(elsewhere), value.id.get_offset(), value.nbytes)]
        file.create_dataset(name, value.shape, value.dtype, external=place)


@pytest.mark.parametrize("put", [as_external_link, as_external_storage])
def test_a_file_whose_numbers_lie_in_another_file_is_refused(tmp_path, put, capsys):
    network().save_weights(tmp_path / "whole.weights.h5")
    shutil.copy(tmp_path / "whole.weights.h5", tmp_path / "part.weights.h5")
    names = []
    with h5py.File(tmp_path / "part.weights.h5", "r+") as file:
        file.visititems(lambda name, value: names.append(name) if "vars/" in name else None)
        del file[names[0]]
        put(file, names[0], tmp_path / "whole.weights.h5")
        file.flush()
        assert file[names[0]].shape  # it can be read: refusing it is our doing
    message = refused(tmp_path / "part.weights.h5", capsys)
    assert f"lead to no other place ('{names[0]}' is a link" in message


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "pipe"])
def test_a_damaged_file_of_weights_is_one_error(tmp_path, kind, capsys):
    path = tmp_path / "x.weights.h5"
    network().save_weights(path)
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        content = path.read_bytes()
        damaged = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"weights"}
        path.write_bytes(damaged[kind])
    message = refused(path, capsys)
    assert ("must be a file or a directory" if kind == "pipe" else "'mlp' (OSError") in message


def write_hostile(folder, mark):
    """Writes a run whose model makes the file `mark` when it is loaded; its manifest is right."""
    inputs, inner_inputs = keras.Input((3,)), keras.Input((3,))
    path = str(mark)
    code = keras.layers.Lambda(lambda x: (open(path, "w").close(), x)[1])
    inner = keras.Model(inner_inputs, keras.layers.Dense(2)(code(inner_inputs)), name="tiny")
    folder.mkdir()
    keras.Model(inputs, inner(inputs)).save(folder / "model.keras")
    storage.write_manifest(folder, ["model.keras"])
    mark.unlink()  # building it has run the code, too


@pytest.fixture
def unsafe():
    """Within a test, Keras's safe mode is off, as a program may have it for files of its own."""
    keras.config.enable_unsafe_deserialization()
    yield
    keras.src.backend.common.global_state.set_global_attribute("safe_mode_saving", None)


@pytest.mark.usefixtures("unsafe")
def test_code_in_the_model_of_a_run_never_runs(tmp_path):
    mark = tmp_path / "mark"
    write_hostile(tmp_path / "run", mark)
    inputs = keras.Input((3,))
    backbone = keras.Model(inputs, keras.layers.Dense(2)(inputs), name="tiny")
    with pytest.raises(tfbp.UserError, match="without Lambda layers, and contains 'tiny'"):
        backbones.load_backbone_weights(backbone, str(tmp_path / "run"))
    assert not mark.exists()
    keras.models.load_model(tmp_path / "run" / "model.keras")
    assert mark.exists()  # it would have run


def test_no_lambda_layer_is_written(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(2, 40, 3)).astype(np.float32)
    inputs = keras.Input((3,))
    double = keras.layers.Lambda(lambda x: 2 * x, name="double")
    model = keras.Model(inputs, keras.layers.Dense(3, name="dense")(double(inputs)))
    splits = tfbp.Splits.from_arrays(x, y)
    phase = tfbp.Phase("fit", "dense", epochs=1, learning_rate=0.1)
    with pytest.raises(tfbp.UserError, match=r"must have no Lambda layers.* Received: 'double'"):
        tfbp.fit(
            model, splits, tfbp.Regression(), [phase], tfbp.Settings(workdir=str(tmp_path / "run"))
        )
    assert not (tmp_path / "run").exists()


def test_what_a_run_writes_holds_no_code(ended):
    with zipfile.ZipFile(ended / "model.keras") as archive:
        config = archive.read("config.json").decode()
    assert '"class_name": "Dense"' in config
    assert "ambda" not in config


def test_safe_mode_is_never_off_and_nothing_is_unpickled():
    calls = {"enable_unsafe_deserialization", "func_load"}
    found, looked_at = [], 0
    for folder in ("tfbp", "recipes", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            looked_at += 1
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.keyword(arg="safe_mode", value=ast.Constant(value=True)):
                        continue
                    case ast.keyword(arg="allow_pickle", value=ast.Constant(value=False)):
                        continue
                    case ast.keyword(arg="safe_mode" | "allow_pickle"):
                        found.append((path, node.lineno))
                    case ast.Attribute(attr=name) | ast.Name(id=name) if name in calls:
                        found.append((path, node.lineno))
                    case ast.alias(name="pickle" | "dill" | "cloudpickle" | "joblib"):
                        found.append((path, node.lineno))
    assert looked_at > 50
    assert found == []
