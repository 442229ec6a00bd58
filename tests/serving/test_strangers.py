"""What people who were not invited can do: little, and nobody else waits for it.

Each test is bounded in time and stays on the loopback interface.
"""

import base64
import http.client
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

TWO = "/v1/models/half_plus_two"
GET = f"GET {TWO} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
ASK = b'{"instances": [1.0]}'
# No answer waits longer for somebody else's request, on a machine that is not busy (seconds). Where
# it is, three times what the slowest answer took before is added.
PATIENCE = 0.2


def port(client):
    return int(client.url.rpartition(":")[2])


def connect(client, source="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", port(client)), 20, (source, 0))


def raw(client, content, source="127.0.0.1"):
    """Returns the status of the answer to bytes, 0 where there is none."""
    with connect(client, source) as one:
        one.sendall(content)
        answer = one.recv(4096)
    return int(answer.split(b" ", 2)[1]) if answer else 0


# Opens 2,000 connections from another address, and begins to send on each.
SLOW_HEADS = """
import socket, sys
slow = []
for _ in range(2000):
    one = socket.socket()
    slow.append(one)
    one.bind(("127.0.0.2", 0))
    one.connect(("127.0.0.1", int(sys.argv[1])))
    try:
        one.sendall(b"GET /v1/mod")
    except OSError:  # It has been closed at once: it is one too many.
        continue
print("connected", flush=True)
sys.stdin.read()
"""


class Neighbour:
    """Asks meanwhile, on a connection of its own, and measures from each answer to the next."""

    def __init__(self, client):
        self._client, self._ended = client, threading.Event()
        self.seconds = []
        self._statuses = set()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self):
        one = http.client.HTTPConnection("127.0.0.1", port(self._client), timeout=60)
        began = time.perf_counter()
        while not self._ended.is_set():
            one.request("POST", f"{TWO}:predict", ASK)
            answer = one.getresponse()
            answer.read()
            self._statuses.add(answer.status)
            ended = time.perf_counter()
            self.seconds.append(ended - began)
            # With the pause: whoever lets no thread run stops this one in it, too.
            began = ended
            time.sleep(0.002)
        one.close()
        self._statuses.add("ended")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        assert self._statuses == {200, "ended"}

    @property
    def slowest(self):
        return max(self.seconds)

    @property
    def p99(self):
        return float(np.percentile(self.seconds, 99))


def alone(client):
    """Returns a neighbour who has asked for a second with nobody else there."""
    with Neighbour(client) as neighbour:
        time.sleep(1)
    return neighbour


def test_slow_heads_of_one_address_keep_nobody_else_out(serve, models):
    client = serve(models, head_seconds=3.0)
    before = alone(client)
    command = [sys.executable, "-c", SLOW_HEADS, str(port(client))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as slow:
        with Neighbour(client) as neighbour:
            assert slow.stdout.readline() == b"connected\n"
            time.sleep(0.5)
            assert client.ask(f"{TWO}:predict", ASK)[0] == 200
        slow.stdin.close()
    assert len(neighbour.seconds) > 50
    assert neighbour.p99 < 0.1 + 3 * before.slowest, (neighbour.p99, before.slowest)


def test_a_head_has_a_short_time_and_a_bounded_length(serve, models):
    client = serve(models, head_seconds=0.5)
    began = time.monotonic()
    with connect(client) as slow:
        slow.sendall(b"GET /v1/mod")
        assert slow.recv(100) == b""
    assert time.monotonic() - began < 5
    assert raw(client, GET[:-2] + b"X: " + b"a" * 100_000) == 400


def test_the_bound_for_an_address_can_be_switched_off(serve, models):
    for most, answered in ((2, 2), (0, 5)):
        client = serve(models, max_connections_per_address=most)
        kept = [connect(client, "127.0.0.3") for _ in range(5)]
        answers = 0
        for one in kept:
            try:
                one.sendall(GET)
                answers += b" 200 " in one.recv(4096)
            except ConnectionError:
                pass
        for one in kept:
            one.close()
        assert answers == answered


def body_of(content):
    return b'{"instances": [' + content + b"]}"


@pytest.mark.parametrize(
    "body",
    [
        body_of(b",".join([b"[]"] * (2**23 // 3 - 10))),
        body_of(b",".join([b"{}"] * (2**23 // 3 - 10))),
        body_of(b",".join([b"1"] * (2**22 - 20))),
        b'{"inputs": [' + b",".join([b"0.1"] * (2**21 - 20)) + b"]}",
        body_of(b'"' + b"\\n" * (2**22 - 20) + b'"'),
    ],
    ids=["lists", "objects", "integers", "floats", "escapes"],
)
def test_nobody_waits_for_somebody_elses_body(serve, models, body):
    client = serve(models)
    assert 2**23 * 0.9 < len(body) <= 2**23
    client.ask(f"{TWO}:predict", body_of(b"1," * 40_000 + b"1"))  # starts what reads such bodies
    before = alone(client)
    with Neighbour(client) as neighbour:
        time.sleep(0.3)
        status, text = client.ask(f"{TWO}:predict", body)
        time.sleep(0.3)
    assert status in (200, 400), text[:100]
    assert neighbour.slowest < PATIENCE + 3 * before.slowest, (neighbour.slowest, before.slowest)


def test_nobody_waits_for_somebody_elses_message(serve, models):
    client = serve(models)
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "half_plus_two"
    values = message.inputs["x"]
    values.dtype = tf.bool.as_datatype_enum
    values.bool_val.extend([True] * (2**23 - 200))
    values.tensor_shape.dim.add(size=2**23 - 200)
    content, before = message.SerializeToString(), alone(client)
    call = client.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    with Neighbour(client) as neighbour:
        time.sleep(0.3)
        with pytest.raises(grpc.RpcError) as caught:
            call(content, 20)
        time.sleep(0.3)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert neighbour.slowest < PATIENCE + 3 * before.slowest, (neighbour.slowest, before.slowest)


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(size):
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((size + 1) * size), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, write):
    """Returns a folder with `m/1`, which decodes images: their mean, in rows."""

    def decode(content):
        image = tf.io.decode_image(content, channels=1, expand_animations=False)
        return tf.reduce_mean(tf.cast(image, tf.float32))

    def means(image_bytes):
        empty = tf.equal(tf.strings.length(image_bytes), 0)
        safe = tf.where(empty, png(1), image_bytes)
        return {"mean": tf.map_fn(decode, safe, fn_output_signature=tf.float32)}

    folder = tmp_path_factory.mktemp("pictures")
    write.functions(
        folder / "m" / "1", image_bytes=(means, {"image_bytes": tf.TensorSpec([None], tf.string)})
    )
    write.half_plus(folder / "half_plus_two" / "1", 2)
    return folder


def images(*contents):
    rows = [{"b64": base64.b64encode(content).decode()} for content in contents]
    return {"signature_name": "image_bytes", "instances": rows}


def test_a_request_of_many_large_images_is_refused(serve, pictures):
    client = serve(pictures)
    body = images(*[png(4096)] * 128)
    began = time.monotonic()
    status, text = client.ask("/v1/models/m:predict", body)
    assert (status, time.monotonic() - began < 5) == (400, True)
    assert "67108864" in json.loads(text)["error"]


def test_images_are_decoded_in_turn_with_those_of_others(serve, pictures):
    client = serve(pictures)
    large, small = images(*[png(2048)] * 16), images(png(8))
    client.ask("/v1/models/m:predict", small)
    ended = []

    def ask():
        ended.append(client.ask("/v1/models/m:predict", large)[0])

    thread = threading.Thread(target=ask)
    thread.start()
    waited = []
    while thread.is_alive():
        began = time.perf_counter()
        assert client.ask("/v1/models/m:predict", small)[0] == 200
        waited.append(time.perf_counter() - began)
    thread.join()
    assert ended == [200]
    assert len(waited) >= 4  # They came in between.


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF\x10\x00\x00\x00WEBPVP8 ",
        b"\xff\x0a" + bytes(20),
        b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(20),
        b"GIF89a"
        + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 6000, 6000, 0),
        b"no image",
    ],
    ids=["webp", "jpeg xl", "jpeg xl box", "gif frame", "text"],
)
def test_an_image_whose_size_nobody_can_tell_is_refused(serve, tmp_path, write, content):
    write.functions(
        tmp_path / "m" / "1",
        serving_default=(
            lambda image_bytes: {"size": tf.size(tf.io.decode_image(image_bytes[0]))},
            {"image_bytes": tf.TensorSpec([None], tf.string)},
        ),
    )
    body = {"instances": images(content)["instances"]}
    status, text = serve(tmp_path).ask("/v1/models/m:predict", body)
    assert status == 400
    assert "pixels" in json.loads(text)["error"]


def test_grpc_asks_for_the_token_before_it_reads(serve, models):
    client = serve(models, token="secret")
    message = predict_pb2.PredictRequest()
    message.inputs["x"].tensor_content = bytes(2**23 - 1000)
    call = client.channel.stream_unary("/tensorflow.serving.PredictionService/Predict")

    def chunks():  # A message that does not come: who reads first waits for it.
        ended.wait(10)
        yield message.SerializeToString()

    ended, began = threading.Event(), time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        call(chunks(), 20)
    ended.set()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert time.monotonic() - began < 8
    # A message of the same size with the token is read, and has no name of a model.
    with pytest.raises(grpc.RpcError) as caught:
        client.prediction.Predict(message, 20, metadata=[("authorization", "Bearer secret")])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8501", "127.0.0.1.evil.example"])
def test_another_name_for_this_machine_is_refused(serve, models, host):
    client = serve(models)
    assert client.ask(TWO, Host=host)[0] == 403
    for own in ("localhost", "127.0.0.1:80", "[::1]:8501"):
        assert client.ask(TWO, Host=own)[0] == 200


def test_a_page_elsewhere_cannot_post(client):
    for origin in ("http://evil.example", "null", "https://localhost.evil.example"):
        status, _ = client.ask(
            f"{TWO}:predict", ASK, Origin=origin, **{"Content-Type": "text/plain"}
        )
        assert status == 403
    assert client.ask(f"{TWO}:predict", ASK, Origin=client.url)[0] == 200
    assert client.ask(f"{TWO}:predict", ASK)[0] == 200


def test_two_tokens_are_none_on_both_ports(serve, models):
    client = serve(models, token="secret")
    lines = "Authorization: Bearer secret\r\n"
    head = f"GET {TWO} HTTP/1.1\r\nHost: localhost\r\n"
    assert raw(client, f"{head}{lines}\r\n".encode()) == 200
    assert raw(client, f"{head}{lines}{lines}\r\n".encode()) == 401
    message = predict_pb2.PredictRequest()
    with pytest.raises(grpc.RpcError) as caught:
        client.prediction.Predict(message, 20, metadata=[("authorization", "Bearer secret")] * 2)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 20\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 20\r\n\r\n0\r\n\r\n",
        "Content-Length: 20\r\nContent-Length: 21\r\n\r\n",
        "X: a\nContent-Length: 20\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_a_request_with_two_readings_is_refused(client, lines):
    head = f"POST {TWO}:predict HTTP/1.1\r\nHost: localhost\r\n"
    assert raw(client, (head + lines).encode() + ASK) == 400


def test_an_error_does_not_repeat_a_long_request(client):
    for body in ({"instances": ["a" * 10**6]}, {"signature_name": "b" * 10**6, "instances": [1]}):
        status, text = client.ask(f"{TWO}:predict", body)
        assert status == 400 and len(text) < 5000
    assert len(client.ask("/v1/models/" + "c" * 20_000)[1]) < 5000


def test_the_name_of_a_model_ends_no_line_of_the_log(serve, tmp_path, caplog):
    (tmp_path / "a\nERROR b" / "1").mkdir(parents=True)
    serve(tmp_path)
    lines = [one.getMessage() for one in caplog.records if "cannot be loaded" in one.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith(r"Version 1 of a\nERROR b cannot be loaded")
