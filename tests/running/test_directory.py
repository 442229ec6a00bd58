import json
import os

import pytest

from tfbp.errors import UserError
from tfbp.running import directory as run_directory

ASKED = {"recipe": "mlp", "config": {"seed": 0, "layers": [4, 2]}}
OTHER = {"recipe": "mlp", "config": {"seed": 1, "layers": [4, 2]}}


SOURCE = {"code": "0a1b", "keras": "3.15.1"}


def begin(path, asked=ASKED, source=SOURCE, **settings):
    with run_directory.claim(path, asked, source, **settings) as directory:
        return directory


def end(path):
    for name in (run_directory.HISTORY, run_directory.MODEL):
        (path / name).write_text("")
    run_directory.end(path, {"seconds": 1.5}, [])


def test_a_new_run_writes_what_was_asked_and_what_code_ran(tmp_path):
    path = begin(tmp_path / "runs" / "mlp" / "1")
    assert json.loads((path / "config.json").read_text()) == {**ASKED, "source": SOURCE}
    assert [file.name for file in path.iterdir() if file.name[0] != "."] == ["config.json"]


def test_the_same_run_is_taken_up_again_with_all_its_files(tmp_path):
    path = begin(tmp_path / "1")
    (path / "checkpoints").mkdir()
    assert begin(str(path)) == path
    assert (path / "checkpoints").is_dir()


def test_a_run_that_was_killed_before_it_wrote_anything_can_begin(tmp_path):
    (tmp_path / ".lock").write_text("")
    assert begin(tmp_path) == tmp_path


def test_other_code_is_a_warning_that_says_which(tmp_path, caplog):
    begin(tmp_path)
    assert not caplog.records
    begin(tmp_path, source={"code": "0a1b", "keras": "3.16.0"})
    (record,) = caplog.records
    assert "goes on with other code than it began with" in record.getMessage()
    assert "`keras` ('3.15.1', not '3.16.0')" in record.getMessage()
    assert "`code`" not in record.getMessage()


def test_a_directory_in_which_somebody_is_at_work_is_refused_and_not_set_aside(tmp_path):
    with run_directory.claim(tmp_path / "1", ASKED, SOURCE):
        for restart in (False, True):
            with pytest.raises(UserError, match=f"process {os.getpid()} on host"):
                begin(tmp_path / "1", restart=restart)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_restart_begins_anew_and_keeps_every_run_before_beside(tmp_path):
    path = begin(tmp_path / "mine")
    (path / "first").write_text("")
    begin(path, OTHER, restart=True)
    (path / "second").write_text("")
    end(path)
    begin(path, restart=True)
    assert not run_directory.ended(path)
    assert (tmp_path / "mine.1" / "first").exists()
    assert (tmp_path / "mine.2" / "second").exists()
    assert run_directory.ended(tmp_path / "mine.2")
    assert begin(tmp_path / "new", restart=True).is_dir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.jpg").write_bytes(b"jpeg")
    with pytest.raises(UserError, match="must be empty, or hold a run"):
        begin(tmp_path / "photos", restart=True)


def test_another_run_is_refused_by_the_fields_that_differ(tmp_path):
    path = begin(tmp_path)
    with pytest.raises(UserError) as caught:
        begin(path, OTHER)
    assert "holds another run, which differs in `seed` (0, not 1)." in str(caught.value)
    assert repr(str(path)) in str(caught.value)
    assert run_directory.read(path)["config"] == ASKED["config"]

    asked = {"recipe": "vgg16", "config": {"seed": 0, "size": 32}}
    with pytest.raises(UserError) as caught:
        run_directory.check(path, asked)
    for part in ("`recipe` ('mlp', not 'vgg16')", "`layers` ([4, 2], not None)", "`size` (None"):
        assert part in str(caught.value)
    assert "`seed`" not in str(caught.value)


def test_a_directory_of_other_files_and_a_file_are_refused_and_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"jpeg")
    with pytest.raises(UserError, match="must be empty, or hold a run"):
        begin(tmp_path)
    with pytest.raises(UserError, match="`workdir` must be a directory"):
        begin(tmp_path / "photo.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must be a directory that can be written"):
        begin(tmp_path / "file" / "run")


def test_without_a_number_the_newest_unfinished_run_of_equal_settings_goes_on(tmp_path):
    def found():
        return run_directory.next_or_unfinished(tmp_path, ASKED)

    assert run_directory.next_or_unfinished(tmp_path / "none", ASKED) == tmp_path / "none" / "1"
    assert found() == tmp_path / "1"
    for number, asked in ((2, ASKED), (9, ASKED), (10, OTHER)):
        begin(tmp_path / str(number), asked)
    for name in ("notes", "²", "12.tmp"):
        (tmp_path / name).mkdir()
    assert found() == tmp_path / "9"
    end(tmp_path / "9")
    assert run_directory.ended(tmp_path / "9")
    assert found() == tmp_path / "2"
    end(tmp_path / "2")
    assert found() == tmp_path / "11"


def test_a_run_that_has_not_ended_has_no_result_to_read(tmp_path):
    with pytest.raises(UserError, match=r"must be the directory of a run \(it holds no config"):
        run_directory.read(tmp_path)
    begin(tmp_path)
    assert not run_directory.ended(tmp_path)
    with pytest.raises(UserError, match=r"that has ended \(it holds no result.json\)"):
        run_directory.read(tmp_path, run_directory.RESULT)
    end(tmp_path)
    assert run_directory.read(tmp_path, run_directory.RESULT) == {"seconds": 1.5}


def test_the_history_comes_back_as_it_was_written(tmp_path):
    (tmp_path / "history.csv").write_text(
        "phase,epoch,seconds,loss,val_loss\nhead,1,0.25,1e-05,\n2,1,0.5,0.1,0.30000000000000004\n"
    )
    assert run_directory.history(tmp_path) == [
        {"phase": "head", "epoch": 1, "seconds": 0.25, "loss": 1e-05},
        {"phase": "2", "epoch": 1, "seconds": 0.5, "loss": 0.1, "val_loss": 0.1 + 0.2},
    ]


def test_a_damaged_file_is_named(tmp_path):
    begin(tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": "ml')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        begin(tmp_path)


def test_a_damaged_run_is_passed_over_and_can_be_set_aside(tmp_path, caplog):
    begin(tmp_path / "1")
    (tmp_path / "1" / "config.json").write_text('{"recipe": "ml')
    assert run_directory.next_or_unfinished(tmp_path, ASKED) == tmp_path / "2"
    assert "config.json is damaged" in caplog.text
    begin(tmp_path / "1", restart=True)
    assert run_directory.read(tmp_path / "1")["recipe"] == "mlp"
    assert (tmp_path / "1.1" / "config.json").is_file()
