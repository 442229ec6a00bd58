import errno
import fcntl
import inspect
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.caching import row_file
from tfbp.caching.row_file import Rows

COUNT, SIZE = 400, 96  # seven blocks of 64 rows, the last of 16
BLOCKS = 7


def content(indices, size=96):
    values = np.arange(size) * 7 + indices[:, np.newaxis] * 131 + indices[:, np.newaxis] // 251
    return (values % 253).astype(np.uint8)


def opened(folder, count=400, size=96):
    return Rows(folder, {"of": "tests"}, count=count, size=size)


# What a child process runs first.
CHILD = f"""
import os, pathlib, signal, sys, time
import numpy as np
from tfbp.caching.row_file import Rows

folder, log = map(pathlib.Path, sys.argv[1:])

{inspect.getsource(content)}
{inspect.getsource(opened)}
def computed(indices):
    with open(log, "a") as file:
        print(*indices, sep=chr(10), file=file)
    return content(indices)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(program, folder, log):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + program, folder, log],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )


def refused(indices):
    raise AssertionError(f"rows {indices} were computed again")


class Computation:
    """Computes rows, and remembers which."""

    def __init__(self):
        self.indices = []

    def __call__(self, indices):
        self.indices += indices.tolist()
        return content(indices)

    @property
    def blocks(self):
        return {index // 64 for index in self.indices}


def check(found):
    everything = np.arange(found.count)
    assert found.filled == found.count
    assert np.array_equal(found.read(everything), content(everything, found.size))


@given(st.integers(1, 200), st.integers(1, 300), st.data())
@settings(max_examples=30, deadline=None)
def test_rows_come_back_in_whatever_order_they_are_asked_for(count, size, data):
    some = st.lists(st.integers(0, count - 1), max_size=20)
    indices = np.array(data.draw(some), np.int64)
    with tempfile.TemporaryDirectory() as folder:
        found = opened(pathlib.Path(folder) / "cache", count, size)
        found.fill(lambda indices: content(indices, size))
        assert np.array_equal(found.read(indices), content(indices, size))


def test_what_has_been_computed_is_not_computed_again(tmp_path):
    computation = Computation()
    opened(tmp_path / "cache").fill(computation)
    assert computation.indices == list(range(COUNT))
    again = opened(tmp_path / "cache")
    assert again.filled == 0
    again.fill(refused)
    check(again)


def test_progress_counts_the_rows_that_are_there(tmp_path):
    seen = []
    opened(tmp_path / "cache").fill(content, lambda done, of: seen.append((done, of)))
    assert seen == [(done, COUNT) for done in (64, 128, 192, 256, 320, 384, 400)]


def test_blocks_are_of_64_rows_or_of_16_mebibytes():
    assert [row_file.block_rows(size) for size in (1, 2**18, 2**20, 2**25)] == [64, 64, 16, 1]


def test_rows_that_are_not_filled_cannot_be_read(tmp_path):
    found = opened(tmp_path / "cache")
    with pytest.raises(IndexError):
        found.read(np.array([0]))
    found.fill(content)
    for index in (-1, COUNT):
        with pytest.raises(IndexError, match="0 to 399"):
            found.read(np.array([3, index]))


def test_after_closing_nothing_is_read_even_where_another_file_is_opened_next(tmp_path):
    found = opened(tmp_path / "cache")
    found.fill(content)
    found.close()
    (tmp_path / "other").write_bytes(bytes(COUNT * SIZE))
    with open(tmp_path / "other", "rb"), pytest.raises(OSError, match="closed"):
        found.read(np.array([3]))


def test_a_cache_with_room_for_more_keeps_the_rows_that_it_has(tmp_path):
    opened(tmp_path / "cache", 128).fill(content)
    larger, computation = opened(tmp_path / "cache"), Computation()
    larger.fill(computation)
    assert computation.indices == list(range(128, COUNT))
    check(larger)


WHILE_COMPUTING = """
opened(folder).fill(lambda indices: computed(indices) if indices[0] < 128 else kill())
"""
ROWS_HALF_WRITTEN = """
pwrite = os.pwrite
def half(descriptor, content, offset):
    if offset == 128 * 96:
        pwrite(descriptor, content[: len(content) // 2], offset)
        kill()
    return pwrite(descriptor, content, offset)
os.pwrite = half
opened(folder).fill(computed)
"""
MARK_NOT_WRITTEN = """
pwrite = os.pwrite
def before(descriptor, content, offset):
    return kill() if len(content) == 8 and offset == 16 else pwrite(descriptor, content, offset)
os.pwrite = before
opened(folder).fill(computed)
"""


@pytest.mark.parametrize("program", [WHILE_COMPUTING, ROWS_HALF_WRITTEN, MARK_NOT_WRITTEN])
def test_a_process_that_was_killed_at_the_third_block_leaves_the_first_two(tmp_path, program):
    process = start(program, tmp_path / "cache", tmp_path / "log")
    assert process.wait(300) == -signal.SIGKILL
    found, computation = opened(tmp_path / "cache"), Computation()
    found.fill(computation)
    assert computation.blocks == {2, 3, 4, 5, 6}
    check(found)


def test_two_processes_fill_one_cache_and_compute_each_row_once(tmp_path):
    # Each waits with its first block until the other has one too.
    program = """
def together(indices):
    (log.parent / f"began-{os.getpid()}").touch()
    while len(list(log.parent.glob("began-*"))) < 2:
        time.sleep(0.01)
    return computed(indices)

found = opened(folder, 1000)
found.fill(together)
everything = np.arange(1000)
assert found.filled == 1000
assert np.array_equal(found.read(everything), content(everything))
"""
    opened(tmp_path / "cache", 1000).close()  # Who makes it is decided by `budget.opening`.
    processes = [start(program, tmp_path / "cache", tmp_path / "log") for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    computed = [int(line) for line in (tmp_path / "log").read_text().split()]
    assert sorted(computed) == list(range(1000))
    assert len(list(tmp_path.glob("began-*"))) == 2


def test_what_a_process_has_taken_that_does_not_go_on_is_computed_all_the_same(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(row_file, "PATIENCE_SECONDS", 0.3)
    mine, computed = opened(tmp_path / "rows"), []
    claims = mine.folder / row_file.CLAIMS
    with open(claims / "2", "w") as two, open(claims / "4", "w") as four:
        fcntl.flock(two, fcntl.LOCK_EX)
        fcntl.flock(four, fcntl.LOCK_EX)
        began = time.monotonic()
        mine.fill(lambda indices: computed.append(indices[0] // 64) or content(indices))
        assert time.monotonic() - began > 0.3
    assert computed == [0, 1, 3, 5, 6, 2, 4]
    assert mine.filled == COUNT
    np.testing.assert_array_equal(mine.read(np.arange(COUNT)), content(np.arange(COUNT)))


def test_what_a_dead_process_had_taken_is_free_again(tmp_path):
    program = """
def never(indices):
    print("taken", flush=True)
    time.sleep(600)

opened(folder).fill(never)
"""
    process = start(program, tmp_path / "cache", tmp_path / "log")
    assert process.stdout.readline() == "taken\n"
    found, computation = opened(tmp_path / "cache"), Computation()

    def progress(done, of):
        if done == COUNT - 64:
            assert 0 not in computation.indices
            process.kill()

    found.fill(computation, progress)
    assert process.wait(300) == -signal.SIGKILL
    assert sorted(computation.indices) == list(range(COUNT))
    check(found)


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def swap_blocks(cache):
    for name, size in ((row_file.ROWS, 64 * SIZE), (row_file.MARKS, 8)):
        found = (cache / name).read_bytes()
        parts = found[:size], found[2 * size : 3 * size], found[size : 2 * size], found[3 * size :]
        (cache / name).write_bytes(b"".join(parts))


def another_version(cache):
    layout = json.loads((cache / row_file.LAYOUT).read_text())
    (cache / row_file.LAYOUT).write_text(json.dumps({**layout, "format": row_file.FORMAT + 1}))


EVERY = set(range(BLOCKS))


@pytest.mark.parametrize(
    ("damage", "blocks"),
    [
        (lambda cache: flip(cache / row_file.ROWS, 150 * SIZE + 5), {2}),
        (lambda cache: flip(cache / row_file.ROWS, COUNT * SIZE - 1), {6}),
        (lambda cache: flip(cache / row_file.MARKS, 8 * 2), {2}),
        (lambda cache: flip(cache / row_file.MARKS, 8 * 2 + 7), {2}),
        (lambda cache: os.truncate(cache / row_file.ROWS, 150 * SIZE), {2, 3, 4, 5, 6}),
        (lambda cache: os.truncate(cache / row_file.ROWS, 0), EVERY),
        (lambda cache: os.truncate(cache / row_file.MARKS, 8 * 2 + 3), {2, 3, 4, 5, 6}),
        (swap_blocks, {1, 2}),
        (lambda cache: (cache / row_file.LAYOUT).write_bytes(b"\xff{"), EVERY),
        (another_version, EVERY),
        (lambda cache: (cache / row_file.LAYOUT).unlink(), EVERY),
        (lambda cache: (cache / row_file.ROWS).unlink(), EVERY),
        (lambda cache: (cache / row_file.MARKS).unlink(), EVERY),
        (lambda cache: (cache / row_file.CLAIMS).rename(cache / "else"), EVERY),
    ],
)
def test_damaged_blocks_are_computed_anew_and_no_others(tmp_path, damage, blocks):
    found = opened(tmp_path / "cache")
    found.fill(content)
    found.close()
    damage(tmp_path / "cache")
    found, computation = opened(tmp_path / "cache"), Computation()
    found.fill(computation)
    assert computation.blocks == blocks
    check(found)


def test_damage_is_said_in_one_line(tmp_path, caplog):
    opened(tmp_path / "cache").fill(content)
    for row in (3, 70, 71):
        flip(tmp_path / "cache" / row_file.ROWS, row * SIZE)
    with caplog.at_level(logging.WARNING, logger="absl"):
        opened(tmp_path / "cache").fill(content)
        opened(tmp_path / "cache").fill(content)
        another_version(tmp_path / "cache")
        opened(tmp_path / "cache").fill(content)
    mended, other = (record.message for record in caplog.records)
    assert mended.startswith(f"2 of 7 blocks of the cache {tmp_path / 'cache'} were damaged")
    assert other.startswith(f"The cache {tmp_path / 'cache'} is damaged, or of another version")


def test_rows_of_another_layout_are_not_taken_for_these(tmp_path):
    Rows(tmp_path / "cache", {"of": "others"}, count=COUNT, size=SIZE).fill(
        lambda i: content(i + 1)
    )
    found, computation = opened(tmp_path / "cache"), Computation()
    found.fill(computation)
    assert computation.blocks == EVERY
    check(found)


def writing_fails(reason):
    pwrite = os.pwrite

    def full(descriptor, content, offset):
        if len(content) > 8 and offset >= 200 * SIZE:
            raise OSError(reason, os.strerror(reason))
        return pwrite(descriptor, content, offset)

    return os, "pwrite", full


def syncing_fails(reason):
    blocks = iter(range(BLOCKS))

    def full(descriptor):
        if next(blocks) >= 4:
            raise OSError(reason, os.strerror(reason))

    return row_file, "_sync", full


@pytest.mark.parametrize("fault", [writing_fails, syncing_fails])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_the_rest_uncached_with_a_warning(
    tmp_path, monkeypatch, caplog, fault, reason
):
    found = opened(tmp_path / "cache")
    monkeypatch.setattr(*fault(reason))
    with caplog.at_level(logging.WARNING, logger="absl"):
        found.fill(content)
    assert found.filled == 256
    assert np.array_equal(found.read(np.arange(256)), content(np.arange(256)))
    with pytest.raises(IndexError):
        found.read(np.array([256]))
    (record,) = caplog.records
    assert "From row 256 of 400 on" in record.message
    assert str(tmp_path / "cache") in record.message
    monkeypatch.undo()
    computation = Computation()
    found.fill(computation)
    assert computation.blocks == {4, 5, 6}
    check(found)


def test_a_file_that_may_not_grow_holds_no_rows_and_is_no_failure(tmp_path):
    program = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
found = opened(folder)
found.fill(computed)
print(found.count, found.filled, log.exists())
"""
    process = start(program, tmp_path / "cache", tmp_path / "log")
    assert process.communicate(timeout=300) == ("0 0 False\n", None)


def test_an_error_of_the_computation_is_not_taken_for_the_disks(tmp_path):
    found = opened(tmp_path / "cache")

    def broken(indices):
        if indices[0] == 64:
            raise OSError(errno.ENOSPC, "the computation's own")
        return content(indices)

    with pytest.raises(OSError, match="the computation's own"):
        found.fill(broken)
    assert found.filled == 64
    found.fill(content)
    check(found)


def test_threads_read_at_the_same_time(tmp_path):
    found, wrong = opened(tmp_path / "cache"), []
    found.fill(content)

    def read(seed):
        for indices in np.random.default_rng(seed).integers(0, COUNT, (200, 32)):
            if not np.array_equal(found.read(indices), content(indices)):
                wrong.append(indices)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    program = """
import resource
count = int(log.name)
found = opened(folder, count, 8192)
found.fill(lambda indices: content(indices, 8192))
for start in range(0, count, 32):
    found.read((np.arange(start, min(start + 32, count)) * 7919) % count)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = {}
    for count in (1_000, 10_000):  # 8 MB and 82 MB
        process = start(program, tmp_path / f"cache{count}", tmp_path / str(count))
        peaks[count] = int(process.communicate(timeout=300)[0]) * 1024
    assert peaks[10_000] - peaks[1_000] < 8e6
    assert (tmp_path / "cache10000" / row_file.ROWS).stat().st_size == 10_000 * 8192
