"""Reads bodies of REST requests, large ones in a process of its own.

While Python's parser reads JSON it lets no other thread run: 8 MiB would stop all answers for
seconds. `python -m tfbp.serving.reading` is that process: it reads requests from its standard
input, writes what they hold to its standard output, and ends when the input ends. A message is a
JSON object and bytes, each behind its length.
"""

import asyncio
import gc
import json
import os
import pathlib
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from tfbp.serving import rest_request
from tfbp.serving.json_tensor import Array
from tfbp.serving.rest_request import Bounds, Inputs, Spec, Specs
from tfbp.serving.status import Code, StatusError

# Larger bodies go to the process. One of this size takes 10 ms at the most.
_LARGE = 64 * 2**10
_LENGTHS = struct.Struct(">QQ")

Signatures = Mapping[str, Specs] | StatusError | None


class Reader:
    """Reads bodies for the event loop. The process is started when a large one comes."""

    def __init__(self, bounds: Bounds):
        self._bounds = bounds
        self._lock = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    async def read(self, body: bytes, signatures: Signatures) -> Inputs:
        """Returns the inputs that a body holds, as `rest_request.predict` does.

        Args:
            body: JSON.
            signatures: what the model takes, or why there is none; None for examples, which
                `rest_request.inspect` reads.

        Raises:
            StatusError: it holds no inputs.
        """
        if len(body) <= _LARGE:
            return _read(body, signatures, self._bounds)
        async with self._lock:  # One at a time, so that many have no more memory than one.
            if self._process is None or self._process.poll() is not None:
                self._process = await asyncio.to_thread(_start)
            process, done = self._process, False
            try:
                inputs = await asyncio.to_thread(_ask, process, body, signatures, self._bounds)
                done = True
                return inputs
            except StatusError:
                done = True
                raise
            finally:
                if not done:  # It has died, or nobody waits any more for what it does.
                    self.close()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _read(body: bytes, signatures: Signatures, bounds: Bounds) -> Inputs:
    if signatures is None:
        return rest_request.inspect(body, bounds)
    return rest_request.predict(body, signatures, bounds)


def _start() -> subprocess.Popen[bytes]:
    root = str(pathlib.Path(__file__).parents[2])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        start_new_session=True,  # Ctrl-C is for the server, which drains.
    )


def _ask(
    process: subprocess.Popen[bytes], body: bytes, signatures: Signatures, bounds: Bounds
) -> Inputs:
    assert process.stdin and process.stdout
    _send(process.stdin, {"signatures": _plain(signatures), "bounds": vars(bounds)}, body)
    answer, content = _receive(process.stdout)
    if "error" in answer:
        raise _error(answer["error"])
    arrays, start = {}, 0
    for name, dtype, shape, sizes in answer["arrays"]:
        parts = []
        for size in sizes:
            parts.append(content[start : start + size])
            start += size
        arrays[name] = _array(dtype, shape, parts)
    return Inputs(answer["signature"], arrays, answer["as_rows"])


def _array(dtype: str, shape: list[int], parts: list[bytes]) -> Array:
    if dtype != "object":
        return np.frombuffer(parts[0], dtype).reshape(shape)
    array = np.empty(len(parts), object)
    array[:] = parts
    return array.reshape(shape)


def _plain(signatures: Signatures) -> Any:
    if isinstance(signatures, StatusError):
        return [signatures.code, signatures.message, signatures.http]
    if signatures is None:
        return None
    return {
        name: {key: [spec.dtype, spec.batched] for key, spec in specs.items()}
        for name, specs in signatures.items()
    }


def _error(plain: list[Any]) -> StatusError:
    code, message, http = plain
    return StatusError(Code(code), message, http)


def _send(stream: IO[bytes], header: dict[str, Any], content: bytes) -> None:
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), len(content)) + text)
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Returns a message. Raises EOFError where none comes any more."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        raise EOFError
    first, second = _LENGTHS.unpack(lengths)
    return json.loads(stream.read(first)), stream.read(second)


def _answer(request: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    signatures: Signatures = None
    if isinstance(request["signatures"], list):
        signatures = _error(request["signatures"])
    elif request["signatures"] is not None:
        signatures = {
            name: {key: Spec(*spec) for key, spec in specs.items()}
            for name, specs in request["signatures"].items()
        }
    try:
        inputs = _read(body, signatures, Bounds(**request["bounds"]))
    except StatusError as error:
        return {"error": [error.code, error.message, error.http]}, b""
    arrays: list[Any] = []
    parts: list[bytes] = []
    for name, array in inputs.arrays.items():
        own = array.ravel().tolist() if array.dtype == object else [array.tobytes()]
        arrays.append([name, array.dtype.name, array.shape, list(map(len, own))])
        parts += own
    header = {"signature": inputs.signature, "as_rows": inputs.as_rows, "arrays": arrays}
    return header, b"".join(parts)


def main() -> None:
    # Values of JSON hold no circles, and looking for some takes longer than reading them.
    gc.disable()
    try:
        while True:
            _send(sys.stdout.buffer, *_answer(*_receive(sys.stdin.buffer)))
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
