import pytest

from tfbp.errors import UserError
from tfbp.exporting import layout


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("1", 1),
        ("00000123", 123),
        ("0", 0),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, None),
        ("-1", None),
        ("1.5", None),
        ("2b", None),
        ("٣", None),
        ("", None),
        ("latest", None),
        (".5.77.12.tmp", None),
    ],
)
def test_a_version_is_a_name_that_is_a_number_as_a_whole(name, number):
    assert layout.number(name) == number


def test_versions_are_folders_or_links_to_them_in_the_order_of_their_numbers(tmp_path):
    for name in ("10", "9", "007", "latest", ".11.5.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "8").symlink_to(tmp_path / "latest")
    (tmp_path / "11").write_text("no folder")
    (tmp_path / "12").symlink_to("12")
    found = layout.versions(tmp_path)
    assert list(found) == [7, 8, 9, 10]
    assert found[7] == tmp_path / "007"
    assert layout.versions(tmp_path / "gone") == {}
    with pytest.raises(NotADirectoryError):
        layout.versions(tmp_path / "11")


def test_the_newest_version_is_the_largest_number_that_holds_a_saved_model(tmp_path):
    for name in ("2", "10", "11", "latest"):
        (tmp_path / name).mkdir()
        if name != "11":
            (tmp_path / name / "saved_model.pb").write_bytes(b"")
    assert layout.newest(tmp_path) == tmp_path / "10"
    assert layout.newest(tmp_path / "latest") == tmp_path / "latest"


@pytest.mark.parametrize("name", ["empty", "gone", "file"])
def test_what_holds_no_saved_model_is_refused(tmp_path, name):
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"`SAVED_MODEL` must be a SavedModel.*Received"):
        layout.newest(tmp_path / name)
