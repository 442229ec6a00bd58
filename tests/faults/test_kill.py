"""A run that is killed at any instant, and started again, ends like one that never was."""

import importlib
import pathlib

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
FLAGS = (
    "--data=random?shape=32,32,3&classes=2&count=40",
    *("--weights=random", "--allow=random-frozen", "--last_block=1", "--hidden=4"),
    *("--dropout=0.5", "--flip", "--shift=0.2", "--ema=0.9", "--head_epochs=3", "--tune_epochs=2"),
)


@pytest.fixture
def kills(monkeypatch):
    """Returns the module that `make soak` runs with more kills."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kills")


def test_a_run_killed_at_each_kind_of_moment_ends_as_if_it_had_not_been(kills, tmp_path):
    alone = kills.Job(tmp_path / "alone", "vgg16", (*kills.SETTINGS, *FLAGS))
    alone.finish()

    job = kills.Job(tmp_path / "killed", "vgg16", (*kills.SETTINGS, *FLAGS))
    assert job.kill("at random", 3)
    assert job.kill("in a checkpoint", 0)
    assert job.kill("in the export", 0)
    assert not (job.run / "manifest.json").exists()
    job.finish()
    assert (job.run / "manifest.json").exists()
    assert kills.differing_bits(alone, job) == 0


def test_one_bit_and_one_value_more_are_counted(kills):
    assert kills._bits([1.5, 2.0], [1.5, 2.0]) == 0
    assert kills._bits([1.5, 2.0], [1.5, -2.0]) == 1
    assert kills._bits([1.5], [1.5, 2.0]) >= 64
    assert kills._bits(["a", "b"], ["a", "c"]) == 1
    assert kills._bits("[0.25]", "[0.5]") == 1
