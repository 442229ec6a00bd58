"""A disk that is full, read-only, failing or gone, and a clock that runs backwards."""

import errno
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types

import pytest

import tfbp
from tfbp import storage
from tfbp.errors import CheckFailed, UserError
from tfbp.storage import disk

OLD, NEW = b"old", b"new" * 1000
DISK = {
    errno.ENOSPC: "The disk is full: `{}` needs ([0-9,]+ bytes more, |more than the )[0-9,]+ ",
    errno.EDQUOT: "`{}` cannot be written: the disk quota is used up",
    errno.EROFS: "`{}` cannot be written: the file system is read-only",
    errno.EIO: "`{}` cannot be written: the disk, or the way to it, fails",
    errno.EFBIG: "`{}` cannot be written: a file may not be that large",
}
PATH = {
    errno.EACCES: "`{}` cannot be written: Permission denied",
    errno.ENOENT: "`{}` cannot be written: No such file or directory",
}


def write_file(folder):
    storage.write_bytes(folder / "file", NEW)


def replace_file(folder):
    with storage.replacing(folder / "file") as beside:
        beside.write_bytes(NEW)


def publish_folder(folder):
    with storage.publish(folder / "new", manifest=True) as beside:
        (beside / "variables").mkdir()
        (beside / "variables" / "data").write_bytes(NEW)


def write_manifest(folder):
    storage.write_manifest(folder, ["other"])


WRITES = {
    write_file: "file",
    replace_file: "file",
    publish_folder: "new",
    write_manifest: "manifest.json",
}


def refuse(patch, code, nth):
    """Lets the nth call that changes the disk fail. Returns what counts the calls."""
    counted = itertools.count(1)

    def replaced(call):
        def called(*arguments, **settings):
            reads = call is io.open and "w" not in arguments[1]
            if not reads and next(counted) == nth:
                # The system's error on a descriptor names no file.
                named = [] if isinstance(arguments[0], int) else [str(arguments[0])]
                raise OSError(code, os.strerror(code), *named)
            return call(*arguments, **settings)

        return called

    for name in ("mkdir", "rename", "replace", *(["fsync"] if code in DISK else [])):
        patch.setattr(os, name, replaced(getattr(os, name)))
    patch.setattr(io, "open", replaced(io.open))
    return counted


@pytest.mark.parametrize("code", [*DISK, *PATH], ids=errno.errorcode.get)
@pytest.mark.parametrize("write", WRITES)
def test_whichever_call_the_disk_refuses_nothing_half_is_left(tmp_path, monkeypatch, write, code):
    name = WRITES[write]
    for nth in itertools.count(1):
        folder = tmp_path / str(nth)
        folder.mkdir()
        for kept in ("file", "other"):
            (folder / kept).write_bytes(OLD)
        error = None
        with monkeypatch.context() as patch:
            counted = refuse(patch, code, nth)
            try:
                write(folder)
            except UserError as caught:
                error = caught
        if error:
            path = re.escape(str(folder / name))
            assert re.match((DISK | PATH)[code].format(path), str(error))
        there = {path.name for path in folder.iterdir()}
        assert there - {name} == {"file", "other"} - {name}
        assert (folder / "other").read_bytes() == OLD
        assert (folder / "file").read_bytes() in (OLD, *([NEW] if name == "file" else []))
        if name in there and name != "file":
            storage.verify(folder / "new" if name == "new" else folder)
        if next(counted) <= nth:  # There are no more calls: this time all went through.
            break
        assert error or name in there
    assert error is None
    assert nth > 2


# Each try, what it says and what it leaves, on a disk that is small for real.
PROGRAM = """
import json, os, pathlib, resource, subprocess, sys
from tfbp import storage
from tfbp.errors import UserError

folder, way, libraries = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
large, said = bytes(400_000), {}
if way == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024,) * 2)

def attempt(name, write):
    try:
        write()
    except UserError as error:
        there = os.statvfs(folder)
        left = sorted(path.name for path in folder.iterdir())
        said[name] = [str(error), f"{there.f_bavail * there.f_frsize:,}", left]

def folder_of(content, files=1, **settings):
    with storage.publish(folder / "2", manifest=True, **settings) as beside:
        for number in range(files):
            (beside / str(number)).write_bytes(content)

with storage.publish(folder / "1", manifest=True) as beside:
    (beside / "state").write_bytes(bytes(20_000))
storage.write_text(folder / "result.json", "old")
attempt("file", lambda: storage.write_bytes(folder / "result.json", large))
attempt("folder", lambda: folder_of(large))
attempt("known", lambda: folder_of(large, needed=len(large)))
if libraries:
    import keras
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512), keras.layers.Dense(512)])
    def save():
        with storage.replacing(folder / "model.keras") as beside:
            model.save(beside)
    def export():
        with storage.publish(folder / "3") as beside:
            model.export(beside, verbose=False)
    attempt("save", save)
    attempt("export", export)
if way == "disk":
    attempt("inodes", lambda: folder_of(b"", files=60))
    storage.write_text(folder / "result.json", "old")
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    attempt("read-only", lambda: folder_of(b""))
    attempt("read-only file", lambda: storage.write_text(folder / "result.json", "new"))
    attempt("read-only removal", lambda: storage.remove(folder / "1"))
storage.verify(folder / "1")
assert (folder / "result.json").read_text() == "old"
print(json.dumps(said))
"""
MOUNT = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


def met(folder, way, *libraries):
    """Returns what PROGRAM says on a disk of 256 KiB and 40 inodes, or where a file may have that.

    "disk" falls back to "limit" where nothing can be mounted. The way that was gone comes first.
    """
    mount = f"mount -t tmpfs -o size=256k,nr_inodes=40 none {folder}"
    if way == "disk" and not (
        shutil.which("unshare")
        and subprocess.run([*MOUNT, mount], capture_output=True).returncode == 0
    ):
        way = "limit"
    command = [sys.executable, "-c", PROGRAM, str(folder), way, *libraries]
    if way == "disk":
        command = [*MOUNT, f'{mount} && exec "$@"', "sh", *command]
    root = str(pathlib.Path(tfbp.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return way, json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize(("way", "libraries"), [("limit", ()), ("disk", ("keras",))])
def test_a_disk_that_is_small_for_real(tmp_path, way, libraries):
    way, said = met(tmp_path, way, *libraries)
    free = "[0-9,]+" if way == "limit" else said["file"][1]
    full = {
        "file": ("result.json", f"needs 400,000 bytes more, {free} are free"),
        "folder": ("2", f"needs more than the {free} bytes that are free"),
        "known": ("2", f"needs 400,000 bytes more, {free} are free"),
    }
    if libraries:
        full["save"] = ("model.keras", f"needs more than the {free} bytes that are free")
        full["export"] = ("3", f"needs more than the {free} bytes that are free")
    for attempt, (name, rule) in full.items():
        text, _, left = said.pop(attempt)
        path = re.escape(str(tmp_path / name))
        large = f"`{path}` cannot be written: a file may not be that large"
        assert re.match(large if way == "limit" else f"The disk is full: `{path}` {rule}", text)
        assert left == ["1", "result.json"]
        assert way == "disk" or ("It needs 400,000 bytes." in text) == ("400" in rule)
    if way == "limit":
        assert said == {}
        return
    assert [value[0] for value in said.values()] == [
        f"The disk is full: `{tmp_path / '2'}` needs an inode for each file, none is free.",
        f"`{tmp_path / '2'}` cannot be written: the file system is read-only.",
        f"`{tmp_path / 'result.json'}` cannot be written: the file system is read-only.",
        f"`{tmp_path / '1'}` cannot be removed: the file system is read-only.",
    ]
    assert [value[2] for value in said.values()] == [["1", "result.json"]] * 4


def test_free_space_is_checked_where_the_path_will_be(tmp_path, monkeypatch):
    asked = []

    def small(place):
        os.stat(place)  # Like the system's own, it knows no path that is not there.
        asked.append(str(place))
        return types.SimpleNamespace(f_bavail=1, f_frsize=4096, f_files=100, f_favail=1)

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "statvfs", small)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "runs" / "1", tmp_path, tmp_path / "file" / "run", "runs/1"):
        storage.require_space(path, 4096)
        with pytest.raises(UserError) as caught:
            storage.require_space(path, 61440)
        text = f"The disk is full: `{path}` needs 61,440 bytes more, 4,096 are free."
        assert str(caught.value) == text
    assert asked[::2] == [*[str(tmp_path)] * 2, str(tmp_path / "file"), "."]


@pytest.mark.parametrize(("inodes", "left", "full"), [(9, 0, True), (9, 1, False), (0, 0, False)])
def test_a_disk_without_inodes_is_full_and_one_that_counts_none_is_not(
    tmp_path, monkeypatch, inodes, left, full
):
    status = types.SimpleNamespace(f_bavail=9, f_frsize=4096, f_files=inodes, f_favail=left)
    monkeypatch.setattr(os, "statvfs", lambda place: status)
    if not full:
        return storage.require_space(tmp_path, 9)
    with pytest.raises(UserError, match="needs an inode for each file, none is free"):
        storage.require_space(tmp_path, 9)


def test_a_folder_for_which_there_is_no_space_is_not_begun(tmp_path, monkeypatch):
    status = types.SimpleNamespace(f_bavail=1, f_frsize=4096, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda place: status)
    began = []
    error = pytest.raises(UserError, match="needs 9,000 bytes more, 4,096 are free")
    with error, storage.publish(tmp_path / "1", needed=9000) as beside:
        began.append(beside)
    assert began == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes_while_it_is_written_in(tmp_path):
    gone = re.escape(f"/3` cannot be written: there is no folder `{tmp_path / 'checkpoints'}`.")
    folder = tmp_path / "checkpoints" / "3"
    with pytest.raises(UserError, match=gone), storage.publish(folder) as beside:
        shutil.rmtree(folder.parent)
        (beside / "state").write_bytes(NEW)
    with pytest.raises(UserError, match=gone), storage.publish(folder):
        shutil.rmtree(folder.parent)
        # As h5py says it: no name of a file.
        raise OSError(errno.ENOENT, "Unable to create file (errno = 2)")
    with pytest.raises(UserError, match="there is no folder"):
        storage.write_text(tmp_path / "checkpoints" / "place.json", "{}")
    storage.remove(tmp_path / "checkpoints" / "3")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    error = pytest.raises(UserError, match="/file` is no folder")
    with error, storage.publish(tmp_path / "file" / "run"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="/folder` cannot be written: Is a directory"):
        storage.write_text(tmp_path / "folder", "text")
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "/data/labels.txt"),
        OSError(errno.EIO, "Input/output error", "/data/cat.jpg"),
        OSError(errno.ECONNREFUSED, "Connection refused"),
        OSError("no number"),
        RuntimeError("No space is left in the vocabulary"),
        CheckFailed("The process said: No space left on device"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_an_error_that_is_not_this_disks_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, storage.publish(tmp_path / "1") as beside:
        (beside / "half").write_text("half")
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_which_only_the_words_are_left_is_known(tmp_path):
    error = RuntimeError("{{node SaveV2}} 1/variables/part-0; No space left on device [Op:SaveV2]")
    told = disk.refusal(error, tmp_path / "1", needed=10**18, written=5)
    there = os.statvfs(tmp_path)
    assert str(told).startswith(f"The disk is full: `{tmp_path / '1'}` needs 1,000,000,000,000,000")
    free = int(str(told).split("more, ")[1].split(" ")[0].replace(",", ""))
    assert free == pytest.approx(there.f_bavail * there.f_frsize + 5, abs=2**30)


def test_a_clock_that_runs_backwards_changes_nothing(tmp_path, monkeypatch):
    now = itertools.count(2_000_000_000, -86_400)
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: float(next(now)))
        monkeypatch.setattr(time, f"{name}_ns", lambda: next(now) * 10**9)
    (tmp_path / ".1.77.4.tmp").mkdir()
    ahead = time.time() + 10**9
    os.utime(tmp_path / ".1.77.4.tmp", (ahead, ahead))
    with storage.lock(tmp_path):
        storage.sweep(tmp_path)
        for number in (1, 2):
            publish_folder(tmp_path / str(number))
            os.utime(tmp_path / str(number) / "new" / "variables", (ahead, -ahead))
            write_file(tmp_path / str(number))
            storage.verify(tmp_path / str(number) / "new")
        with pytest.raises(UserError, match="in use"), storage.lock(tmp_path):
            pass
        storage.remove(tmp_path / "1")
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    assert (tmp_path / "2" / "file").read_bytes() == NEW
