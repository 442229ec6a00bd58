"""What all tests share: a quiet TensorFlow on two cores, and the data beside the repository."""

import contextlib
import ctypes
import gc
import json
import os
import pathlib
import socket
import tempfile

import pytest

# Read when TensorFlow is first imported, which is after this.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")

import hypothesis
import processes
import tensorflow as tf

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Two devices for tf.distribute; whoever asks for no strategy gets the first one.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# No test writes to the home directory. Processes that tests start inherit it.
_CACHES = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _CACHES.name

ROOT = pathlib.Path(__file__).parents[1]
SHARED_DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"


def pytest_runtest_setup(item):
    if item.get_closest_marker("shared_data") and not SHARED_DATA.is_dir():
        pytest.skip(f"there is no {SHARED_DATA}")


def pytest_collection_finish():
    # What the imports have made stays: it need not be looked through again and again.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
    """What a module has built goes with it: the allocator would keep it, 3 GB at the end."""
    yield
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Returns the folder of the data sets; for tests that are marked `shared_data`."""
    return SHARED_DATA


@pytest.fixture(scope="module", autouse=True)
def in_process_parity(request):
    """Exports are compared with their model in this process, 6 to 9 CPU seconds sooner each.

    The same loader answers the same requests, so that a wrong export is refused as ever; that
    nothing of this process is needed for it is what tests/exporting proves in another one, and
    tests/test_recipes.py for an export of each recipe.
    """
    from tfbp.exporting import parity

    apart = request.path.parent.name == "exporting"
    with parity.answered_by(processes.answers if apart else parity.this_process):
        yield


@pytest.fixture(scope="session")
def start_workers():
    """Returns what starts a program as the workers of one cluster: from its text, its arguments and
    a folder for each to the processes. What worker i says is in the file `<folder>.<i>.log`.
    """
    with contextlib.ExitStack() as stack:

        def start(program, *arguments, folders):
            with contextlib.ExitStack() as ports:
                taken = [
                    ports.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in folders
                ]
                cluster = {"worker": [f"127.0.0.1:{each.getsockname()[1]}" for each in taken]}
            started = []
            for index, folder in enumerate(folders):
                config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
                process = processes.start(
                    program,
                    *arguments,
                    cwd=folder,
                    env=os.environ | {"TF_CONFIG": json.dumps(config)},
                    log=f"{folder}.{index}.log",
                )
                stack.callback(process.kill)
                started.append(process)
            return started

        yield start
