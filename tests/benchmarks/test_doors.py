"""The table of ways in: a row made here, and all of them where there is time."""

import pathlib

import numpy as np
import pytest


@pytest.fixture
def doors(script):
    return script("doors")


class Stopped(Exception):
    pass


def stop():
    raise Stopped


def test_several_outputs_are_resumed_cached_exported_and_asked(doors, tmp_path, monkeypatch):
    monkeypatch.setattr(doors.feature_cache, "seconds_saved", None)  # `train` sets it
    name = "two outputs"
    alone = doors.train(name, tmp_path / "alone")
    assert alone.result["phases"][0]["features"]["cut"] == ["body"]
    with pytest.raises(Stopped):
        doors.train(name, tmp_path / "stopped", doors.Kill(stop))
    assert doors.otherwise(alone, doors.train(name, tmp_path / "stopped")) == 0
    version = pathlib.Path(alone.export(str(tmp_path / "exports" / "door")))
    assert doors.reload(alone, version) <= doors.CLOSE
    assert doors.ask(alone, version) <= doors.CLOSE


def test_what_differs_is_counted(doors, tmp_path):
    assert doors.apart({"y": np.array([1.0, 2.0])}, {"y": np.array([1.0, 2.0001])}) > 0
    with pytest.raises(AssertionError, match="y"):
        doors.apart({"y": np.array([1.0, 2.0])}, {"y": np.array([1.0, 2.1])})
    with pytest.raises(AssertionError, match="name"):
        doors.apart({"name": np.array(["a"])}, {"name": np.array([b"b"], object)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two inputs", "several labels"])
def test_each_way_in_leads_to_the_end(doors, name, tmp_path, monkeypatch):
    monkeypatch.setattr(doors.feature_cache, "seconds_saved", None)
    said = doors.tried(name, tmp_path)
    assert said["resumed"] == "to the bit"
    assert (said["cached"] != "no") == doors.door_rows.ROWS[name].frozen
    assert ("two workers" in said) == (name in doors.ON_TWO_WORKERS)
