import hashlib
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from tfbp import storage
from tfbp.errors import UserError
from tfbp.storage import publishing

# Publishes `argv[1]`/1 until it is told to go on.
PUBLISHER = """
import pathlib, sys
from tfbp import storage
with storage.publish(pathlib.Path(sys.argv[1]) / "1") as beside:
    (beside / "half").write_text("half")
    print(beside.name, flush=True)
    sys.stdin.read()
"""


class Fault(Exception):
    pass


def fail(*args):
    raise Fault


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "result.json"
    storage.write_text(path, "old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(Fault):
        storage.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_text_or_the_new_one_whole(tmp_path):
    path, texts = tmp_path / "result.json", ("é" * 40_000, "ü" * 90_000)
    storage.write_text(path, texts[0])

    def write():
        for number in range(30):
            storage.write_text(path, texts[number % 2])

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(path.read_text(encoding="utf-8"))
    writer.join()
    assert seen <= set(texts)


def test_a_folder_is_published_with_all_that_was_written(tmp_path):
    folder = tmp_path / "saved" / "7"
    with storage.publish(folder) as beside:
        assert not folder.exists()
        assert not beside.name.isdecimal()
        (beside / "variables").mkdir()
        (beside / "variables" / "data").write_bytes(b"weights")
    assert (folder / "variables" / "data").read_bytes() == b"weights"
    assert list(folder.parent.iterdir()) == [folder]


def test_every_file_and_folder_is_on_disk_before_the_rename(tmp_path, monkeypatch):
    events, fsync, rename = [], os.fsync, os.rename

    def sync(descriptor):
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def move(source, target):
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", move)
    with storage.publish(tmp_path / "1") as beside:
        (beside / "assets").mkdir()
        (beside / "assets" / "labels.txt").write_text("cat")
        (beside / "graph").write_bytes(b"g")
    published = tmp_path / "1"
    inodes = {path.stat().st_ino for path in (published, *published.rglob("*"))}
    before = events[: events.index("rename")]
    assert len(inodes) == 4
    assert inodes == set(before)
    assert events[-1] == tmp_path.stat().st_ino


@pytest.mark.parametrize("call", ["fsync", "rename", None])
def test_a_failure_while_publishing_leaves_nothing_behind(tmp_path, monkeypatch, call):
    if call:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(Fault), storage.publish(tmp_path / "1") as beside:
        (beside / "half").write_text("half")
        if not call:
            raise Fault
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [[], ["graph"]])
def test_a_folder_that_exists_is_not_replaced(tmp_path, kept):
    folder = tmp_path / "1"
    folder.mkdir()
    for name in kept:
        (folder / name).write_text("first")
    with pytest.raises(FileExistsError, match="exists already"), storage.publish(folder) as beside:
        (beside / "graph").write_text("second")
    assert [path.name for path in folder.iterdir()] == kept
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_appears_at_the_last_moment_is_not_replaced(tmp_path, monkeypatch):
    folder, rename = tmp_path / "1", os.rename

    def late(source, target):
        folder.mkdir()
        (folder / "graph").write_text("first")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(FileExistsError, match="exists already"), storage.publish(folder) as beside:
        (beside / "graph").write_text("second")
    assert (folder / "graph").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_is_removed_and_a_link_without_what_it_shows(tmp_path):
    (tmp_path / "1" / "variables").mkdir(parents=True)
    (tmp_path / "1" / "variables" / "data").write_text("data")
    (tmp_path / "other").mkdir()
    (tmp_path / "2").symlink_to(tmp_path / "other")
    for name in ("1", "2", "3"):  # there is no third
        storage.remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_goes_out_of_sight_before_its_files_go(tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    seen = []
    monkeypatch.setattr(publishing.shutil, "rmtree", lambda path: seen.append(path.name))
    storage.remove(tmp_path / "1")
    assert not (tmp_path / "1").exists()
    assert len(seen) == 1 and not seen[0].isdecimal()


def test_a_file_that_another_writes_is_there_whole_and_keeps_its_ending(tmp_path):
    path = tmp_path / "model.keras"
    with storage.replacing(path) as beside:
        assert beside.name == "model.keras"
        beside.write_bytes(b"first")
        assert not path.exists()
    with storage.replacing(path) as beside:
        beside.write_bytes(b"second")
        assert path.read_bytes() == b"first"
    with pytest.raises(Fault), storage.replacing(path) as beside:
        beside.write_bytes(b"half")
        raise Fault
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_two_that_publish_the_same_folder_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers with one volume
    with pytest.raises(FileExistsError), storage.publish(tmp_path / "1") as slow:
        (slow / "graph").write_text("slow")
        with storage.publish(tmp_path / "1") as fast:
            (fast / "graph").write_text("fast")
        assert (slow / "graph").read_text() == "slow"
    assert (tmp_path / "1" / "graph").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [tmp_path / "1"]


def test_a_manifest_names_every_file_by_size_and_hash(tmp_path):
    contents = {"a": b"", "assets/labels.txt": b"cat", "variables/data-00000": bytes(3_000_000)}
    with storage.publish(tmp_path / "1", manifest=True) as beside:
        for name, content in contents.items():
            (beside / name).parent.mkdir(exist_ok=True)
            (beside / name).write_bytes(content)
    assert json.loads((tmp_path / "1" / "manifest.json").read_text()) == {
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in contents.items()
        }
    }
    storage.verify(tmp_path / "1")


def test_the_manifest_of_a_folder_that_is_there_names_what_it_was_told_to(tmp_path):
    for name in ("model.keras", "result.json", "log.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events").write_text("events")
    storage.write_manifest(tmp_path, ["model.keras", "tensorboard/events"])
    (tmp_path / "log.txt").write_text("more")
    storage.verify(tmp_path)
    (tmp_path / "model.keras").write_text("other")
    with pytest.raises(storage.Damaged, match=r"'model\.keras' has 5 bytes, not 11"):
        storage.verify(tmp_path)
    storage.write_manifest(tmp_path, ["model.keras"])
    storage.verify(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json` cannot be written: No such file"):
        storage.write_manifest(tmp_path, ["model.keras", "none"])
    storage.verify(tmp_path)


def test_the_files_are_on_disk_before_the_manifest_that_names_them(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)

    def sync(descriptor):
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def move(source, target):
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    storage.write_manifest(tmp_path, ["a", "b"])
    files = {path.stat().st_ino for path in tmp_path.iterdir()}
    assert len(files) == 3
    assert set(events[: events.index("replace")]) == files


def test_only_what_the_dead_have_left_is_swept(tmp_path):
    kept = {".notes.tmp", "3.77.tmp", ".12.tmp", "result.json", ".lock", ".7.old.copy"}
    for name in kept:
        (tmp_path / name).write_text("mine")
    for name in (".3.77.tmp", ".3.77.4242.tmp", ".2.77.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "variables").write_text("half")
    (tmp_path / ".result.json.77.4242.tmp").write_text("half")
    (tmp_path / ".4.77.1.old").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("of somebody else")
    storage.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept | {"elsewhere"}
    assert (tmp_path / "elsewhere" / "file").exists()
    storage.sweep(tmp_path / "nowhere")


def test_what_a_living_process_writes_is_not_swept_until_it_is_killed(tmp_path):
    arguments = [sys.executable, "-c", PUBLISHER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    root = str(pathlib.Path(storage.__file__).parents[2])
    with subprocess.Popen(arguments, **pipes, env=os.environ | {"PYTHONPATH": root}) as process:
        beside = tmp_path / process.stdout.readline().strip()
        storage.sweep(tmp_path)
        assert (beside / "half").exists()
        process.kill()
    assert (beside / "half").exists()
    storage.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [storage.publish, storage.replacing])
def test_what_this_process_writes_is_not_swept(tmp_path, write):
    with write(tmp_path / "1") as beside:
        storage.sweep(tmp_path)
        if write is storage.replacing:
            beside.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
