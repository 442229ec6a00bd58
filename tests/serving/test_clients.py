"""Clients that others have published, in an environment of their own.

`min-tfs-client` brings files of TensorFlow and of its protos, and needs an old protobuf: it can not
be installed beside TensorFlow, nor can what it is tested with.
"""

import configparser
import json
import os
import pathlib
import subprocess
import sys
import venv

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from tfbp.serving import tensors

ROOT = pathlib.Path(__file__).parents[2]
ALONE = ("min-tfs-client", "protobuf<4")

MIN_TFS_CLIENT = """
import json, sys, numpy
from min_tfs_client.requests import TensorServingClient
from min_tfs_client.tensors import tensor_proto_to_ndarray
client = TensorServingClient("127.0.0.1", int(sys.argv[1]))
answer = client.predict_request("half_plus_two", {"x": numpy.array([1, 2, 5], numpy.float32)}, 20)
print(json.dumps(tensor_proto_to_ndarray(answer.outputs["y"]).tolist()))
"""
TF_SERVING = """
import asyncio, json, sys
from tf.serving import encode64, predict
images = [encode64(b"\\xfb\\xff\\x00"), encode64(b"ab")]
answer = asyncio.run(predict(images, host="http://127.0.0.1", port=int(sys.argv[1])))
print(json.dumps([one.model_dump() for one in answer.unsafe()]))
"""
# Messages are bytes: the test has the protos of today.
GRPCLIB = """
import asyncio, pathlib, sys
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.encoding.base import CodecBase
class Bytes(CodecBase):
    __content_subtype__ = "proto"
    def encode(self, message, message_type): return message
    def decode(self, data, message_type): return data
async def ask():
    async with Channel("127.0.0.1", int(sys.argv[1]), codec=Bytes()) as channel:
        method = UnaryUnaryMethod(
            channel, "/tensorflow.serving.PredictionService/Predict", bytes, bytes
        )
        message = pathlib.Path(sys.argv[2]).read_bytes()
        answers = await asyncio.gather(*[method(message, timeout=20) for _ in range(8)])
        print("".join(answer.hex() + " " for answer in answers))
asyncio.run(ask())
"""

pytestmark = pytest.mark.slow


def run(*command):
    """Runs a command without this environment's paths, and returns its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), env=kept, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Returns the Python of an environment with the extra `[clients]` and what must be alone."""
    folder = tmp_path_factory.mktemp("clients")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    extra = settings["options.extras_require"]["clients"].split()
    run(sys.executable, "-m", "pip", f"--python={python}", "install", "-q", *extra, *ALONE)
    return python


@pytest.fixture(scope="module")
def ports(models, serve_module, write):
    """Returns the ports of a server whose model `ocr` answers as that of tf-serving's author."""

    def read(images):
        content = tf.io.decode_base64(images)
        lengths = tf.cast(tf.strings.length(content), tf.float32)
        return {
            "preds": tf.stack([images, images], 1),
            "logprobs": tf.stack([lengths, -lengths], 1),
        }

    write.functions(
        models / "ocr" / "1",
        serving_default=(read, {"images": tf.TensorSpec([None], tf.string)}),
    )
    client = serve_module(models)
    return int(client.url.rpartition(":")[2]), client.grpc_port


def test_min_tfs_client_is_answered(python, ports):
    answer = json.loads(run(python, "-c", MIN_TFS_CLIENT, ports[1]))
    assert answer == [2.5, 3.0, 4.5]


def test_tf_serving_is_answered(python, ports):
    answer = json.loads(run(python, "-c", TF_SERVING, ports[0]))
    assert answer == [
        {"preds": ["-_8A", "-_8A"], "logprobs": [3, -3]},
        {"preds": ["YWI=", "YWI="], "logprobs": [2, -2]},
    ]


def test_grpclib_is_answered(python, ports, tmp_path):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half_plus_two"
    request.inputs["x"].CopyFrom(tensors.to_proto(np.array([1, 2, 5], np.float32)))
    (tmp_path / "request").write_bytes(request.SerializeToString())
    output = run(python, "-c", GRPCLIB, ports[1], tmp_path / "request")
    answers = [predict_pb2.PredictResponse.FromString(bytes.fromhex(one)) for one in output.split()]
    assert [list(one.outputs["y"].float_val) for one in answers] == [[2.5, 3.0, 4.5]] * 8
