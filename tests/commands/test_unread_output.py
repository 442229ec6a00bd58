"""Commands whose output nobody reads any more, as in `… | head -1`: they end quietly with 141."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest
from absl import logging

from tfbp import commands
from tfbp.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def unread():
    """Returns a text stream into a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as stream:
        yield stream  # closed without an error: what is left in it goes nowhere


@pytest.mark.parametrize(
    "argv", [["list"], ["--help"], ["run", "--help"], ["plan", "mlp", "--help"], ["serve", "-h"]]
)
def test_without_a_reader_a_command_ends_with_141(unread, argv, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", unread)
    assert commands.main(ROOT / "recipes", argv) == 141
    assert capsys.readouterr().err == ""


def test_a_mistake_that_nobody_reads_ends_with_141(unread, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", unread)
    assert commands.main(ROOT / "recipes", ["rnu"]) == 141
    assert capsys.readouterr().out == ""


def test_a_reader_that_leaves_before_the_end_is_noticed_at_the_end(unread, monkeypatch):
    monkeypatch.setattr(sys, "stdout", unread)
    assert commands.exit_code(lambda: print("kept in Python's buffer")) == 141


def test_a_log_that_nobody_reads_stops_nothing(unread, monkeypatch, capsys):
    def run():
        logging.warning("lost")
        print("done")

    monkeypatch.setattr(sys, "stderr", unread)
    assert commands.exit_code(run) == 141
    assert capsys.readouterr().out == "done\n"


def test_another_pipe_that_breaks_is_an_error_of_its_own():
    def run():
        ours, theirs = socket.socketpair()
        theirs.close()
        with ours:
            ours.sendall(b"to nobody")

    with pytest.raises(BrokenPipeError):
        commands.exit_code(run)


def test_a_command_that_fails_on_the_way_says_so_where_somebody_reads(unread, monkeypatch, capsys):
    def run():
        raise UserError("The end.")

    monkeypatch.setattr(sys, "stdout", unread)
    assert commands.exit_code(run) == 2
    assert capsys.readouterr().err == "Error: The end.\n"


@pytest.mark.parametrize(
    "argv",
    [["list"], ["run", "linear_regression", "--epochs=2", "--export_dir=e", "--workdir=r"]],
    ids=["list", "run"],
)
def test_the_process_ends_with_141_and_without_a_word(tmp_path, unread, argv):
    program = (
        "import sys; from tfbp import commands; sys.exit(commands.main(sys.argv[1], sys.argv[2:]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, ROOT / "recipes", *argv],
        stdout=unread,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (141, "")
