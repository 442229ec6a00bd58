"""One suite over every recipe: a tiny run by the real entry point, and what it must leave."""

import contextlib
import csv
import io
import json
import pathlib
import random
import re

import numpy as np
import processes
import pytest
import tensorflow as tf
from tensorflow.python.tools import saved_model_cli

from tfbp import commands, driver, recipe
from tfbp.exporting import parity
from tfbp.running import execute
from tfbp.workers import strategy

RECIPES = pathlib.Path(__file__).parents[1] / "recipes"
GOLDEN = pathlib.Path(__file__).parent / "golden"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "my", "log"]
# Drawn, not repeated: the audit refuses a held-out text that is the training text.
TEXT = " ".join(random.Random(0).choices(WORDS, k=350))

# The flags that make a run tiny. Batches of 7 leave an uneven last one for two devices.
TINY = {
    "linear_regression": ["--data=line", "--epochs=12", "--batch_size=7"],
    "backprop": [
        "--data=random?shape=4,4,1&classes=3&count=61",
        "--layers=16,8,3",
        "--epochs=4",
        "--batch_size=7",
    ],
    "mlp": [
        "--data=random?shape=4,4,1&classes=3&count=61",
        "--layers=16,8,3",
        "--l2=1e-3",
        "--epochs=4",
        "--batch_size=7",
    ],
    "vgg16": [
        "--data=random?shape=32,32,3&classes=2&count=24",
        "--weights=random",
        "--allow=random-frozen",
        "--head_epochs=3",
        "--tune_epochs=1",
        "--flip",
        "--shift=0.1",
        "--batch_size=7",
    ],
    "lstm_lm": [
        "--data=text:text.txt",
        "--tokens=char",
        "--steps=8",
        "--units=8",
        "--embedding=6",
        "--tie_embeddings",
        "--epochs=2",
        "--learning_rate=1e-2",
        "--batch_size=7",
    ],
}

# The runs after a recipe's first one: of a large model, and of one with five signatures.
AGAIN = [
    pytest.param(name, marks=pytest.mark.slow) if name in ("lstm_lm", "vgg16") else name
    for name in sorted(TINY)
]


@pytest.fixture(scope="module", params=sorted(recipe.discover(RECIPES)))
def name(request):
    """Returns the name of each recipe in turn."""
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    """Returns a folder for the runs of a recipe, with a text."""
    assert name in TINY, f"Add the flags that make a run of {name} tiny to `TINY`."
    folder = tmp_path_factory.mktemp(name)
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def first(name, folder):
    """Returns the directory of a recipe's run, made by the command line and exported as users do:
    another process answers like the model. The tests compare other runs with it.
    """
    with pytest.MonkeyPatch.context() as patch, parity.answered_by(processes.answers):
        patch.chdir(folder)
        assert commands.main(RECIPES, ["run", name, *TINY[name]]) == 0
    return folder / "runs" / name / "1"


@pytest.fixture(autouse=True)
def _in_its_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def weights(model):
    return [np.asarray(variable) for variable in model.weights]


def shown(saved_model):
    """Returns what `saved_model_cli show --all` prints; what it takes out of sets is put in order.

    The files in `golden/` hold it.
    """
    with contextlib.redirect_stdout(io.StringIO()) as out:
        saved_model_cli._show_all(str(saved_model))
    return re.sub(
        r"(?<=ops: \{).*(?=\})", lambda ops: ", ".join(sorted(ops[0].split(", "))), out.getvalue()
    )


def test_a_run_learns_and_its_export_answers_like_its_model(name, first):
    result = json.loads((first / "result.json").read_text())
    with open(first / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    assert result["recipe"] == name
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert [phase["epochs"] for phase in result["phases"]] == [
        sum(row["phase"] == phase["name"] for row in rows) for phase in result["phases"]
    ]
    for file in ("config.json", "flags.txt", "model.keras", "tensorboard"):
        assert (first / file).exists()
    assert not (first / "checkpoints").exists()

    run = driver.load(str(first), RECIPES)
    held_out = run.splits.test or run.splits.train
    split = "test" if run.splits.test else "train"
    assert run.evaluate(held_out) == result["metrics"][split]
    loaded = tf.saved_model.load(result["export"]["path"])
    for signature, ours in run.task.signatures(run.model, held_out).items():
        request = ours.request(5)
        inputs = {k: tf.constant(request[k], spec.dtype) for k, spec in ours.inputs.items()}
        answer = loaded.signatures[signature](**inputs)
        for output, value in ours.answer(request).items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(answer[output], value, rtol=1e-5, atol=1e-6)
            else:
                assert (answer[output].numpy() == value).all()
    golden, text = GOLDEN / f"{name}.txt", shown(result["export"]["path"])
    pathlib.Path("shown.txt").write_text(text)
    keep = f"If these signatures are meant: cp {pathlib.Path('shown.txt').absolute()} {golden}"
    assert golden.is_file() and text == golden.read_text(), keep


def trained(*arguments):
    """Returns the run of a command line, trained and evaluated; nothing is written or exported."""
    module, config = commands.flags.recipe_and_config(RECIPES, arguments, about="")
    run = driver.build(module, config, strategy.resolve(config.strategy or "auto"))
    return execute.execute(run, None, {}, {})


@pytest.mark.parametrize("name", AGAIN, indirect=True)
def test_its_flag_file_repeats_a_run_to_the_bit(name, first):
    again = trained(name, f"--flagfile={first}/flags.txt")

    assert again.result["metrics"] == json.loads((first / "result.json").read_text())["metrics"]
    models = driver.load(str(first), RECIPES).model, again.model
    for one, other in zip(*map(weights, models), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", AGAIN, indirect=True)
def test_two_devices_give_the_result_of_one(name, first):
    assert len(tf.config.list_logical_devices("CPU")) == 2
    two = trained(name, *TINY[name], "--strategy=mirrored")
    one = driver.load(str(first), RECIPES)

    assert two.strategy.num_replicas_in_sync == 2
    for ours, theirs in zip(weights(one.model), weights(two.model), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(one.history, two.history, strict=True):
        for column in ours.keys() - {"seconds", "phase"}:
            assert theirs[column] == pytest.approx(ours[column], rel=1e-4), column
