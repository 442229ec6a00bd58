import collections
import fcntl
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tfbp.caching import budget, row_file
from tfbp.errors import UserError

SIZE = 4096
CACHE = 10 * SIZE  # bytes of each cache here


def cache(folder, name, age=0):
    """Makes a full cache of ten rows that was last opened `age` seconds ago, and returns it."""
    found = row_file.Rows(folder / name, {}, count=10, size=SIZE)
    found.fill(lambda indices: np.ones((len(indices), SIZE), np.uint8))
    used = (folder / name / row_file.LAYOUT).stat().st_mtime - age
    os.utime(folder / name / row_file.LAYOUT, (used, used))
    return found


def caches(folder):
    return {path.name for path in folder.iterdir() if path.is_dir()}


@pytest.fixture
def three(tmp_path):
    """Three caches that nobody uses; the one called `old` is the least recently used."""
    for name, age in (("new", 10), ("old", 30), ("middle", 20)):
        cache(tmp_path, name, age).close()
    return tmp_path


@pytest.fixture
def disk(monkeypatch):
    """Lets a test say how many bytes the disk has free beside what is left to others."""
    usage = collections.namedtuple("usage", ["free"])

    def free(number):
        monkeypatch.setattr(budget.shutil, "disk_usage", lambda path: usage(number + budget.SPARE))

    free(10**12)
    return free


@pytest.mark.parametrize(
    ("needed", "limit", "bytes_left", "kept"),
    [
        (CACHE, 4 * CACHE, CACHE, {"old", "middle", "new"}),
        (CACHE, 4 * CACHE - 1, CACHE, {"middle", "new"}),
        (2 * CACHE, 4 * CACHE, 2 * CACHE, {"middle", "new"}),
        (3 * CACHE, 3 * CACHE, 3 * CACHE, set()),
        (5 * CACHE, 3 * CACHE + 7, 3 * CACHE + 7, set()),
        (CACHE, 0, 0, set()),
    ],
)
def test_the_least_recently_opened_caches_make_room(three, disk, needed, limit, bytes_left, kept):
    assert budget.available(three, "own", limit) == limit
    assert caches(three) == {"old", "middle", "new"}
    assert budget.reserve(three, "own", needed, limit) == bytes_left
    assert caches(three) == kept


def test_opening_a_cache_makes_it_the_most_recently_used(three, disk):
    row_file.Rows(three / "old", {}, count=10, size=SIZE).close()
    budget.reserve(three, "own", CACHE, 3 * CACHE)
    assert caches(three) == {"old", "new"}


def test_a_cache_in_use_stays(three, disk):
    old = cache(three, "old", 30)
    assert budget.available(three, "own", 3 * CACHE) == 2 * CACHE
    assert budget.reserve(three, "own", CACHE, 3 * CACHE) == CACHE
    assert caches(three) == {"old", "new"}
    assert budget.reserve(three, "own", 3 * CACHE, 3 * CACHE) == 2 * CACHE
    assert caches(three) == {"old"}
    old.close()
    assert budget.reserve(three, "own", 3 * CACHE, 3 * CACHE) == 3 * CACHE
    assert caches(three) == set()


def test_a_cache_that_another_process_uses_stays_until_that_dies(three, disk):
    program = f"""
import sys, time
from tfbp.caching.row_file import Rows
found = Rows(sys.argv[1], {{}}, count=10, size={SIZE})
print("open", flush=True)
time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, three / "old"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )
    assert process.stdout.readline() == "open\n"
    assert budget.reserve(three, "own", 3 * CACHE, 3 * CACHE) == 2 * CACHE
    process.kill()
    process.communicate(timeout=300)
    assert budget.reserve(three, "own", 3 * CACHE, 3 * CACHE) == 3 * CACHE


def test_what_is_no_cache_is_left_alone(tmp_path, disk):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "rows").write_bytes(bytes(CACHE))
    (tmp_path / "layout.json").write_text("{}")
    assert budget.reserve(tmp_path, "own", CACHE, CACHE // 2) == CACHE // 2
    assert (tmp_path / "photographs" / "rows").stat().st_size == CACHE
    assert (tmp_path / "layout.json").read_text() == "{}"


def test_the_free_space_of_the_disk_counts(tmp_path, disk):
    disk(CACHE + 5)
    assert budget.available(tmp_path / "not" / "there", "own", 9 * CACHE) == CACHE + 5
    assert not (tmp_path / "not").exists()
    assert budget.reserve(tmp_path, "own", 2 * CACHE, 9 * CACHE) == CACHE + 5
    disk(-5)
    assert budget.reserve(tmp_path, "own", 2 * CACHE, 9 * CACHE) == 0
    cache(tmp_path, "other").close()
    assert budget.available(tmp_path, "own", 9 * CACHE) == CACHE - 5
    budget.reserve(tmp_path, "own", 2 * CACHE, 9 * CACHE)
    assert caches(tmp_path) == set()


def test_what_a_cache_has_taken_is_its_own_and_need_not_be_free(tmp_path, disk):
    cache(tmp_path, "own")
    disk(-5)
    assert budget.reserve(tmp_path, "own", CACHE, 9 * CACHE) == CACHE
    assert budget.reserve(tmp_path, "own", CACHE, 0) == CACHE
    disk(SIZE)
    assert budget.reserve(tmp_path, "own", 2 * CACHE, 9 * CACHE) == CACHE + SIZE


def test_what_is_reserved_for_another_counts_before_it_is_written(tmp_path, disk):
    other = row_file.Rows(tmp_path / "other", {}, count=10, size=SIZE)
    assert budget.reserve(tmp_path, "own", CACHE, CACHE + 5) == 5
    other.close()
    assert budget.reserve(tmp_path, "own", CACHE, CACHE + 5) == CACHE


def test_one_at_a_time_opens_caches(tmp_path):
    def taken():
        with open(tmp_path / "folder" / ".opening") as file:
            return not row_file.locked(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    with budget.opening(tmp_path / "folder"):
        assert taken()
    assert not taken()


def test_a_folder_that_cannot_be_made_is_a_mistake_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"), budget.opening(tmp_path / "file" / "folder"):
        pass
