"""The fresh process of `tfbp.exporting.parity`, made ready while it costs nothing.

To import TensorFlow takes longer than to answer a few requests. A process that is forked after the
import, and before TensorFlow has run anything, is as fresh as a new one: it knows nothing of the
model that is built later.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence

import tensorflow as tf

from tfbp.exporting import parity

# Seconds after which a process is taken for one that hangs.
_PATIENCE = 300.0


@contextlib.contextmanager
def ready() -> Iterator[None]:
    """Within it, the first `parity.check` is answered by a process that is forked at its start.

    Where TensorFlow has run something already, or forking is not safe or not allowed, it changes
    nothing.
    """
    allowed = sys.platform == "linux" and not multiprocessing.current_process().daemon
    if not allowed or not _untouched():
        yield
        return
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(ours, theirs), daemon=True)
    process.start()
    theirs.close()

    def ask(*files: str) -> str:
        ours.send_bytes(json.dumps(files).encode())
        if not ours.poll(_PATIENCE):
            raise TimeoutError
        return ours.recv_bytes().decode()

    def answering(folder: str | os.PathLike, requests: Sequence[parity.Tensors]) -> parity.Answers:
        try:
            return parity.by_files(folder, requests, ask)
        except (EOFError, OSError):  # it has answered once, was ended, or does not answer
            process.kill()
            return parity.fresh_process(folder, requests)

    try:
        with parity.answered_by(answering):
            yield
    finally:
        ours.close()
        process.kill()  # it only reads
        process.join()


def _untouched() -> bool:
    """Whether TensorFlow has run nothing in this process: only then its threads can be set."""
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads + 1)
    except RuntimeError:
        return False
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    return True


def _answer(
    ours: multiprocessing.connection.Connection, theirs: multiprocessing.connection.Connection
) -> None:
    """Answers one request of the process that was forked from, or none if that ends."""
    ours.close()  # or its end would not be noticed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the whole terminal
    with open(os.devnull, "r+b") as nowhere:
        for stream in range(3):
            os.dup2(nowhere.fileno(), stream)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    with contextlib.suppress(EOFError):
        files = json.loads(theirs.recv_bytes())
        try:
            parity.answer_file(*files)
            theirs.send_bytes(b"")
        except Exception:  # whatever a SavedModel may raise is the answer
            theirs.send_bytes(traceback.format_exc().encode())
