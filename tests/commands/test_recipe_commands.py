"""`plan`, `run`, `evaluate`, `export` and `predict` over one run of a user's own recipe file."""

import json
import os
import pathlib
import re

import pytest

from tfbp import commands
from tfbp.caching import cache as feature_cache
from tfbp.caching import row_file

RECIPE = '''
"""Tells four kinds of random vectors apart."""

import dataclasses

import keras

import tfbp
from tfbp.data import catalog


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("random?shape=6&classes=4&count=120", "the vectors")
    epochs: int = tfbp.field(2, "passes over the data", low=1)
    learning_rate: float = tfbp.field(0.1, "learning rate", low=0)


def data(config):
    return catalog.load_data(config.data, seed=config.seed)


def task(config, splits):
    return tfbp.Classification(splits.classes)


def model(config, splits):
    inputs = keras.Input(splits.train.spec[0].shape)
    return keras.Model(inputs, keras.layers.Dense(len(splits.classes), name="only")(inputs))


def phases(config):
    rate = config.learning_rate
    return [tfbp.Phase("fit", trainable=".*", epochs=config.epochs, learning_rate=rate)]
'''

HALF_FROZEN = RECIPE.replace("(inputs))", "(keras.layers.Dense(5, name='body')(inputs)))").replace(
    '".*"', '"only"'
)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Returns a folder in which the recipe was run."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "mine.py").write_text(RECIPE)
    before = pathlib.Path.cwd()
    os.chdir(folder)
    try:
        assert commands.main("no_recipes", ["run", "mine.py", "--epochs=3", "--seed=1"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def call(ended, monkeypatch, capsys):
    """Returns a function that runs a command line in that folder: (code, output, errors)."""
    monkeypatch.chdir(ended)

    def run(*argv):
        capsys.readouterr()
        code = commands.main("no_recipes", argv)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def result(folder):
    return json.loads((folder / "runs" / "mine" / "1" / "result.json").read_text())


def test_plan_shows_what_trains_and_writes_nothing(call, tmp_path, monkeypatch, ended):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("plan", str(ended / "mine.py"), "--batch_size=16")
    assert code == 0
    head, columns, only, total, features = out.splitlines()
    assert head == "fit: 2 epochs, 12 steps, adam, constant rate"
    assert columns.split() == ["layers", "trains", "frozen", "statistics", "learning", "rate"]
    assert only.split() == ["only", "1", "28", "0", "0", "0.1"]
    assert total.split() == ["total", "1", "28", "0", "0"]
    assert features == (
        "features are not cached: no part of the model gives the same in each epoch"
    )
    assert not list(tmp_path.iterdir())


def test_plan_says_what_is_set_of_a_phase_and_how_long_it_would_take(call):
    code, out, _ = call("plan", "mine.py", "--time", "--accumulate=5", "--ema=0.9", "--epochs=1")
    assert code == 0
    # 96 examples in batches of 32, all of which make one update.
    assert out.startswith(
        "fit: 1 epochs, 3 steps, 1 updates, adam, constant rate, "
        "accumulate 5 (the recipe's phase: 1), ema 0.9 (the recipe's phase: None)\n"
    )
    assert re.fullmatch(
        r"about [\d.,]+ s with validation, and [\d,]+ MiB of main memory for all of the process so "
        r"far",
        out.splitlines()[-1],
    )


def test_features_are_cached_on_disk_but_with_nocache(call, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "seconds_saved", lambda *arguments: 1.0)
    (tmp_path / "half.py").write_text(HALF_FROZEN)

    def run(name, *flags):
        flags = f"--cache_dir={tmp_path / name}", "--allow=random-frozen", *flags
        recipe = str(tmp_path / "half.py")
        features = call("plan", recipe, *flags)[1].splitlines()[-1]
        assert call("run", recipe, f"--workdir={tmp_path / f'run {name}'}", *flags)[0] == 0
        outcome = json.loads((tmp_path / f"run {name}" / "result.json").read_text())
        caches = [path for path in (tmp_path / name).glob("*") if row_file.is_cache(path)]
        return features, outcome["metrics"]["test"]["loss"], len(caches)

    said, loss, caches = run("on")
    assert "up to body, computed once for each example: 108 rows" in said
    assert caches == 2  # of training and of validation examples
    said, other_loss, caches = run("off", "--nocache")
    assert said == "features are not cached: the cache is off"
    assert caches == 0
    assert other_loss == pytest.approx(loss, rel=1e-5)


def test_the_time_is_a_flag_of_plan_alone(call):
    assert "--time=false" in call("plan", "mine.py", "--help")[1]
    code, _, err = call("run", "mine.py", "--time")
    assert code == 2
    assert "'--time'" in err


def test_a_run_directory_says_what_was_asked_and_what_came_out(ended):
    run = ended / "runs" / "mine" / "1"
    names = {"flags.txt", "config.json", "result.json", "history.csv", "tensorboard", "model.keras"}
    assert names <= {path.name for path in run.iterdir()}
    assert len((run / "history.csv").read_text().splitlines()) == 4
    assert result(ended)["seed"] == 1


def test_the_proof_of_each_phase_stands_in_the_result_and_in_the_export(ended):
    details = ended / "saved_models" / "mine" / "1" / "assets.extra" / "tfbp.json"
    exported = json.loads(details.read_text())["phases"]
    (phase,) = result(ended)["phases"]
    assert [each["proof"] for each in exported] == [phase["proof"]]
    assert phase["proof"]["trained_variables"] == 2
    assert phase["proof"]["frozen_variables"] == 0
    assert len(phase["proof"]["trained"]) == 64
    assert 0 <= phase["proof_seconds"] <= phase["seconds"]


def test_the_flag_file_repeats_the_run_in_another_directory(call, ended):
    flags = "runs/mine/1/flags.txt"
    code, out, _ = call("run", "mine.py", f"--flagfile={flags}", "--workdir=again")
    again = json.loads((ended / "again" / "result.json").read_text())
    assert code == 0
    assert "fit 1/1  epoch 3/3  loss" in out
    assert again["metrics"] == result(ended)["metrics"]


def test_evaluate_repeats_the_metrics_of_the_run(call, ended):
    code, out, _ = call("evaluate", "runs/mine/1", "--json")
    assert code == 0
    assert json.loads(out) == result(ended)["metrics"]["test"]


def test_evaluate_prints_a_table_of_the_classes(call):
    code, out, _ = call("evaluate", "runs/mine/1", "--split=validation")
    header = next(line for line in out.splitlines() if "precision" in line)
    assert code == 0
    assert header.split() == ["precision", "recall", "f1", "support"]
    assert "(mean by support)" in out


def test_export_publishes_another_version_that_predict_answers_from(call, ended):
    code, out, _ = call("export", "runs/mine/1", "--export_dir=served")
    assert (code, out) == (0, "served/mine/1\n")
    vectors = ["1,2,3,4,5,6", "-1,0,0,0,0,0.5"]
    code, out, _ = call("predict", "served/mine", *vectors, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [answer["input"] for answer in answers] == vectors
    assert {answer["class"] for answer in answers} <= set(result(ended)["data"]["classes"])


def test_another_run_in_a_work_directory_is_refused(call):
    code, _, err = call("run", "mine.py", "--workdir=runs/mine/1", "--epochs=9")
    assert code == 2
    assert "`epochs`" in err


def test_a_run_that_has_ended_is_not_run_again(call, ended):
    before = (ended / "runs/mine/1/history.csv").stat().st_mtime_ns
    code, out, err = call("run", "mine.py", "--workdir=runs/mine/1", "--epochs=3", "--seed=1")
    assert (code, (ended / "runs/mine/1/history.csv").stat().st_mtime_ns) == (0, before)
    assert "nothing to do" in err
    assert "epoch" not in out


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_what_is_no_run_is_refused(call, command):
    code, _, err = call(command, "runs")
    assert code == 2
    assert err.startswith("Error: `run` must be the directory of a run")
