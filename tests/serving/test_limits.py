"""What the server refuses, and how: never with a crash, a 500, a path or a traceback."""

import base64
import gzip
import json
import os
import select
import socket
import struct
import threading
import time
import zlib

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2

from tfbp.errors import UserError
from tfbp.serving import gate, images
from tfbp.serving.server import Server

TWO = "/v1/models/half_plus_two"
SHAPES = "/v1/models/shapes"
LONG = {"signature_name": "spin", "inputs": {"x": [1], "rounds": 2**30}}


def picture(height, width, form):
    pixels = np.zeros([height, width, 3], np.uint8)
    if form == "bmp":
        row = bytes(-(-width * 3 // 4) * 4)
        header = b"BM" + struct.pack("<IHHI", 54 + len(row) * height, 0, 0, 54)
        return header + struct.pack("<IiiHH6I", 40, width, -height, 1, 24, *[0] * 6) + row * height
    if form == "gif":
        header = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
        return header + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02D\x01\x00;"
    return {"png": tf.io.encode_png, "jpeg": tf.io.encode_jpeg}[form](pixels).numpy()


@pytest.mark.parametrize("form", ["png", "jpeg", "bmp", "gif"])
def test_the_header_of_an_image_tells_its_size(form):
    content = picture(37, 51, form)
    if form != "gif":  # TensorFlow would want the whole picture of it.
        assert tf.io.decode_image(content).shape[:2] == (37, 51)
    assert images.pixels(content) == 37 * 51
    assert all(images.pixels(content[:end]) in (None, 37 * 51) for end in range(len(content)))


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"\xff\xd8"]),
)
def test_any_bytes_have_a_size_or_none(content, start):
    size = images.pixels(start + content)
    assert size is None or size >= 0


def bomb():
    """Returns a PNG of 6,000 × 6,000 black pixels, in some 35 KB."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 6000, 6000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(6001 * 6000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_an_image_bomb_is_refused_before_it_is_decoded(client):
    # differs: pixels
    content = bomb()
    assert len(content) < 40_000
    body = {"signature_name": "sizes", "instances": [{"b64": base64.b64encode(content).decode()}]}
    status, text = client.ask(f"{SHAPES}:predict", body)
    assert (status, json.loads(text)["error"]) == (
        400,
        "An image of 36000000 pixels is over the limit of 16777216",
    )
    message = predict_pb2.PredictRequest()
    message.model_spec.name, message.model_spec.signature_name = "shapes", "sizes"
    message.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([content]))
    with pytest.raises(grpc.RpcError) as caught:
        client.prediction.Predict(message, 20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_deep_json_is_refused(client):
    for body in (b"[" * 100_000, b'{"instances": ' + b"[" * 500 + b"]" * 500 + b"}"):
        status, text = client.ask(f"{TWO}:predict", body)
        assert status == 400 and "over the limit of 32" in text
    # Brackets in a string nest nothing.
    text = "[" * 500 + '"' + "{" * 500
    body = {"signature_name": "echo", "instances": [text]}
    status, answer = client.ask(f"{SHAPES}:predict", body)
    assert (status, json.loads(answer)["predictions"][0]["text"]) == (200, text)


def test_body_and_batch_are_limited(serve, models):
    client = serve(models, max_body_bytes=1000, max_batch_size=4)
    assert client.ask(f"{TWO}:predict", {"instances": [1] * 4})[0] == 200
    status, text = client.ask(f"{TWO}:predict", {"instances": [1] * 5})
    assert (status, json.loads(text)["error"]) == (
        400,
        "Task size 5 is larger than maximum input batch size 4",
    )
    for size in (1001, 3900):
        status, text = client.ask(f"{TWO}:predict", b" " * size)
        assert (status, json.loads(text)["error"]) == (
            413,
            "The body of the request is over the limit of 1000 bytes",
        )
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "half_plus_two"
    message.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros(2000, np.float32)))
    with pytest.raises(grpc.RpcError) as caught:
        client.prediction.Predict(message, 20)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_full_queue_is_429_and_a_passed_deadline_504(serve, models):
    client = serve(models, max_queue=1, deadline_seconds=2)
    answers = []
    lock = threading.Lock()

    def ask():
        answer = client.ask(f"{SHAPES}:predict", LONG)
        with lock:
            answers.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = [status for status, _ in answers]
    assert set(codes) == {429, 504}
    refused = next(text for status, text in answers if status == 429)
    assert json.loads(refused)["error"].startswith("The batch scheduling queue")
    late = next(text for status, text in answers if status == 504)
    assert json.loads(late)["error"] == "The deadline of the request has passed."
    # The calls that were given up have ended by themselves: others get through.
    deadline = time.monotonic() + 120
    body = {"signature_name": "spin", "inputs": {"x": [1], "rounds": 1}}
    while client.ask(f"{SHAPES}:predict", body)[0] != 200:
        assert time.monotonic() < deadline


def test_too_many_requests_at_once_are_429(serve, models):
    client = serve(models, max_concurrency=1, deadline_seconds=2)
    slow = threading.Thread(target=client.ask, args=(f"{SHAPES}:predict", LONG))
    slow.start()
    seen = set()
    while slow.is_alive():
        status, text = client.ask(TWO)
        seen.add(status)
        assert status == 200 or json.loads(text)["error"] == "More than 1 requests at once"
    assert 429 in seen
    assert client.ask(TWO)[0] == 200


def connect(client):
    return socket.create_connection(("127.0.0.1", int(client.url.rpartition(":")[2])), timeout=120)


def test_a_client_that_sends_slowly_is_let_go(serve, models):
    client = serve(models, deadline_seconds=0.5)
    with connect(client) as head, connect(client) as body, connect(client) as kept:
        head.sendall(b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: localhost\r\n")
        body.sendall(
            b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        kept.sendall(b"GET /v1/models/half_plus_two HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in kept.recv(1000)
        kept.sendall(b"GET /v1/mod")  # The next head on a kept connection is waited for no longer.
        assert client.ask(TWO)[0] == 200  # Meanwhile others are answered.
        assert head.recv(1000) == b""
        answer = b"".join(iter(lambda: body.recv(1000), b""))  # to the end: it is closed
        assert b" 504 " in answer
        while kept.recv(1000):
            pass


def test_slow_bodies_take_no_place_of_others(serve, models):
    client = serve(models, max_concurrency=2)
    slow = [connect(client) for _ in range(6)]
    for one in slow:
        one.sendall(b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: localhost\r\n")
        one.sendall(b"Content-Length: 20\r\n\r\n{")
    for _ in range(5):
        assert client.ask(f"{TWO}:predict", {"instances": [1.0]})[0] == 200
    for one in slow:  # They are answered when they have sent it.
        one.sendall(b'"instances":[1.0]}\n')
        assert b" 200 " in one.recv(1000)
        one.close()


def test_bodies_in_memory_are_bounded(serve, models):
    client = serve(models, max_body_bytes=2**20, max_concurrency=16)
    slow = [connect(client) for _ in range(20)]
    for one in slow:
        one.sendall(b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: localhost\r\n")
        one.sendall(b"Content-Length: 1000000\r\n\r\n" + b" " * 999_000)
    refused, _, _ = select.select(slow, [], [], 120)
    assert refused and all(b" 429 " in one.recv(1000) for one in refused)
    for one in slow:
        one.close()
    deadline = time.monotonic() + 120
    body = b" " * 999_000 + b'{"instances": [1.0]}'
    while client.ask(f"{TWO}:predict", body)[0] != 200:  # Who has left holds nothing.
        assert time.monotonic() < deadline


def test_too_many_rows_are_refused_before_their_values_are_looked_at(client):
    body = {"instances": [["no number", {}]] * 1000}
    status, text = client.ask(f"{TWO}:predict", body)
    assert (status, json.loads(text)["error"]) == (
        400,
        "Task size 1000 is larger than maximum input batch size 128",
    )
    status, again = client.ask(f"{TWO}:predict", {"inputs": body["instances"]})
    assert (status, again) == (400, text)


def test_calls_that_take_long_stop_no_other_model(serve, models):
    client = serve(models, deadline_seconds=6)
    threads = [
        threading.Thread(target=client.ask, args=(f"{SHAPES}:predict", LONG))
        for _ in range(2 * os.cpu_count())
    ]
    for thread in threads:
        thread.start()
    answered = 0
    while all(thread.is_alive() for thread in threads):
        assert client.ask(f"{TWO}:predict", {"instances": [1.0]})[0] == 200
        answered += 1
    for thread in threads:
        thread.join()
    assert answered > 2


@pytest.mark.parametrize("token", ["ßecret", " secret", "secret\n", "a\tb"])
def test_a_token_that_no_client_can_send_is_a_mistake(models, token):
    with pytest.raises(UserError, match="`--token` must be ASCII characters without blanks"):
        Server(models, port=0, grpc_port=0, token=token)


def test_a_client_that_leaves_harms_nobody(client):
    for _ in range(20):
        with connect(client) as gone:
            gone.sendall(
                b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
    assert client.ask(f"{TWO}:predict", {"instances": [1]})[0] == 200


def test_what_is_no_http_is_answered_400(client):
    with connect(client) as broken:
        broken.sendall(b"\x00\x01 nonsense\r\n\r\n")
        answer = b"".join(iter(lambda: broken.recv(1000), b""))
    assert b" 400 " in answer and set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}


def test_a_body_that_is_compressed_in_another_way_is_not_implemented(client):
    headers = {"Content-Encoding": "br"}
    assert client.ask(f"{TWO}:predict", b"x", **headers)[0] == 501


def test_a_compressed_body_is_inflated_within_the_bound(client):
    headers = {"Content-Encoding": "gzip"}
    body = gzip.compress(b'{"instances": [1.0]}')
    status, text = client.ask(f"{TWO}:predict", body, **headers)
    assert (status, json.loads(text)) == (200, {"predictions": [2.5]})
    bomb = gzip.compress(bytes(2**28))
    assert len(bomb) < 2**20
    began = time.process_time()
    status, text = client.ask(f"{TWO}:predict", bomb, **headers)
    assert (status, time.process_time() - began < 2) == (413, True)
    for broken in (body[:-9], b"no gzip"):
        assert client.ask(f"{TWO}:predict", broken, **headers)[0] == 400


def test_the_token_is_asked_for_on_both_ports(serve, models):
    # differs: token
    client = serve(models, token="secret")
    ask = {"instances": [1.0]}
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
        status, text = client.ask(f"{TWO}:predict", ask, **headers)
        assert (status, json.loads(text)["error"]) == (401, "A bearer token is required")
        assert client.ask(TWO, **headers)[0] == 401
    for scheme in ("Bearer", "bearer"):  # RFC 9110, section 11.1
        headers = {"Authorization": f"{scheme} secret"}
        assert client.ask(f"{TWO}:predict", ask, **headers)[0] == 200
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "half_plus_two"
    message.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    with pytest.raises(grpc.RpcError) as caught:
        client.prediction.Predict(message, 20)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    metadata = [("authorization", "Bearer secret")]
    answer = client.prediction.Predict(message, 20, metadata=metadata)
    assert list(answer.outputs["y"].float_val) == [2.5]


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_other_machines_need_a_token_or_consent(host, alone):
    gate.check_exposure(host, "token", False)
    gate.check_exposure(host, "", True)
    if alone:
        gate.check_exposure(host, "", False)
    else:
        with pytest.raises(UserError, match="`--host` must be a loopback address unless"):
            gate.check_exposure(host, "", False)


def test_a_port_that_is_taken_and_a_folder_without_models_are_mistakes(models, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="`--port` must be free on 127"):
            Server(models, port=port, grpc_port=0)
        with pytest.raises(UserError, match="`--grpc_port` must be free on 127"):
            Server(models, port=0, grpc_port=port)
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="`SAVED_MODELS` must be a folder that holds"):
            Server(folder, port=0, grpc_port=0)


# JSON-like values, their texts mangled; most are no requests at all.
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just({"b64": "AA=="})
    | st.just({"b64": "!"})
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["x", "tag", "signal", "b64", "image_bytes"]) | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
SIGNATURES = ["serving_default", "echo", "nan", "typed", "scalar", "half", "sizes", ""]
BODIES = st.builds(
    lambda key, value, name, cut, junk: (
        json.dumps({key: value} | ({} if name is None else {"signature_name": name})).encode(
            errors="surrogatepass"
        )[cut:]
        + junk
    ),
    st.sampled_from(["instances", "inputs", "other"]),
    VALUES,
    st.none() | st.sampled_from(SIGNATURES) | VALUES,
    st.sampled_from([0, 0, 0, 0, 1, 5]),
    st.sampled_from([b"", b"", b"", b"}", b"\xff", b"\x00"]),
) | st.binary(max_size=60)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BODIES, st.sampled_from([TWO, SHAPES]))
def test_no_body_is_answered_500(client, body, model):
    status, text = client.ask(f"{model}:predict", body)
    assert status in (200, 400, 501), (status, text)
    if status != 200:
        assert set(json.loads(text)) == {"error"}
        assert "Traceback" not in text and "site-packages" not in text


def test_neither_fill_bytes_nor_endless_segments_of_a_jpeg_hold_anybody_up():
    began = time.thread_time()
    assert images.pixels(b"\xff\xd8" + b"\xff" * 20_000_000) is None
    endless = b"\xff\xd8" + b"\xff\xe0\x00\x02" * 5_000_000
    assert images.pixels(endless) is None  # refused, whatever comes behind them
    assert time.thread_time() - began < 0.5
    frame = picture(37, 51, "jpeg")
    assert images.pixels(b"\xff\xd8" + b"\xff" * 1000 + frame[2:]) == 37 * 51


@pytest.mark.parametrize("path", ["/v1/models/half_plus_two:predict", "/other"])
def test_a_body_that_nobody_reads_keeps_no_connection(serve, models, path):
    client = serve(models, token="secret")
    with connect(client) as slow:
        slow.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode())
        slow.sendall(b"Content-Length: 100000000\r\n\r\n{")
        answer = b"".join(iter(lambda: slow.recv(1000), b""))  # to the end: it is closed
    assert b" 401 " in answer and b"connection: close" in answer.lower()
    with connect(client) as kept:  # One that has sent its body keeps its connection.
        for _ in range(2):
            kept.sendall(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{".encode()
            )
            kept.sendall(b"}")
            answer = b""
            while not answer.endswith(b"}"):
                answer += kept.recv(1000)
            assert b" 401 " in answer and b"connection: close" not in answer.lower()


def test_an_image_that_is_too_large_is_a_bad_row_where_the_export_answers_such(
    serve, write, tmp_path
):
    write.functions(
        tmp_path / "m" / "1",
        image_bytes=(
            lambda image_bytes: {"size": tf.strings.length(image_bytes)},
            {"image_bytes": tf.TensorSpec([None], tf.string)},
        ),
    )
    client = serve(tmp_path)
    rows = [{"b64": base64.b64encode(content).decode()} for content in (b"good", bomb(), b"other")]
    body = {"signature_name": "image_bytes", "instances": rows}
    status, text = client.ask("/v1/models/m:predict", body)
    assert (status, json.loads(text)) == (200, {"predictions": [4, 0, 5]})


def test_a_host_and_a_label_that_are_not_there_are_mistakes(models):
    with pytest.raises(UserError, match="`--host` must be an address of this machine"):
        Server(models, host="no.such.host.invalid", port=0, grpc_port=0)
    with pytest.raises(UserError, match="`--host` must be an address of this machine"):
        Server(models, host="192.0.2.1", port=0, grpc_port=0)  # RFC 5737: nobody's
    with pytest.raises(UserError, match=r"`--labels` must name a model.*mean 'half_plus_two'"):
        Server(models, port=0, grpc_port=0, labels={"half_plus_tow": {"stable": 123}})
