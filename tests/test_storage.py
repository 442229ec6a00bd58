import os
import threading

import pytest

from tfbp import storage


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
    monkeypatch.setattr(storage.shutil, "rmtree", lambda path: seen.append(path.name))
    storage.remove(tmp_path / "1")
    assert not (tmp_path / "1").exists()
    assert len(seen) == 1 and not seen[0].isdecimal()
