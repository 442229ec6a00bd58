"""What the development server does under load, by JSON, base64 and gRPC, beside a direct call.

    python benchmarks/serving.py [--seconds=5] [--before=CHECKOUT] [--engine=tfserving PATH]

Serves two models: `mlp` (784 numbers a row) and `image` (224 × 224 pixels: as numbers, and as JPEG
files). 1, 8 and 64 clients keep their connections and ask for one row a request: `wrk` by REST,
`h2load` by gRPC (Debian's packages wrk and nghttp2-client). Prints requests a second, latencies,
and the CPU time of the server's own processes for a request, with what one client waits more than
a direct call takes.

`--before` measures another checkout of tfbp in turn with this one, `--engine=tfserving PATH` a
`tensorflow_model_server`, whose answers are compared with this server's byte by byte. Ends with
code 1 when an answer was wrong.
"""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence

import grpc
import numpy as np
import tensorflow as tf

from tfbp.commands import flags
from tfbp.reporting.table import table
from tfbp.settings import Fields, field

ROOT = pathlib.Path(__file__).parents[1]
CLIENTS = (1, 8, 64)
PREDICT = "/tensorflow.serving.PredictionService/Predict"
TICKS = os.sysconf("SC_CLK_TCK")
WRK = """
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
wrk.body = io.open("%s", "rb"):read("*a")
done = function(summary, latency, requests)
  local bad = summary.errors.status + summary.errors.read + summary.errors.timeout
  local p50, p99 = latency:percentile(50) / 1000, latency:percentile(99) / 1000
  print("ANSWER", summary.requests, bad, p50, p99)
end
"""


@dataclasses.dataclass(frozen=True)
class Flags(Fields):
    seconds: float = field(5.0, "of load for each figure", low=1)
    before: str = field("", "another checkout of tfbp, to be measured in turn")
    engine: str = field(
        "tfbp", "tfserving: the binary that is named", choices=("tfbp", "tfserving")
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to ask for one row: a body of JSON, or a serialized request of gRPC."""

    name: str
    model: str
    content: bytes
    grpc: bool = False


@dataclasses.dataclass(frozen=True)
class Engine:
    """A server to measure: the command that starts it, and where."""

    name: str
    command: Sequence[str]
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    port: int
    grpc_port: int

    def cpu(self) -> float:
        """Returns the CPU seconds of the server's processes."""
        own = pathlib.Path(f"/proc/{self.process.pid}")
        children = " ".join(task.read_text() for task in own.glob("task/*/children")).split()
        return sum(map(_cpu, [str(self.process.pid), *children]))


def main() -> None:
    settings, rest = flags.parse(Flags, sys.argv[1:], about=__doc__ or "")
    rows = [("asked", "clients", "server", "requests/s", "p50 ms", "p99 ms", "server CPU ms")]
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _write_models(folder)
        cases = _cases()
        engines = _engines(settings, rest, folder)
        for case in cases:
            (folder / case.name).write_bytes(case.content)
        with contextlib.ExitStack() as stack:
            running = {engine.name: stack.enter_context(_run(engine)) for engine in engines}
            for case in cases:
                for clients in CLIENTS:
                    for engine, server in running.items():
                        figures, bad = _measure(case, server, clients, settings.seconds, folder)
                        wrong += bad
                        rows.append((case.name, str(clients), engine, *figures))
            wrong += _compare(cases, running)
        direct = _direct(folder / "mlp" / "1")
    print(table(rows, numbers=[1, 3, 4, 5, 6]))
    print(f"\nA direct call of mlp takes {direct:.2f} ms (median).")
    sys.exit(1 if wrong else 0)


def _write_models(folder: pathlib.Path) -> None:
    generator = tf.random.Generator.from_seed(0)
    mlp, image = tf.Module(), tf.Module()
    mlp.first = tf.Variable(generator.normal([784, 128], stddev=0.05))
    mlp.second = tf.Variable(generator.normal([128, 10], stddev=0.05))

    @tf.function(input_signature=[tf.TensorSpec([None, 28, 28, 1], name="pixels")])
    def classify(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden = tf.nn.relu(tf.reshape(pixels, [-1, 784]) @ mlp.first)
        return {"probabilities": tf.nn.softmax(hidden @ mlp.second)}

    @tf.function(input_signature=[tf.TensorSpec([None, 224, 224, 3], name="pixels")])
    def mean(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"mean": tf.reduce_mean(pixels, [1, 2])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def of_files(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        decoded = tf.map_fn(tf.io.decode_jpeg, image_bytes, fn_output_signature=tf.uint8)
        return mean(tf.cast(tf.ensure_shape(decoded, [None, 224, 224, 3]), tf.float32))

    mlp.classify, image.mean, image.of_files = classify, mean, of_files
    tf.saved_model.save(mlp, str(folder / "mlp" / "1"), signatures=classify)
    signatures = {"serving_default": mean, "image_bytes": of_files}
    tf.saved_model.save(image, str(folder / "image" / "1"), signatures=signatures)


def _cases() -> list[Case]:
    generator = np.random.default_rng(0)
    digit = generator.integers(0, 256, [1, 28, 28, 1])
    photo = tf.image.resize(generator.integers(0, 256, [8, 8, 3]), [224, 224]).numpy()
    pixels = np.uint8(photo)[None]
    jpeg = tf.io.encode_jpeg(pixels[0]).numpy()
    files = {
        "signature_name": "image_bytes",
        "instances": [{"b64": base64.b64encode(jpeg).decode()}],
    }
    return [
        Case("mlp JSON", "mlp", json.dumps({"instances": digit.tolist()}).encode()),
        Case("mlp gRPC", "mlp", _message("mlp", "", pixels=np.float32(digit)), True),
        Case("image JSON", "image", json.dumps({"instances": pixels.tolist()}).encode()),
        Case("image base64", "image", json.dumps(files).encode()),
        Case("image gRPC", "image", _message("image", "", pixels=np.float32(pixels)), True),
        Case(
            "image gRPC file",
            "image",
            _message("image", "image_bytes", image_bytes=np.array([jpeg])),
            True,
        ),
    ]


def _message(model: str, signature: str, **inputs: np.ndarray) -> bytes:
    from tensorflow_serving.apis import predict_pb2

    message = predict_pb2.PredictRequest()
    message.model_spec.name, message.model_spec.signature_name = model, signature
    for name, value in inputs.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return bytes(message.SerializeToString())


def _engines(settings: Flags, rest: Sequence[str], folder: pathlib.Path) -> list[Engine]:
    command = [sys.executable, "-m", "recipes", "serve", str(folder), "--port=0", "--grpc_port=0"]
    engines = [Engine("now", command, ROOT)]
    if settings.before:
        engines.insert(0, Engine("before", command, pathlib.Path(settings.before)))
    if settings.engine == "tfserving":
        models = "".join(
            f'config {{ name: "{name}" model_platform: "tensorflow" base_path: "{folder}/{name}" }}'
            for name in ("mlp", "image")
        )
        (folder / "models.config").write_text(f"model_config_list {{ {models}}}")
        engines.append(
            Engine("tfserving", [rest[0], f"--model_config_file={folder}/models.config"], ROOT)
        )
    return engines


@contextlib.contextmanager
def _run(engine: Engine) -> Iterator[Running]:
    environment = os.environ | {"PYTHONPATH": str(engine.folder)}
    command, ports = [*engine.command], (0, 0)
    if engine.name == "tfserving":
        ports = _free_port(), _free_port()
        command += [f"--rest_api_port={ports[0]}", f"--port={ports[1]}"]
    process = subprocess.Popen(
        command, cwd=engine.folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        if engine.name == "tfserving":
            _wait_for(ports[0])
        else:
            assert process.stdout
            line = process.stdout.readline()
            ports = tuple(map(int, re.findall(r":(\d+)", line)))
        yield Running(process, *ports)
    finally:
        process.terminate()
        process.wait(60)


def _measure(
    case: Case, server: Running, clients: int, seconds: float, folder: pathlib.Path
) -> tuple[tuple[str, str, str, str], int]:
    """Returns requests a second, p50, p99 and the server's CPU for a request; how many failed."""
    began = server.cpu()
    if case.grpc:
        target = f"127.0.0.1:{server.grpc_port}"
        with grpc.insecure_channel(target) as channel:  # h2load does not see gRPC's own status.
            channel.unary_unary(PREDICT)(case.content, 60)
        began = server.cpu()
        # A message on the wire: not compressed, its length, its bytes.
        (folder / "framed").write_bytes(struct.pack(">BI", 0, len(case.content)) + case.content)
        log = folder / "h2load.log"
        command = ["h2load", f"-c{clients}", "-t1", f"--duration={seconds:g}", f"--log-file={log}"]
        command += ["-Hcontent-type: application/grpc", "-Hte: trailers", f"-d{folder}/framed"]
        log.unlink(missing_ok=True)
        subprocess.run([*command, f"http://{target}{PREDICT}"], check=True, capture_output=True)
        # A line for each answer: when it was asked for, its status, microseconds.
        answers = np.loadtxt(log, ndmin=2)
        count, bad = len(answers), int((answers[:, 1] != 200).sum())
        p50, p99 = np.percentile(answers[:, 2] / 1000, [50, 99])
    else:
        script = folder / "wrk.lua"
        script.write_text(WRK % (folder / case.name))
        url = f"http://127.0.0.1:{server.port}/v1/models/{case.model}:predict"
        command = [
            "wrk",
            f"-t{min(clients, 2)}",
            f"-c{clients}",
            f"-d{seconds:g}s",
            "-s",
            str(script),
        ]
        output = subprocess.run([*command, url], check=True, capture_output=True, text=True).stdout
        found = next(line for line in output.splitlines() if line.startswith("ANSWER")).split()[1:]
        count, bad, p50, p99 = int(found[0]), int(found[1]), float(found[2]), float(found[3])
    cpu = 1000 * (server.cpu() - began) / max(count, 1)
    return (f"{count / seconds:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{cpu:.3f}"), bad


def _compare(cases: Sequence[Case], running: dict[str, Running]) -> int:
    """Returns how many answers of TensorFlow Serving differ from this server's, byte by byte."""
    if "tfserving" not in running:
        return 0
    wrong = 0
    for case in cases:
        if case.grpc:
            continue
        one, other = (
            _ask(
                f"http://127.0.0.1:{running[name].port}/v1/models/{case.model}:predict",
                case.content,
            )
            for name in ("now", "tfserving")
        )
        print(f"{case.name}: {'the same bytes' if one == other else f'{one!r} != {other!r}'}")
        wrong += one != other
    return wrong


def _ask(url: str, body: bytes) -> bytes:
    with urllib.request.urlopen(url, body, timeout=60) as response:
        return bytes(response.read())


def _direct(version: pathlib.Path) -> float:
    """Returns the median time of a call of the signature, from array to array, milliseconds."""
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    value, seconds = np.zeros([1, 28, 28, 1], np.float32), []
    for _ in range(500):
        began = time.perf_counter()
        _ = {key: tensor.numpy() for key, tensor in signature(pixels=tf.constant(value)).items()}
        seconds.append(time.perf_counter() - began)
    return 1000 * float(np.median(seconds))


def _cpu(process: str) -> float:
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # It has ended.
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


if __name__ == "__main__":
    main()
