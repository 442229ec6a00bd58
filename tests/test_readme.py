"""What the README shows is run: the library's lines, and the recipe that it writes."""

import json
import pathlib
import re
import shlex

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp import commands, recipe
from tfbp.commands import flags

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Makes an empty folder the current one, and returns it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code(heading):
    """Returns the first Python block under a heading."""
    section = README.partition(f"## {heading}\n")[2]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def replaced(text, changes):
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def write_flowers(folder, classes=("daisy", "rose", "tulip"), count=8):
    generator = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = generator.integers(0, 128, (40, 48, 3), np.uint8)
            image[..., label] += 100
            content = tf.io.encode_jpeg(image).numpy()
            (folder / name / f"{number}.jpg").write_bytes(content)


def test_the_library_lines_train_evaluate_and_export(here, capsys):
    write_flowers(here / "flowers")
    keras.utils.set_random_seed(0)
    small = {
        'WEIGHTS = "imagenet"': "WEIGHTS = None",
        "size=224": "size=32",
        "epochs=3": "epochs=1",
        'workdir="runs/flowers"': 'workdir="runs/flowers", allow=("random-frozen",)',
    }
    names = {}
    exec(compile(replaced(code("As a library"), small), "README.md", "exec"), names)
    run, splits = names["run"], names["splits"]

    assert splits.classes == ("daisy", "rose", "tulip")
    metrics = run.evaluate(splits.test)
    assert str(metrics) in capsys.readouterr().out
    assert metrics["loss"] > 0 and 0 <= metrics["accuracy"] <= 1
    assert set(metrics["report"]["per_class"]) == set(splits.classes)
    result = json.loads((here / "runs" / "flowers" / "result.json").read_text())
    assert [phase["name"] for phase in result["phases"]] == ["head", "tune"]
    assert result["phases"][0]["trained"] == ["head"]
    assert any(path.startswith("resnet50v2/conv5_") for path in result["phases"][1]["trained"])

    exported = tf.saved_model.load(str(here / "saved_models" / "flowers" / "1"))
    images, _ = splits.test.read(np.arange(splits.test.size))
    answer = exported.signatures["serving_default"](image=images)
    np.testing.assert_allclose(answer["logits"], names["model"](images), rtol=1e-3, atol=1e-5)
    assert set(answer["class"].numpy().astype(str)) <= set(splits.classes)


def test_the_recipe_runs_from_the_command_line(here, capsys):
    (here / "convnet.py").write_text(code("Your own recipe"))
    tiny = ["--data=digits?per_class=3", "--size=8", "--filters=2,3", "--epochs=2"]
    assert commands.main(RECIPES, ["run", "./convnet.py", *tiny]) == 0
    result = json.loads((here / "runs" / "convnet" / "1" / "result.json").read_text())
    assert result["data"]["sizes"]["train"] == 30
    exported = result["export"]["path"]
    assert (here / exported / "saved_model.pb").is_file()

    (here / "image.png").write_bytes(tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy())
    capsys.readouterr()
    assert commands.main(RECIPES, ["predict", "saved_models/convnet", "image.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["class"] in result["data"]["classes"]

    # Its `--weights`, as the README's recipe takes them: those of the run before.
    again = ["plan", "./convnet.py", *tiny, "--weights=runs/convnet/1"]
    assert commands.main(RECIPES, again) == 0


def test_what_the_readme_names_is_there():
    for name, summary in recipe.summaries(RECIPES).items():
        assert f"| `{name}` |" in README, name
        assert summary
    for command in commands.COMMANDS:
        assert re.search(rf"^\| `{command}\b", README, re.MULTILINE), command
    for name in ("LICENSE", "CHANGELOG.md"):
        assert f"]({name})" in README and (ROOT / name).is_file()


LINES = README.replace("\\\n", " ")  # a call may go on in the next line


@pytest.mark.parametrize("line", re.findall(r"^python -m recipes ((?:run|plan) .*)$", LINES, re.M))
def test_the_calls_that_the_readme_shows_are_calls(line, here):
    (here / "convnet.py").write_text(code("Your own recipe"))
    _, *arguments = shlex.split(line, comments=True)
    flags.recipe_and_config(RECIPES, arguments, about="")
