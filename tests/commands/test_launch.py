"""Several workers on this machine: what they say, how they end, and who stops whom."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tfbp import commands

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "linear_regression.py")

# What a worker does instead of a run: the text of a program, to which `worker` is its number.
WORKER = '''
import json, os, signal, sys, time
config = json.loads(os.environ["TF_CONFIG"])
worker = config["task"]["index"]

def wait_until(holds):
    deadline = time.monotonic() + 300
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)

def wait_for_all():
    """Waits until all workers have come here."""
    open(f"worker {worker}", "w").close()
    workers = config["cluster"]["worker"]
    wait_until(lambda: all(os.path.exists(f"worker {i}") for i in range(len(workers))))

exec(sys.argv[-1])
'''
LAUNCHER = """
import json, sys
from tfbp import commands
from tfbp.commands import launch
workers, settings, *command = sys.argv[1:]
settings = json.loads(settings)
sys.exit(commands.exit_code(lambda: launch.together(command, int(workers), **settings)))
"""


@pytest.fixture
def start(tmp_path):
    """Returns how to start a launcher of workers that run the text of a program."""

    def start(program, workers, **settings):
        command = sys.executable, "-c", WORKER, program
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(workers), json.dumps(settings), *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ended(process):
    """Returns the exit code, and the lines of both outputs."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, out.splitlines(), err.splitlines()


def lives(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_lines_begin_with_the_number_of_the_worker_that_wrote_them(start):
    program = "print('one\\ntwo'); print('three', file=sys.stderr); sys.stdout.write('end')"
    code, out, err = ended(start(program, 3))
    assert code == 0
    assert sorted(out) == sorted(
        f"[{worker}] {line}" for worker in range(3) for line in ("one", "two", "end")
    )
    assert sorted(err) == ["[0] three", "[1] three", "[2] three"]


def test_each_worker_is_told_of_one_cluster_and_of_its_place_in_it(start):
    _, out, _ = ended(start("print(json.dumps(config))", 3))
    configs = sorted((json.loads(line[4:]) for line in out), key=lambda each: each["task"]["index"])
    assert [each["task"] for each in configs] == [{"type": "worker", "index": i} for i in range(3)]
    first, *others = (each["cluster"] for each in configs)
    assert others == [first] * 2
    assert len(set(first["worker"])) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", address) for address in first["worker"])


STUBBORN = "signal.signal(15, lambda *_: (print('asked'), sys.exit(75)))"


@pytest.mark.parametrize(
    ("end", "code", "how"),
    [
        ("sys.exit(2)", 2, "exit code 2"),
        ("sys.exit(1)", 1, "exit code 1"),
        ("os.kill(os.getpid(), 9)", 75, "SIGKILL"),
    ],
)
def test_when_one_worker_fails_the_others_are_stopped_and_its_code_is_the_launcher_s(
    start, end, code, how
):
    program = f"""
{STUBBORN}
print("pid", os.getpid())
wait_for_all()
if worker == 1:
    {end}
time.sleep(600)
"""
    found, out, err = ended(start(program, 3))
    assert found == code
    assert f"Worker 1 has ended: {how}. The others are stopped." in "\n".join(err)
    assert sorted(line for line in out if "asked" in line) == ["[0] asked", "[2] asked"]
    pids = [int(line.split()[-1]) for line in out if "pid" in line]
    assert len(pids) == 3
    assert not any(map(lives, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_stops_all(start, number):
    program = f"{STUBBORN}; print('up', os.getpid()); time.sleep(600)"
    process = start(program, 2)
    up = [process.stdout.readline() for _ in range(2)]
    process.send_signal(number)
    code, out, _ = ended(process)
    assert code == 75
    assert sorted(out) == ["[0] asked", "[1] asked"]
    assert not any(lives(int(line.split()[-1])) for line in up)


def test_a_worker_that_does_not_stop_is_ended_by_force(start):
    program = """
signal.signal(15, signal.SIG_IGN)
print("up", os.getpid())
wait_for_all()
if worker == 1:
    sys.exit(2)
time.sleep(600)
"""
    started = start(program, 2, grace_failed=1)
    code, out, err = ended(started)
    assert code == 2
    assert "Not stopped after 1 s, and killed: 0." in "\n".join(err)
    assert not any(lives(int(line.split()[-1])) for line in out)


def test_a_worker_that_has_missed_the_first_request_is_asked_again(start):
    program = """
signal.signal(15, lambda *_: signal.signal(15, lambda *_: sys.exit(75)))
print("up", flush=True)
while True:
    time.sleep(0.1)
"""
    process = start(program, 1, again=1)
    assert process.stdout.readline() == "[0] up\n"
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 75
    assert "killed" not in "\n".join(err)


def test_workers_whose_output_nobody_reads_are_stopped(start):
    program = """
signal.signal(15, lambda *_: (print("asked", file=sys.stderr), sys.exit(75)))
wait_for_all()
while True:
    print("." * 10_000)
"""
    process = start(program, 2)
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read()
    assert process.wait(timeout=300) == 141
    assert sorted(said.splitlines()) == ["[0] asked", "[1] asked"]


def test_workers_do_not_outlive_a_launcher_that_is_killed(start):
    process = start("print('up', os.getpid()); time.sleep(600)", 2)
    pids = [int(process.stdout.readline().split()[-1]) for _ in range(2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        assert not any(map(lives, pids))
    finally:
        for pid in filter(lives, pids):
            os.kill(pid, signal.SIGKILL)


def test_cores_each_gives_each_worker_cores_that_no_other_has(start):
    there = sorted(os.sched_getaffinity(0))
    program = "print(*sorted(os.sched_getaffinity(0)))"
    _, out, _ = ended(start(program, 2))
    assert sorted(out) == [f"[{worker}] {' '.join(map(str, there))}" for worker in (0, 1)]
    some = there[:2]  # one worker where there is one core
    program = f"wait_until(lambda: len(os.sched_getaffinity(0)) == 1); {program}"
    _, out, _ = ended(start(program, len(some), cores_each=1))
    assert sorted(out) == [f"[{worker}] {core}" for worker, core in enumerate(some)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--workers=0", "--", "run", "mlp"], "`workers` must be at least 1. Received: 0."),
        (
            ["--workers=two", "--", "run", "mlp"],
            "`--workers` must be a whole number. Received: 'two'.",
        ),
        (["--wokers=2", "--", "run", "mlp"], "Did you mean"),
        (["--cores_each=9999", "--", "run", "mlp"], "`cores_each` must not be more than the"),
        (["--workers=2"], "`launch` must have a run to start after --, as in: launch --work"),
        (["--workers=2", "run", "mlp"], "Received: '--workers=2 run mlp'."),
        (["--workers=2", "--", "export", "runs/1"], "Received: '--workers=2 -- export runs/1'."),
        (["mlp", "--", "run", "mlp"], "Received: 'mlp -- run mlp'."),
        (
            ["--", "run", "mlp", "--strategy=one"],
            "`--strategy` must be auto or multiworker for several workers. Received: 'one'.",
        ),
    ],
)
def test_a_mistake_in_the_command_line_is_refused(capsys, arguments, expected):
    assert commands.main("recipes", ["launch", *arguments]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_two_workers_is_shown_once_and_a_mistake_of_all_ends_with_2(tmp_path):
    def launched(*flags):
        program = "import sys; from tfbp import commands; sys.exit(commands.main('', sys.argv[1:]))"
        command = ["launch", "--workers=2", "--", "run", RECIPE, "--data=line"]
        return subprocess.run(
            [sys.executable, "-c", program, *command, *flags],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    run = launched("--epochs=2", "--strategy=multiworker")
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stdout.splitlines() if "epoch 2/2" in line]
    assert not [line for line in run.stdout.splitlines() if not line.startswith("[0]")]
    assert (tmp_path / "runs/linear_regression/1/manifest.json").exists()
    assert [path.name for path in (tmp_path / "runs/linear_regression").iterdir()] == ["1"]
    assert [path.name for path in (tmp_path / "saved_models/linear_regression").iterdir()] == ["1"]

    mistake = launched("--epochs=0")
    assert mistake.returncode == 2
    assert "Error: `epochs` must be at least 1. Received: 0." in mistake.stderr
