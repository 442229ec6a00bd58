"""The server: the models of a folder behind a REST and a gRPC port, from start to drain."""

import asyncio
import errno
import pathlib
import socket
import threading
from collections.abc import Coroutine, Mapping
from typing import Any

import grpc
import uvicorn
import uvloop

from tfbp.errors import mistake
from tfbp.serving.connection import Bounds, protocol
from tfbp.serving.gate import Gate
from tfbp.serving.limits import Limits
from tfbp.serving.metrics import Metrics
from tfbp.serving.models import Models, check_labels, model_folders
from tfbp.serving.rest import Rest
from tfbp.serving.rpc import Rpc

# Idle connections are kept as long as nginx keeps them; clients that reuse one are not surprised.
KEEP_ALIVE_SECONDS = 75
CONNECTIONS_FOR_EACH_REQUEST = 4
# Connections that wait to be accepted, which happens at once, so that a request waits for it.
BACKLOG = 128


class Server:
    """Serves the models of a folder, from threads of its own.

    Example:
        with Server("saved_models", port=0, grpc_port=0) as server:
            ask(f"http://127.0.0.1:{server.port}/v1/models/mlp:predict")

    Args:
        folder: holds `<model>/<version>/saved_model.pb`, or is the folder of one model.
        host: address to listen on.
        port, grpc_port: of REST and gRPC; 0 takes a free one.
        limits: bounds of requests, queues and batches.
        labels: model → label → version.
        token: what clients must send as a bearer token; "" lets everybody in.

    Attributes:
        port, grpc_port: those that are listened on.

    Raises:
        tfbp.UserError: the folder holds no model or not the labelled one, the host is no address
            of this machine, a port is taken, or no client can send the token.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        host: str = "127.0.0.1",
        port: int = 8501,
        grpc_port: int = 8500,
        limits: Limits | None = None,
        labels: Mapping[str, Mapping[str, int]] | None = None,
        token: str = "",
    ):
        limits = limits or Limits()
        folder = pathlib.Path(folder)
        models = model_folders(folder) if folder.is_dir() else {}
        if not models:
            raise mistake(
                "SAVED_MODELS", "must be a folder that holds MODEL/VERSION/ folders", str(folder)
            )
        check_labels(labels or {}, models)
        self._limits = limits
        self._gate = Gate(host, token, limits.max_concurrency)
        metrics = Metrics()
        self._models = Models(folder, limits, labels or {}, metrics)
        self._rest = Rest(self._models, self._gate, limits, metrics)
        self._rpc = Rpc(self._models, self._gate, limits, metrics)
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        # One loop for both ports, in a thread that is not the main one: there uvicorn would take
        # the signals.
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="serving", daemon=True)
        self._thread.start()
        address = f"[{host}]:{grpc_port}" if ":" in host else f"{host}:{grpc_port}"
        try:
            self.grpc_port: int = self._wait(self._open_grpc(address))
        except RuntimeError:
            self._socket.close()
            self._end_loop()
            raise mistake("--grpc_port", f"must be free on {host}", grpc_port) from None
        self._http = uvicorn.Server(_http_config(self._rest, limits))

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Loads the models, then opens the ports. A model that is broken is logged."""
        self._models.start()
        self._wait(self._grpc.start())
        self._serving = asyncio.run_coroutine_threadsafe(
            self._http.serve([self._socket]), self._loop
        )

    def stop(self) -> None:
        """Drains: takes no new request, answers those that it has, then frees the models."""
        self._gate.shut()
        self._http.should_exit = True
        self._wait(self._grpc.stop(self._limits.deadline_seconds))
        self._serving.result()
        self._end_loop()
        self._rest.close()
        self._models.close()

    async def _open_grpc(self, address: str) -> int:
        """Returns the port. Raises RuntimeError where it is taken."""
        self._grpc = grpc.aio.server(
            maximum_concurrent_rpcs=2 * self._limits.max_concurrency,
            options=[
                ("grpc.max_receive_message_length", self._limits.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._rpc.add_to(self._grpc)
        return int(self._grpc.add_insecure_port(address))

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise mistake("--host", "must be an address of this machine", host) from None
        raise mistake("--port", f"must be free on {host} ({error.strerror})", port) from None


def _http_config(rest: Rest, limits: Limits) -> uvicorn.Config:
    bounds = Bounds(
        min(limits.head_seconds, limits.deadline_seconds),
        CONNECTIONS_FOR_EACH_REQUEST * limits.max_concurrency,
        limits.max_connections_per_address,
    )
    return uvicorn.Config(
        rest,
        http=protocol(bounds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(limits.deadline_seconds) + 1,
    )
