"""The README's lines are run; it is short, and the Chinese one says the same."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp import commands, recipe

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")
LINES = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]


def replaced(text, changes):
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.slow
def test_the_library_lines_train_evaluate_and_export(here, capsys):
    keras.utils.set_random_seed(0)
    small = {
        'weights="imagenet"': "weights=None",
        "size=224": "size=32",
        "epochs=3": "epochs=1",
        'workdir="runs/flowers"': 'workdir="runs/flowers", allow="weights-not-loaded"',
    }
    names = {}
    exec(compile(replaced(LINES, small), "README.md", "exec"), names)
    run, splits = names["run"], names["splits"]

    assert splits.classes == ("daisy", "rose", "tulip")
    metrics = run.evaluate(splits.test)
    assert str(metrics) in capsys.readouterr().out
    assert metrics["loss"] > 0 and 0 <= metrics["accuracy"] <= 1
    assert set(metrics["report"]["per_class"]) == set(splits.classes)
    result = json.loads((here / "runs" / "flowers" / "result.json").read_text())
    assert [phase["name"] for phase in result["phases"]] == ["head", "tune"]
    assert result["phases"][0]["trained"] == ["head"]
    assert any(path.startswith("vgg16/block5_") for path in result["phases"][1]["trained"])

    exported = tf.saved_model.load(str(here / "saved_models" / "flowers" / "1"))
    images, _ = splits.test.read(np.arange(splits.test.size))
    answer = exported.signatures["serving_default"](image=images)
    np.testing.assert_allclose(answer["logits"], names["model"](images), rtol=1e-3, atol=1e-5)
    assert set(answer["class"].numpy().astype(str)) <= set(splits.classes)


def test_it_has_ten_kilobytes_at_most_and_twelve_lines_of_code():
    for text in (README, CHINESE):
        assert len(text.encode()) <= 10_000
    assert len([line for line in LINES.splitlines() if line]) <= 12


def test_the_chinese_readme_has_the_same_code_links_and_figures():
    def code(text):
        return re.findall(r"^```.*?^```$", text, re.DOTALL | re.MULTILINE)

    def links(text):
        return sorted(re.findall(r"\]\(([^)]+)\)", text.partition("\n## ")[2]))

    def figures(text):
        table = re.search(r"^\|---\|---\|\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE)[1]
        digits = re.findall(r"[+-]?\d[\d,.]*", table.replace("2:26", "2 26"))
        return sorted(each.rstrip(".,") for each in digits)

    assert code(CHINESE) == code(README)
    assert links(CHINESE) == links(README)
    assert figures(CHINESE) == figures(README)


def test_its_links_lead_to_files():
    for text in (README, CHINESE):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert (ROOT / link).is_file(), link


def test_recipes_and_commands_stand_in_their_tables():
    recipes = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name, summary in recipe.summaries(ROOT / "recipes").items():
        assert f"| `{name}` |" in recipes and f"`{name}`" in README, name
        assert summary
    lines = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    for command in commands.COMMANDS:
        assert re.search(rf"^\| `{command}\b", lines, re.MULTILINE), command
