"""What the development server does under load: `serve`, batched and not, beside a direct call.

    python benchmarks/serving.py [--seconds=10] [--clients=64]

Exports three models, trained for an epoch: `mlp` as the recipe has it, `mlp` with two wide layers
and `vgg16` on 32 × 32 images. For each the server runs in a process of its own; clients keep their
connections, send one row a request as JSON and check every answer's probabilities to 1e-4. Prints
requests a second and latencies, unbatched (--max_batch_size=1) and batched; what one client waits
more than a direct call of the signature in Python takes; and the server's memory after a quarter of
the time and at the end. Ends with code 1 when a request failed or had a wrong answer.
"""

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfbp.commands import flags
from tfbp.reporting.table import table
from tfbp.settings import Fields, field

ROOT = pathlib.Path(__file__).parents[1]
MODELS = {
    "mlp": ([28, 28, 1], ["mlp", "--epochs=1"]),
    "mlp, wide": ([28, 28, 1], ["mlp", "--epochs=1", "--layers=784,4096,4096,10"]),
    "vgg16, 32 × 32": ([32, 32, 3], ["vgg16", "--weights=none", "--scratch_epochs=1"]),
}
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Flags(Fields):
    seconds: float = field(10.0, "of load on each server", low=1)
    clients: int = field(64, "at once", low=1)


@dataclasses.dataclass
class Load:
    """Latencies of the good answers, seconds; how many requests went wrong; memory, MB."""

    seconds: float
    latencies: list[float] = dataclasses.field(default_factory=list)
    wrong: int = 0
    memory: list[float] = dataclasses.field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Returns a percentile of the latencies, milliseconds."""
        return 1000 * float(np.percentile(self.latencies or [np.nan], share))


def main() -> None:
    settings, _ = flags.parse(Flags, sys.argv[1:], about=__doc__)
    rows = [("model", "", "requests/s", "p50 ms", "p99 ms", "wrong", "memory MB")]
    notes, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for name, (shape, arguments) in MODELS.items():
            exports = pathlib.Path(folder, name.replace(" ", "_"))
            _export(shape, arguments, exports)
            requests = _requests(exports / arguments[0] / "1", shape, settings.clients)
            rates = {}
            for how, argument in (("unbatched", "--max_batch_size=1"), ("batched", "")):
                with _serving(exports, argument) as (process, port):
                    load = asyncio.run(_load(process, port, arguments[0], requests, settings))
                    alone = asyncio.run(
                        _load(process, port, arguments[0], requests[:1], Flags(seconds=3))
                    )
                rates[how] = load.rate
                wrong += load.wrong + alone.wrong
                quarter = load.memory[len(load.memory) // 4]
                rows.append(
                    (
                        name,
                        how,
                        f"{load.rate:,.0f}",
                        f"{load.percentile(50):.1f}",
                        f"{load.percentile(99):.1f}",
                        str(load.wrong),
                        f"{quarter:.0f} → {load.memory[-1]:.0f}",
                    )
                )
            direct = _direct(exports / arguments[0] / "1", requests[0][0])
            notes.append(
                f"{name}: batched {rates['batched'] / rates['unbatched']:.2f} × unbatched; one "
                f"client waits {alone.percentile(50):.2f} ms (p50), a direct call takes "
                f"{direct:.2f} ms"
            )
    print(f"\n{settings.clients} clients, {settings.seconds:g} s\n")
    print(table(rows, numbers=[2, 3, 4, 5, 6]))
    print("\n" + "\n".join(notes))
    sys.exit(1 if wrong else 0)


def _export(shape: list[int], arguments: list[str], folder: pathlib.Path) -> None:
    command = [sys.executable, "-m", "recipes", "run", *arguments, f"--export_dir={folder}"]
    command.append(f"--workdir={folder}-run")
    command.append(f"--data=random?shape={','.join(map(str, shape))}&classes=10&count=100")
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def _requests(
    version: pathlib.Path, shape: list[int], count: int
) -> list[tuple[np.ndarray, list[float]]]:
    """Returns inputs of one row, and the probabilities that the model gives them."""
    model = tf.saved_model.load(str(version))
    signature = model.signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    values = np.random.default_rng(0).integers(0, 256, [count, *shape]).astype(np.float32)
    answers = signature(**{name: tf.constant(values)})["probabilities"].numpy()
    return [(row[np.newaxis], answer.tolist()) for row, answer in zip(values, answers, strict=True)]


def _direct(version: pathlib.Path, value: np.ndarray) -> float:
    """Returns the median time of a call of the signature, from array to array, milliseconds."""
    model = tf.saved_model.load(str(version))
    signature = model.signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    seconds = []
    for _ in range(300):
        began = time.perf_counter()
        answer = signature(**{name: tf.constant(value)})
        _ = {key: tensor.numpy() for key, tensor in answer.items()}
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


@contextlib.contextmanager
def _serving(folder: pathlib.Path, argument: str) -> Iterator[tuple[subprocess.Popen, int]]:
    command = [sys.executable, "-m", "recipes", "serve", str(folder), "--port=0", "--grpc_port=0"]
    process = subprocess.Popen(
        [*command, *filter(None, [argument])], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process, int(re.search(r"http://[^:]+:(\d+)", process.stdout.readline())[1])
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()


async def _load(process, port, model, requests, settings) -> Load:
    load = Load(settings.seconds)
    clients = [
        _client(load, port, model, value, expected, time.perf_counter() + settings.seconds)
        for value, expected in requests
    ]
    watching = asyncio.create_task(_watch(load, process.pid))
    await asyncio.gather(*clients)
    watching.cancel()
    return load


async def _watch(load: Load, process: int) -> None:
    while True:
        status = pathlib.Path(f"/proc/{process}/status").read_text()
        load.memory.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)
        await asyncio.sleep(0.5)


async def _client(load, port, model, value, expected, until) -> None:
    body = json.dumps({"instances": value.tolist()}).encode()
    head = f"POST /v1/models/{model}:predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"\r\n" + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        began = time.perf_counter()
        try:
            writer.write(request)
            answered = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", answered)[1])
            answer = json.loads(await reader.readexactly(length))
            got = answer["predictions"][0]["probabilities"]
            good = all(abs(a - b) <= TOLERANCE for a, b in zip(got, expected, strict=True))
        except (OSError, EOFError, KeyError):
            good = False
        if good:
            load.latencies.append(time.perf_counter() - began)
        else:
            load.wrong += 1
    writer.close()


if __name__ == "__main__":
    main()
