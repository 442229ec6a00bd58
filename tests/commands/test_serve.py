"""The command as users call it: a process of its own."""

import gc
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import tensorflow as tf

from tfbp import commands
from tfbp.commands import serve

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    """Returns a folder with `slow/1`, whose answer x takes as many rounds of work as it is told."""

    def spin(x, rounds):
        matrix = tf.ones([256, 256]) / 256
        for _ in tf.range(rounds):
            matrix = matrix @ matrix
        return {"y": x + 0 * matrix[0, 0]}

    module = tf.Module()
    module.spin = tf.function(spin).get_concrete_function(
        x=tf.TensorSpec([None], tf.float32), rounds=tf.TensorSpec([], tf.int32)
    )
    folder = tmp_path_factory.mktemp("saved_models")
    tf.saved_model.save(module, str(folder / "slow" / "1"), signatures=module.spin)
    return folder


def ask(url, rounds):
    body = json.dumps({"inputs": {"x": [1.5], "rounds": rounds}}).encode()
    with urllib.request.urlopen(f"{url}/v1/models/slow:predict", body, timeout=60) as response:
        return response.read().decode()


def refused(url):
    """Returns whether the one place is taken, which `--max_concurrency=1` leaves."""
    try:
        urllib.request.urlopen(f"{url}/v1/models/slow", timeout=60).close()
    except urllib.error.HTTPError as error:
        return error.code == 429
    return False


def insist(url, rounds):
    while True:
        try:
            return ask(url, rounds)
        except urllib.error.HTTPError as error:
            assert error.code == 429


def test_it_serves_says_what_it_is_for_and_drains_at_sigterm(saved_models):
    command = [sys.executable, "-m", "recipes", "serve", saved_models, "--port=0", "--grpc_port=0"]
    command.append("--max_concurrency=1")
    environment = {name: value for name, value in os.environ.items() if name[:3] != "TF_"}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        try:
            serving, purpose = process.stdout.readline(), process.stdout.readline()
            url = re.match(r"Serving REST on (http://127\.0\.0\.1:\d+) and gRPC on", serving)[1]
            assert "for development" in purpose and "tensorflow_model_server" in purpose
            assert json.loads(ask(url, 1)) == {"outputs": [1.5]}

            answers = []
            slow = threading.Thread(target=lambda: answers.append(insist(url, 2000)))
            slow.start()
            while not answers and not refused(url):
                pass
            process.send_signal(signal.SIGTERM)
            slow.join()
            assert [json.loads(one) for one in answers] == [
                {"outputs": [1.5]}
            ]  # It was asked before, so it is answered.
            assert process.wait(60) == 0
            said = process.stdout.read()
            assert "Draining" in said
            errors = process.stderr.read()
            assert errors.splitlines() == [
                "Version 1 of slow is served.",
                "Version 1 of slow is unloaded.",
            ]
        finally:
            process.kill()


def test_a_signal_that_another_thread_receives_drains_too():
    # The kernel picks any thread; Python runs the handler in the main one, when that wakes.
    class Running:
        port, grpc_port, drained = 1, 2, False

        def __enter__(self):
            thread.start()

        def __exit__(self, *error):
            self.drained = True

    def receive():
        time.sleep(0.3)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    running, thread = Running(), threading.Thread(target=receive)
    before = signal.getsignal(signal.SIGTERM)
    try:
        serve._serve(running, "127.0.0.1")
    finally:
        gc.unfreeze()
    assert running.drained
    assert signal.getsignal(signal.SIGTERM) == before


def test_print_config_writes_the_files_and_prints_the_command(saved_models, capsys):
    arguments = ["serve", str(saved_models), "--print_config", "--max_batch_size=16", "--port=81"]
    assert commands.main(ROOT / "recipes", arguments) == 0
    said = capsys.readouterr()
    assert said.out.startswith("tensorflow_model_server --port=8500 --rest_api_port=81 ")
    assert "slow/serving_default" in said.err
    assert 'name: "slow"' in (saved_models / "models.config").read_text()
    assert "max_batch_size { value: 16 }" in (saved_models / "batching.config").read_text()


def test_print_config_warns_of_what_a_label_and_an_empty_model_mean(saved_models, capsys):
    (saved_models / "empty" / "1").mkdir(parents=True)
    arguments = ["serve", str(saved_models), "--print_config", "--labels=slow/stable=1"]
    assert commands.main(ROOT / "recipes", arguments) == 0
    said = capsys.readouterr().err
    assert "Warning: All versions of slow will be loaded" in said
    assert "Warning: Left out, without a version that can be loaded: empty." in said
    arguments[-1] = "--labels=slwo/stable=1"
    assert commands.main(ROOT / "recipes", arguments) == 2
    assert "`--labels` must name a model. Received: 'slwo'. Did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "`serve` must be given one folder, SAVED_MODELS. Received: ''."),
        (["a", "b"], "`serve` must be given one folder, SAVED_MODELS. Received: 'a b'."),
        (["nowhere"], "`SAVED_MODELS` must be a folder that holds MODEL/VERSION/ folders."),
        (["a", "--host=0.0.0.0"], "`--host` must be a loopback address unless --token,"),
        (["a", "--labels=stable"], "`--labels` must be MODEL/LABEL=VERSION. Received: 'stable'."),
        (["a", "--token_file=nowhere"], "`--token_file` must be a file that holds a token."),
        (["a", "--token_file=b", "--token=c"], "`--token` and `--token_file` are two tokens:"),
        (["a", "--max_queue=0"], "`max_queue` must be at least 1. Received: 0."),
        (["a", "--port=70000"], "`port` must be at most 65535. Received: 70000."),
    ],
)
def test_a_mistake_is_one_message(arguments, expected, capsys):
    assert commands.main(ROOT / "recipes", ["serve", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"Error: {expected}")
    assert "Traceback" not in said.err


def test_a_token_comes_from_a_file_or_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("secret\n")
    assert serve._token(serve.ServeFlags(token_file=str(file))) == "secret"
    monkeypatch.setenv("TFBP_SERVING_TOKEN", "other")
    assert serve._token(serve.ServeFlags()) == "other"
    assert serve._token(serve.ServeFlags(token="first")) == "first"


def test_without_the_extra_it_says_how_to_install_it(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("tfbp.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("tfbp.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert commands.main(ROOT / "recipes", ["serve", "a"]) == 2
    assert capsys.readouterr().err == "Error: `serve` needs grpc: pip install 'tfbp[serving]'.\n"
