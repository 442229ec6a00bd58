import json
import os
import pathlib
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp import storage
from tfbp.errors import UserError
from tfbp.storage import manifest


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    (tmp_path / "outside").write_text("secret")
    with storage.publish(tmp_path / "3", manifest=True) as beside:
        (beside / "state.npz").write_bytes(b"state")
        (beside / "assets").mkdir()
        (beside / "assets" / "labels.txt").write_bytes(b"cat")
    return tmp_path / "3"


def refused(folder, reason, name=None):
    with pytest.raises(manifest.Damaged) as caught:
        manifest.verify(folder)
    assert isinstance(caught.value, UserError)
    assert str(caught.value).startswith(f"`{folder}` is damaged: ")
    assert reason in str(caught.value)
    assert name is None or repr(name) in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    which=st.integers(0, 3),
    where=st.integers(0, 10**6),
    damage=st.sampled_from(["flip", "truncate", "extend", "delete"]),
)
def test_any_bit_that_flips_and_any_file_that_is_cut_or_gone_is_found(
    contents, which, where, damage
):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for number, content in enumerate(contents):
            (folder / str(number)).write_bytes(content)
        text = manifest.text(folder, sorted(folder.iterdir()))
        (folder / "manifest.json").write_text(text)
        manifest.verify(folder)
        path = folder / str(which % len(contents))
        content = bytearray(path.read_bytes())
        if damage == "delete":
            path.unlink()
        elif damage == "extend" or not content:
            path.write_bytes(content + b"\0")
        elif damage == "truncate":
            path.write_bytes(content[: where % len(content)])
        else:
            content[where // 8 % len(content)] ^= 1 << where % 8
            path.write_bytes(content)
        refused(folder, "", path.name)


def test_each_kind_of_damage_is_named(folder):
    labels = folder / "assets" / "labels.txt"
    labels.write_bytes(b"cow")
    refused(folder, "has changed: its SHA-256 is another", "assets/labels.txt")
    labels.write_bytes(b"cats")
    refused(folder, "has 4 bytes, not 3", "assets/labels.txt")
    labels.unlink()
    refused(folder, "is missing", "assets/labels.txt")
    labels.mkdir()
    refused(folder, "is no file", "assets/labels.txt")
    labels.rmdir()
    os.mkfifo(labels)  # Nobody writes into it: reading would wait for ever.
    refused(folder, "is no file", "assets/labels.txt")
    labels.unlink()
    labels.symlink_to(labels)
    refused(folder, "cannot be read", "assets/labels.txt")
    labels.unlink()
    (folder / "assets").rmdir()
    (folder / "assets").write_text("")
    refused(folder, "is missing", "assets/labels.txt")


def test_a_folder_without_a_manifest_or_that_is_not_there_is_damaged(folder):
    (folder / "manifest.json").unlink()
    refused(folder, "is missing", "manifest.json")
    refused(folder / "nowhere", "is missing", "manifest.json")
    os.mkfifo(folder / "manifest.json")
    refused(folder, "is no file", "manifest.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"files": {"state',
        "\udcff",
        "[" * 100_000,
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"state.npz": "0a"}}',
        '{"files": {"state.npz": {"bytes": 5}}}',
        '{"files": {"state.npz": {"bytes": "5", "sha256": "0a"}}}',
        '{"files": {"state.npz": {"bytes": true, "sha256": "0a"}}}',
        '{"files": {"state.npz": {"bytes": 5, "sha256": null}}}',
    ],
)
def test_what_is_no_manifest_is_damaged(folder, text):
    (folder / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(folder, "is no manifest", "manifest.json")


def test_a_path_that_leaves_the_folder_is_refused_though_the_file_is_as_it_says(folder):
    outside = folder.parent / "outside"
    entry = json.loads(manifest.text(outside.parent, [outside]))["files"]["outside"]
    (folder / "link").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent)
    for name in ("../outside", str(outside), "assets/../../outside", "link", "linked/outside"):
        (folder / "manifest.json").write_text(json.dumps({"files": {name: entry}}))
        refused(folder, "leads out of the folder", name)
    for name in ("../none", "/none"):
        (folder / "manifest.json").write_text(json.dumps({"files": {name: entry}}))
        refused(folder, "leads out of the folder", name)


@pytest.mark.parametrize("name", ["", ".", "a\0b", "a" * 300, "\ud800"])
def test_a_path_that_no_file_can_have_is_refused(folder, name):
    text = json.dumps({"files": {name: {"sha256": "0a", "bytes": 1}}})
    (folder / "manifest.json").write_text(text)
    refused(folder, "")


def test_a_manifest_that_is_a_link_out_of_the_folder_is_refused(folder):
    (folder / "manifest.json").rename(folder.parent / "manifest.json")
    (folder / "manifest.json").symlink_to(folder.parent / "manifest.json")
    refused(folder, "leads out of the folder", "manifest.json")


def test_files_that_are_not_named_and_links_inside_are_left_alone(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "state.npz").rename(folder / "kept.npz")
    (folder / "state.npz").symlink_to("kept.npz")
    manifest.verify(folder)
    alias = folder.parent / "newest"
    alias.symlink_to(folder)
    manifest.verify(alias)


def test_a_file_that_will_be_read_must_be_named(folder):
    (folder / "model.keras").write_text("from elsewhere")
    manifest.verify(folder, ["state.npz", "assets/labels.txt"])
    with pytest.raises(manifest.Damaged, match=r"'model\.keras' is not in manifest\.json"):
        manifest.verify(folder, ["model.keras"])
