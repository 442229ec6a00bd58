import os
import pathlib
import resource
import subprocess
import sys

import pytest
from absl import logging

from tfbp import commands
from tfbp.errors import CheckFailed, UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plain.py").write_text('"""Does one thing.\n\nAt length.\n"""\nimport nothing\n')
    (tmp_path / "other.py").write_text('"""Does another."""\n')
    (tmp_path / "_hidden.py").write_text('"""Is no recipe."""\n')
    return tmp_path


def python(*arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=kept | environment,
    )


@pytest.mark.parametrize("argv", [[], ["list"]])
def test_recipes_are_listed_a_line_each_without_importing_them(folder, argv, capsys):
    assert commands.main(folder, argv) == 0
    assert capsys.readouterr().out == "other  Does another.\nplain  Does one thing.\n"


def test_listing_imports_no_tensorflow():
    program = (
        "import sys; from tfbp import commands; commands.main('recipes', ['list']);"
        "print({'tensorflow', 'keras', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    assert python("-c", program).stderr == "set()\n"


def test_listing_takes_less_than_half_a_second_of_a_core():
    # Not by the clock: what other processes on the machine take is not ours.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert python("-m", "recipes", "list").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["rnu"],
            "Error: `command` must be one of the commands. Received: 'rnu'.",
        ),
        (["list", "all"], "Error: `list` must be called without arguments. Received: 'all'."),
        (["run"], "Error: `RECIPE` must come first, before the flags. Received: ''."),
        (["plan", "--epochs=1", "plain"], "Error: `RECIPE` must come first, before the flags."),
        (["run", "palin"], "Error: `recipe` must be a known recipe"),
        (["run", "gone.py"], "Error: `recipe` must be a file that exists. Received: 'gone.py'."),
        (["evaluate"], "Error: `RUN` must be one run's directory. Received: ''."),
        (["export", "a", "b"], "Error: `RUN` must be one run's directory. Received: 'a b'."),
        (["predict", "a"], "Error: `predict` must be given SAVED_MODEL and at least one INPUT."),
    ],
)
def test_a_mistake_is_one_message_and_code_2(folder, argv, expected, capsys):
    assert commands.main(folder, argv) == 2
    said = capsys.readouterr()
    assert said.err.startswith(expected)
    assert (said.out, "Traceback" in said.err) == ("", False)


@pytest.mark.parametrize("command", [*commands.COMMANDS, "--help", "help"])
def test_every_command_has_help(folder, command, capsys):
    arguments = [command] if "help" in command else [command, "--help"]
    assert commands.main(folder, arguments) == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "value"), [("KERAS_BACKEND", "jax"), ("TF_USE_LEGACY_KERAS", "1")]
)
def test_another_keras_is_refused_in_one_line(variable, value):
    for arguments in (["list"], ["run", "mlp"]):
        said = python("-m", "recipes", *arguments, **{variable: value})
        assert said.returncode == 2
        assert said.stderr.startswith(f"Error: `{variable}` must be ")
        assert said.stderr.count("\n") == 1


def test_nothing_but_the_message_reaches_standard_error():
    said = python("-m", "recipes", "predict", "no_such_model", "1")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("Error: `SAVED_MODEL` must be")
    assert said.stderr.count("\n") == 1


def raising(error):
    def run():
        raise error

    return run


def test_a_command_without_a_code_of_its_own_ends_with_0():
    assert commands.exit_code(lambda: None) == 0
    assert commands.exit_code(lambda: 3) == 3


def test_an_interrupted_command_ends_with_code_130(capsys):
    assert commands.exit_code(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_the_log_shows_the_exception_that_it_is_given(capsys):
    def fail():
        try:
            raise RuntimeError("the reason")
        except RuntimeError as error:
            logging.error("A request failed.", exc_info=error)
        raise UserError("The end.")

    assert commands.exit_code(fail) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Warning: A request failed."
    assert lines[-2:] == ["RuntimeError: the reason", "Error: The end."]


def test_a_proof_that_fails_is_one_message_and_code_1(capsys):
    error = CheckFailed("Frozen variables changed while training: body/kernel.")
    assert commands.exit_code(raising(error)) == 1
    assert capsys.readouterr().err == f"Failed: {error}\n"
