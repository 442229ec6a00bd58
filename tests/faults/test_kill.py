"""A run that is killed at any instant, and started again, ends like one that never was."""

import importlib
import pathlib
import time

import numpy as np
import processes
import pytest

from tfbp.caching import row_file

pytestmark = pytest.mark.slow

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
FLAGS = (
    "--data=random?shape=32,32,3&classes=2&count=40",
    *("--weights=random", "--allow=random-frozen", "--last_block=1", "--hidden=4"),
    *("--dropout=0.5", "--flip", "--shift=0.2", "--ema=0.9", "--head_epochs=3", "--tune_epochs=2"),
)

# Without augmentation, and with a few blocks of rows at both cuts, so that filling takes a while.
CACHED_FLAGS = (
    "--data=random?shape=32,32,3&classes=2&count=420&validation=0",
    *("--weights=random", "--allow=random-frozen", "--last_block=2", "--hidden=4"),
    *("--dropout=0.5", "--head_epochs=4", "--tune_epochs=3"),
)


@pytest.fixture
def kills(monkeypatch):
    """Returns the module that `make soak` runs with more kills."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("kills")

    def start(job):
        program = "from recipes.__main__ import main; main()"
        return processes.start(program, *job.arguments, log=job.log)

    monkeypatch.setattr(module.Job, "start", start)
    return module


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


def marks(folder):
    """Returns which blocks are filled, of each cache in a folder."""
    return {
        path.parent: np.fromfile(path, "<u8") != 0
        for path in folder.glob(f"*/{row_file.MARKS}")
        if not path.parent.name.endswith(".tmp")
    }


def test_a_run_killed_while_it_computes_features_goes_on_with_those_that_are_there(kills, tmp_path):
    alone = kills.Job(tmp_path / "alone", "vgg16", CACHED_FLAGS)
    alone.finish()
    job = kills.Job(tmp_path / "killed", "vgg16", CACHED_FLAGS)
    process = job.start()
    while process.poll() is None:
        if any(0 < filled.sum() < filled.size for filled in marks(job.cache).values()):
            process.kill()
            break
        time.sleep(0.001)
    assert process.wait() < 0
    before = marks(job.cache)
    assert any(filled.any() for filled in before.values())
    assert not all(filled.all() for filled in before.values())
    for claim in job.cache.glob(f"*/{row_file.CLAIMS}/*"):
        claim.unlink()

    job.finish()
    after = marks(job.cache)
    assert {path.name for path in after} == {path.name for path in marks(alone.cache)}
    for folder, filled in after.items():
        # Who computes a block claims it.
        claimed = {int(path.name) for path in (folder / row_file.CLAIMS).iterdir()}
        there = before.get(folder, np.zeros_like(filled))
        assert filled.all()
        assert claimed == set(np.flatnonzero(~there).tolist())
    assert kills.differing_bits(alone, job) == 0


def test_one_bit_and_one_value_more_are_counted(kills):
    assert kills._bits([1.5, 2.0], [1.5, 2.0]) == 0
    assert kills._bits([1.5, 2.0], [1.5, -2.0]) == 1
    assert kills._bits([1.5], [1.5, 2.0]) >= 64
    assert kills._bits(["a", "b"], ["a", "c"]) == 1
    assert kills._bits("[0.25]", "[0.5]") == 1
