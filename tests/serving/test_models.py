"""Versions that come, go and break while they are served."""

import errno
import json
import os
import pathlib
import shutil
import threading
import time

import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

ASK = "/v1/models/m:predict"
BODY = {"instances": [2.0]}


def constant(client, path=ASK):
    """Returns what the served model adds to 1, or the status that it was refused with."""
    status, text = client.ask(path, BODY)
    return json.loads(text)["predictions"][0] - 1 if status == 200 else status


def states(client):
    status, text = client.ask("/v1/models/m")
    if status != 200:
        return status
    return {int(one["version"]): one["state"] for one in json.loads(text)["model_version_status"]}


def publish(write, folder, number, value):
    """Writes a version beside and renames it, as exports do."""
    write.half_plus(folder.parent / "beside", value).rename(folder / str(number))


class Load:
    """Asks without a pause from several threads, and remembers every answer."""

    def __init__(self, client, threads=4):
        self._client, self._ended = client, threading.Event()
        self.answers = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self):
        while not self._ended.is_set():
            self.answers.append(constant(self._client))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()


def wait(condition, seconds=20):
    """Waits until a condition holds."""
    for _ in range(round(seconds / 0.05)):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("the condition did not come to hold")


@pytest.fixture
def folder(tmp_path, write):
    """Returns the folder of a model `m` with version 1, which adds 10."""
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    publish(write, folder, 1, 10)
    return folder


def test_a_new_version_takes_over_under_load_and_no_request_fails(serve, folder, write):
    client = serve(folder.parent)
    with Load(client) as load:
        wait(lambda: len(load.answers) > 20)
        publish(write, folder, 2, 20)
        wait(lambda: 20 in load.answers)
        publish(write, folder, 10, 30)  # the largest number, not the last name
        wait(lambda: 30 in load.answers)
        wait(lambda: states(client) == {10: "AVAILABLE", 2: "END", 1: "END"})
    assert set(load.answers) == {10, 20, 30}
    last = {value: len(load.answers) - load.answers[::-1].index(value) for value in (10, 20)}
    assert last[10] < last[20] < len(load.answers)


def test_a_version_replaced_under_its_number_is_swapped_and_no_request_fails(
    serve, folder, write, tmp_path
):
    client = serve(folder.parent)
    other = write.half_plus(tmp_path / "other", 20)
    with Load(client) as load:
        wait(lambda: len(load.answers) > 20)
        (folder / "1").rename(tmp_path / "old")
        other.rename(folder / "1")
        wait(lambda: 20 in load.answers)
    assert set(load.answers) == {10, 20}
    assert states(client) == {1: "AVAILABLE"}


def test_a_broken_version_takes_nobodys_place_and_is_tried_again_when_mended(serve, folder, write):
    client = serve(folder.parent)
    publish(write, folder, 2, 20)
    wait(lambda: constant(client) == 20)
    broken = folder / "3"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"no model")
    wait(lambda: states(client).get(3) == "END")
    assert constant(client) == 20
    status, text = client.ask("/v1/models/m/versions/3")
    assert status == 200 and "server's log" in text
    assert str(folder) not in text and "Traceback" not in text
    assert constant(client, "/v1/models/m/versions/3:predict") == 404

    shutil.rmtree(broken)
    publish(write, folder, 3, 30)
    wait(lambda: constant(client) == 30)
    wait(lambda: states(client) == {3: "AVAILABLE", 2: "END", 1: "END"})


def test_of_a_broken_newest_version_at_the_start_the_one_before_answers(serve, folder):
    (folder / "2").mkdir()
    client = serve(folder.parent)
    assert constant(client) == 10
    assert states(client) == {2: "END", 1: "AVAILABLE"}


def test_a_version_that_is_copied_slowly_is_served_when_it_is_whole(serve, folder, write, tmp_path):
    client = serve(folder.parent)
    whole = write.half_plus(tmp_path / "whole", 20)
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    for path in files:
        assert constant(client) == 10
        target = folder / "2" / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        for part in (content[: len(content) // 2], content[len(content) // 2 :]):
            with open(target, "ab") as file:
                file.write(part)
            threading.Event().wait(0.1)
    wait(lambda: constant(client) == 20)


def test_a_version_deleted_while_serving_gives_way_to_the_one_before(serve, folder, write):
    publish(write, folder, 2, 20)
    client = serve(folder.parent)
    with Load(client) as load:
        wait(lambda: 20 in load.answers)
        shutil.rmtree(folder / "2")
        wait(lambda: 10 in load.answers)
    assert set(load.answers) == {10, 20}
    wait(lambda: states(client) == {2: "END", 1: "AVAILABLE"})


def test_without_any_version_left_the_model_is_not_found(serve, folder):
    client = serve(folder.parent)
    shutil.rmtree(folder / "1")
    wait(lambda: constant(client) == 404)
    wait(lambda: states(client) == {1: "END"})


@pytest.mark.parametrize("gone", ["m", "."])
def test_a_folder_that_is_gone_for_a_while_unloads_nothing(serve, folder, write, gone, tmp_path):
    client = serve(folder.parent)
    moved = (folder.parent / gone).resolve()
    moved.rename(tmp_path / "elsewhere")
    for _ in range(20):
        assert (constant(client), states(client)) == (10, {1: "AVAILABLE"})
        threading.Event().wait(0.05)
    (tmp_path / "elsewhere").rename(moved)
    publish(write, folder, 2, 20)
    wait(lambda: constant(client) == 20)


def test_a_version_may_be_a_time_in_nanoseconds(serve, folder, write):
    client = serve(folder.parent)
    now = time.time_ns()
    publish(write, folder, now, 20)
    wait(lambda: constant(client) == 20)
    assert states(client)[now] == "AVAILABLE"
    assert constant(client, f"/v1/models/m/versions/{now}:predict") == 20


def test_models_that_appear_later_are_served(serve, folder, write):
    client = serve(folder.parent)
    (folder.parent / "n").mkdir()
    publish(write, folder.parent / "n", 7, 70)
    wait(lambda: constant(client, "/v1/models/n/versions/7:predict") == 70)


def test_a_folder_of_one_model_is_served_under_its_name(serve, folder):
    assert constant(serve(folder)) == 10


def test_a_labelled_version_stays_beside_the_newest(serve, folder, write):
    publish(write, folder, 2, 20)
    client = serve(folder.parent, labels={"m": {"stable": 1, "canary": 2}})
    assert constant(client, "/v1/models/m/labels/stable:predict") == 10
    assert constant(client, "/v1/models/m/labels/canary:predict") == 20
    assert constant(client) == 20
    assert constant(client, "/v1/models/m/labels/other:predict") == 400
    # As in TensorFlow Serving a label chooses what answers, not what the status tells.
    for label in ("stable", "other"):
        status, text = client.ask(f"/v1/models/m/labels/{label}")
        assert (status, text) == client.ask("/v1/models/m")


def test_a_label_without_its_version_is_warned_of_at_the_start(serve, folder, caplog):
    serve(folder.parent, labels={"m": {"stable": 1, "canary": 7}})
    said = [record.getMessage() for record in caplog.records if "Label" in record.message]
    assert said == ["Label canary of m: version 7 is not served."]


def test_a_version_that_cannot_be_read_stops_no_other(serve, folder, write, monkeypatch):
    client = serve(folder.parent)
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("/2"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (folder / "2").mkdir()
    publish(write, folder, 3, 30)
    wait(lambda: constant(client) == 30)


def test_the_warm_up_does_not_have_the_deadline_of_clients(serve, tmp_path, write):
    def spin(x):
        matrix = tf.ones([256, 256]) / 256
        for _ in tf.range(500):
            matrix = matrix @ matrix
        return {"y": x + 0 * matrix[0, 0]}

    version = write.functions(
        tmp_path / "m" / "1", serving_default=(spin, {"x": tf.TensorSpec([None], tf.float32)})
    )
    warm_up(version, [[1.0]])
    assert states(serve(tmp_path, deadline_seconds=0.01, max_concurrency=64)) == {1: "AVAILABLE"}


def test_the_warm_up_may_be_larger_than_a_batch(serve, folder, write, tmp_path):
    version = write.half_plus(tmp_path / "v2", 20)
    warm_up(version, [[1.0, 2.0, 3.0]])
    version.rename(folder / "2")
    assert states(serve(folder.parent, max_batch_size=1))[2] == "AVAILABLE"


def warm_up(version, requests):
    """Writes warm-up requests as TensorFlow Serving documents them (saved_model_warmup.md)."""
    extra = version / "assets.extra"
    extra.mkdir()
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for values in requests:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "m"
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(values))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def test_warm_up_requests_are_replayed_before_a_version_answers(serve, folder, write, tmp_path):
    client = serve(folder.parent)
    for number, requests in ((2, [[1.0], [1.0, 2.0]]), (3, [["no number"]])):
        version = write.half_plus(tmp_path / f"v{number}", number * 10)
        warm_up(version, requests)
        version.rename(folder / str(number))
        wait(lambda number=number: states(client).get(number) in ("AVAILABLE", "END"))
    # The second one's warm-up fails, which TensorFlow Serving takes for a broken version too.
    assert states(client) == {3: "END", 2: "AVAILABLE", 1: "END"}
    assert constant(client) == 20


def test_a_warm_up_file_that_is_cut_off_makes_a_version_broken(serve, folder, write, tmp_path):
    client = serve(folder.parent)
    version = write.half_plus(tmp_path / "v2", 20)
    warm_up(version, [[1.0]])
    file = version / "assets.extra" / "tf_serving_warmup_requests"
    file.write_bytes(file.read_bytes()[:4])
    version.rename(folder / "2")
    wait(lambda: states(client) == {2: "END", 1: "AVAILABLE"})


def test_links_that_lead_nowhere_or_in_circles_harm_no_model(serve, folder, write):
    (folder.parent / "aaa").mkdir()
    publish(write, folder.parent / "aaa", 1, 40)
    for name in ("loop", "aaa/loop", "aaa/2", "aaa/1/loop"):
        (folder.parent / name).symlink_to(pathlib.Path(name).name)
    (folder.parent / "aaa" / "1" / "here").symlink_to(".")
    (folder.parent / "aaa" / "1" / "there").symlink_to(".")
    (folder.parent / "aaa" / "1" / "gone").symlink_to("nowhere")
    client = serve(folder.parent)
    assert constant(client, "/v1/models/aaa:predict") == 40
    assert constant(client) == 10
    publish(write, folder, 2, 20)
    wait(lambda: constant(client) == 20)


def test_a_model_that_cannot_be_read_is_logged_once_and_stops_no_other(
    serve, folder, write, monkeypatch, caplog
):
    (folder.parent / "aaa").mkdir()
    publish(write, folder.parent / "aaa", 1, 40)
    client = serve(folder.parent)
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("aaa"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    publish(write, folder, 2, 20)
    wait(lambda: constant(client) == 20)
    publish(write, folder, 3, 30)
    wait(lambda: constant(client) == 30)
    assert constant(client, "/v1/models/aaa:predict") == 40  # What is loaded goes on.
    said = [record.getMessage() for record in caplog.records if "cannot be read" in record.message]
    assert said == [
        f"The folder of aaa cannot be read: [Errno 13] Permission denied: '{folder.parent / 'aaa'}'"
    ]
