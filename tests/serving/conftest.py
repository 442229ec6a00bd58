"""Small SavedModels, and a server over them in this process."""

import json
import pathlib
import time
import types
import urllib.error
import urllib.request

import grpc
import hypothesis
import pytest
import tensorflow as tf
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from tfbp.serving.limits import Limits
from tfbp.serving.server import Server

# `make soak` asks for it.
hypothesis.settings.register_profile("soak", max_examples=10_000)

FLOATS = tf.TensorSpec([None], tf.float32)


def save(folder, **signatures):
    """Writes a SavedModel of plain functions; each is (function, name → TensorSpec)."""
    module = tf.Module()
    concrete = {
        name: tf.function(function).get_concrete_function(**specs)
        for name, (function, specs) in signatures.items()
    }
    module.functions = list(concrete.values())
    tf.saved_model.save(module, str(folder), signatures=concrete)
    return pathlib.Path(folder)


def save_half_plus(folder, constant):
    """Writes y = 0.5x + constant, as TensorFlow Serving's examples have it."""
    module = tf.Module()
    module.slope, module.constant = tf.Variable(0.5), tf.Variable(float(constant))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def predict(x):
        return {"y": module.slope * x + module.constant}

    tf.saved_model.save(module, str(folder), signatures=predict)
    return pathlib.Path(folder)


def save_shapes(folder):
    """Writes a model with one signature for each thing that the API distinguishes."""
    strings = tf.TensorSpec([None], tf.string)

    def three(tag, signal, sensor):
        return {"label": tag, "total": tf.reduce_sum(signal, 1), "sensor": sensor * 2}

    def nan(x):
        return {"y": tf.stack([x / 0.0, -x / 0.0, x * float("nan"), x], axis=1)}

    def spin(x, rounds):
        matrix = tf.ones([256, 256]) / 256
        for _ in tf.range(rounds):
            matrix = matrix @ matrix
        return {"y": x + 0 * matrix[0, 0]}

    def refuse_negative(x):
        tf.debugging.assert_non_negative(x, message="/secret/place/model.py refused")
        return {"y": x}

    dtypes = [tf.int8, tf.uint8, tf.int16, tf.int32, tf.int64, tf.uint64, tf.float64, tf.bool]
    typed = {dtype.name: tf.TensorSpec([None], dtype) for dtype in dtypes}
    return save(
        folder,
        serving_default=(
            three,
            {
                "tag": strings,
                "signal": tf.TensorSpec([None, 5], tf.float32),
                "sensor": tf.TensorSpec([None, 2, 2], tf.float32),
            },
        ),
        echo=(lambda text: {"text": text, "text_bytes": text}, {"text": strings}),
        nan=(nan, {"x": FLOATS}),
        typed=(lambda **values: {f"{key}_out": value for key, value in values.items()}, typed),
        scalar=(
            lambda x, factor: {"y": x * factor},
            {"x": FLOATS, "factor": tf.TensorSpec([], tf.float32)},
        ),
        spin=(spin, {"x": FLOATS, "rounds": tf.TensorSpec([], tf.int32)}),
        half=(lambda x: {"y": x}, {"x": tf.TensorSpec([None], tf.float16)}),
        refuse_negative=(refuse_negative, {"x": FLOATS}),
        sizes=(
            lambda image_bytes: {"size": tf.strings.length(image_bytes)},
            {"image_bytes": strings},
        ),
    )


class Client:
    """Asks a server by plain HTTP and by the official gRPC stubs."""

    def __init__(self, server):
        self.url = f"http://127.0.0.1:{server.port}"
        self.grpc_port = server.grpc_port
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def ask(self, path, body=None, **headers):
        """Returns status and text of the answer; a body that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def until(self, path, expected, seconds=5.0):
        """Asks until the answer is the expected one, and returns how long that took."""
        began = time.monotonic()
        while (answer := self.ask(path)) != expected:
            assert time.monotonic() - began < seconds, answer
            time.sleep(0.02)
        return time.monotonic() - began


def serving():
    """Yields a function that serves a folder and returns a client of it; all end together."""
    running = []

    def start(folder, **settings):
        limits = {name: settings.pop(name) for name in list(settings) if hasattr(Limits, name)}
        server = Server(folder, port=0, grpc_port=0, limits=Limits(**limits), **settings)
        server.start()
        running.append((server, Client(server)))
        return running[-1][1]

    yield start
    for server, client in running:
        client.channel.close()
        server.stop()


@pytest.fixture
def serve():
    """Returns a function that serves a folder, and a client of it; all end with the test."""
    yield from serving()


@pytest.fixture(scope="module")
def serve_module():
    """Returns what `serve` does; all end with the module."""
    yield from serving()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns a folder with `half_plus_two/123`, `half_plus_three/123` and `shapes/1`."""
    folder = tmp_path_factory.mktemp("saved_models")
    save_half_plus(folder / "half_plus_two" / "00000123", 2)
    save_half_plus(folder / "half_plus_three" / "123", 3)
    save_shapes(folder / "shapes" / "1")
    return folder


@pytest.fixture(scope="module")
def client(models):
    """Returns a client of a server over `models`."""
    with Server(models, port=0, grpc_port=0) as server:
        client = Client(server)
        yield client
        client.channel.close()


@pytest.fixture(scope="session")
def write():
    """Returns what writes models: `write.functions`, `write.half_plus`, `write.shapes`."""
    return types.SimpleNamespace(functions=save, half_plus=save_half_plus, shapes=save_shapes)
