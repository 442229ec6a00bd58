"""A process that is forked before TensorFlow runs anything is as fresh as a new one."""

import json
import subprocess
import sys

import numpy as np
import tensorflow as tf

from tfbp.exporting import forked_process, parity

PROGRAM = """
import json, multiprocessing, os, signal, sys
import numpy as np
import tensorflow as tf
from tfbp.exporting import forked_process, parity

X = np.float32([[1, 2, 3]])


def by_python(x):
    return tf.ensure_shape(tf.numpy_function(lambda x: 2 * x, [x], x.dtype), x.shape)


FUNCTIONS = {
    "right": lambda x: 2 * x,
    "killed before": lambda x: 2 * x,
    "otherwise": lambda x: 2.02 * x,
    "by Python": by_python,
    "hangs": lambda x: 2 * x,
}


def trial(kind, replies):
    def other_process(folder, requests):
        replies.put(kind + ": another process")
        return parity.this_process(folder, requests)

    parity.fresh_process = other_process
    folder = sys.argv[1] + "/" + kind
    with forked_process.ready():
        (process,) = multiprocessing.active_children()
        if kind == "killed before":
            process.kill()
            process.join()
        if kind == "hangs":
            forked_process._PATIENCE = 0.1
            os.kill(process.pid, signal.SIGSTOP)
        module = tf.Module()
        spec = tf.TensorSpec([None, 3], tf.float32, "x")
        module.call = tf.function(lambda x: {"y": FUNCTIONS[kind](x)}, input_signature=[spec])
        tf.saved_model.save(module, folder, {"serving_default": module.call})
        requests, answer = [{"serving_default": {"x": X}}], {"serving_default": {"y": 2 * X}}
        if kind == "by Python":
            assert (parity.this_process(folder, requests)[0]["serving_default"]["y"] == 2 * X).all()
        try:
            proof = parity.check(folder, requests, parity.Reference([answer], [answer], 0.0))
            replies.put(f"{kind}: {proof['difference']}")
        except parity.ParityError as error:
            replies.put(f"{kind}: {error}")


context = multiprocessing.get_context("fork")
for kind in FUNCTIONS:
    replies = context.SimpleQueue()
    process = context.Process(target=trial, args=(kind, replies))
    process.start()
    process.join()
    while not replies.empty():
        print(json.dumps(replies.get()))
    assert process.exitcode == 0 and not context.active_children()
"""


def test_it_answers_once_and_knows_nothing_of_the_process_that_made_the_export(tmp_path):
    command = [sys.executable, "-c", PROGRAM, tmp_path]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    right, killed, in_its_place, otherwise, by_python, *hung = map(json.loads, output.splitlines())
    assert right == "right: 0.0"
    assert hung == ["hangs: another process", "hangs: 0.0"]
    assert (killed, in_its_place) == ("killed before: another process", "killed before: 0.0")
    assert "differs by 0.01" in otherwise
    assert "A fresh process cannot use the export" in by_python and "pyfunc" in by_python


def test_where_tensorflow_has_run_nothing_changes():
    y = (2 * tf.ones([1])).numpy()
    answer = {"serving_default": {"y": y}}
    with parity.answered_by(lambda folder, requests: [answer]), forked_process.ready():
        proof = parity.check("export", [{}], parity.Reference([answer], [answer], 0.0))
    assert proof["difference"] == 0
    assert np.array_equal(y, [2])
