"""Every block of code on a page is run here, or is marked as output."""

import configparser
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tfbp import commands
from tfbp.commands import flags

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
}
# Blocks with these marks are run; the others are output, or a call that needs another machine.
RUN, SHOWN = {"python", "sh"}, {"console", "text"}
# The README's lines are run in test_readme.py, and the quickstart shows the same ones. What a
# program of several workers needs is started below.
PYTHON = ["data.md", "tasks.md", "phases.md", "gradients.md", "audit.md", "recipes.md"]
# Flags that make a call short, by what it runs.
SHORT = {
    "vgg16": ["--scratch_epochs=1", "--head_epochs=1", "--tune_epochs=1"],
    "./convnet.py": ["--data=digits?per_class=3", "--size=8", "--filters=2,3", "--epochs=2"],
    "mlp": ["--epochs=1"],
}


def blocks(page: str) -> list[tuple[str, str]]:
    """Returns the blocks of code of a page: language, text."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def code(page: str) -> list[str]:
    return [text for language, text in blocks(page) if language == "python"]


def calls(page: str) -> list[list[str]]:
    """Returns the calls that a page shows, as words."""
    texts = [text.replace("\\\n", " ") for language, text in blocks(page) if language == "sh"]
    lines = [shlex.split(line, comments=True) for text in texts for line in text.splitlines()]
    return [words for words in lines if words]


def call(words: list[str]) -> None:
    """Runs a call, a short one of its kind; one that would install or test is looked up."""
    match words:
        case ["python", "-m", "recipes", *arguments]:
            short = [flag for recipe in SHORT for flag in SHORT[recipe] if recipe in arguments]
            short = [flag for flag in short if "plan" not in arguments or "epochs" not in flag]
            assert commands.main(RECIPES, [*arguments, *short]) == 0, words
        case ["python", "-m", "pytest", *arguments]:
            assert all((ROOT / each).exists() for each in arguments if each.startswith("tests"))
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case ["pip", "install", what]:
            extras = configparser.ConfigParser()
            extras.read(ROOT / "setup.cfg")
            asked = re.fullmatch(r"\.(?:\[(.+)\])?", what)[1]
            assert asked is None or asked in extras["options.extras_require"]
        case ["source", ".venv/bin/activate"] | ["pre-commit", "install"]:
            pass
        case _:
            pytest.fail(f"no test knows how to run {shlex.join(words)}")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_marked_as_code_that_is_run_or_as_output(page):
    assert PAGES[page].count("\n```") == 2 * len(blocks(page))
    for language, text in blocks(page):
        assert language in RUN | SHOWN, text


def test_every_page_with_python_is_among_those_that_are_run():
    with_python = {page for page in PAGES if code(page)}
    elsewhere = {"README.md", "README.zh.md", "quickstart.md", "workers.md", "serving.md"}
    assert with_python - elsewhere == set(PYTHON)
    assert code("quickstart.md") == code("README.md") == code("README.zh.md")


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(page, here, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    names = {}
    for text in code(page):
        if text.startswith('"""'):  # a recipe, which the page says to save
            (here / "convnet.py").write_text(text)
        else:
            exec(compile(text, page, "exec"), names)
    sys.modules.pop("convnet", None)
    assert names


@pytest.mark.parametrize(
    "page",
    [
        "CONTRIBUTING.md",
        *(pytest.param(page, marks=pytest.mark.slow) for page in ("recipes.md", "command_line.md")),
    ],
)
def test_the_calls_of_a_page_run(page, here):
    (here / "convnet.py").write_text(code("recipes.md")[0])
    assert calls(page)
    for words in calls(page):
        call(words)


def test_the_readme_shows_calls_of_the_quickstart():
    assert calls("README.md") == calls("README.zh.md")
    assert [words for words in calls("quickstart.md") if words in calls("README.md")] == calls(
        "README.md"
    )


@pytest.mark.slow
def test_the_calls_of_the_quickstart_run(here):
    for words in calls("quickstart.md"):
        call([word.replace("--data=glyphs", "--data=glyphs?count=2") for word in words])
    assert len(list((here / "saved_models" / "vgg16").iterdir())) == 3


@pytest.mark.slow
def test_the_call_of_the_page_on_workers_runs(here, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (words,) = calls("workers.md")
    subprocess.run([sys.executable, *words[1:]], check=True)
    assert (here / "runs" / "mlp" / "1" / "result.json").is_file()


@pytest.mark.slow
def test_the_program_of_the_page_on_workers_runs_on_two(here, start_workers):
    (program,) = code("workers.md")
    folders = [here / "a", here / "b"]
    for folder in folders:
        folder.mkdir()
    workers = start_workers(program, folders=folders)
    said = [here / f"{folder}.{index}.log" for index, folder in enumerate(folders)]
    assert [worker.wait(180) for worker in workers] == [0, 0], [log.read_text() for log in said]
    assert (folders[0] / "shared" / "run" / "result.json").is_file()


@pytest.mark.parametrize(
    "words",
    [words for page in PAGES for words in calls(page) if words[1:2] == ["-m"] and "run" in words],
    ids=shlex.join,
)
def test_the_flags_of_a_call_are_those_of_its_recipe(words, here):
    (here / "convnet.py").write_text(code("recipes.md")[0])
    flags.recipe_and_config(RECIPES, words[words.index("run") + 1 :], about="")
