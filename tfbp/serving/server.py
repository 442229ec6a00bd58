"""The server: the models of a folder behind a REST and a gRPC port, from start to drain."""

import errno
import pathlib
import socket
import threading
from collections.abc import Mapping
from concurrent import futures

import grpc
import uvicorn

from tfbp.errors import mistake
from tfbp.serving import rpc
from tfbp.serving.connection import protocol
from tfbp.serving.gate import Gate
from tfbp.serving.limits import Limits
from tfbp.serving.models import Models, check_labels, model_folders
from tfbp.serving.rest import Rest

# Idle connections are kept as long as nginx keeps them; clients that reuse one are not surprised.
KEEP_ALIVE_SECONDS = 75
CONNECTIONS_FOR_EACH_REQUEST = 4


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
        self._models = Models(folder, limits, labels)
        self._gate = Gate(token, limits.max_concurrency)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise mistake("--host", "must be an address of this machine", host) from None
            raise mistake("--port", f"must be free on {host} ({error.strerror})", port) from None
        self.port = self._socket.getsockname()[1]
        self._grpc = grpc.server(
            futures.ThreadPoolExecutor(limits.max_concurrency, "grpc"),
            maximum_concurrent_rpcs=limits.max_concurrency,
            options=[
                ("grpc.max_receive_message_length", limits.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        rpc.add_to(self._grpc, self._models, self._gate, limits)
        address = f"[{host}]:{grpc_port}" if ":" in host else f"{host}:{grpc_port}"
        try:
            self.grpc_port = self._grpc.add_insecure_port(address)
        except RuntimeError:
            self._socket.close()
            raise mistake("--grpc_port", f"must be free on {host}", grpc_port) from None
        self._http = uvicorn.Server(
            uvicorn.Config(
                Rest(self._models, self._gate, limits),
                http=protocol(
                    limits.deadline_seconds, CONNECTIONS_FOR_EACH_REQUEST * limits.max_concurrency
                ),
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=round(limits.deadline_seconds) + 1,
            )
        )
        # Not the main thread: there uvicorn would take the signals.
        self._thread = threading.Thread(
            target=self._http.run, args=([self._socket],), name="http", daemon=True
        )

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Loads the models, then opens the ports. A model that is broken is logged."""
        self._models.start()
        self._grpc.start()
        self._thread.start()

    def stop(self) -> None:
        """Drains: takes no new request, answers those that it has, then frees the models."""
        self._gate.shut()
        self._http.should_exit = True
        grpc_ended = self._grpc.stop(self._limits.deadline_seconds)
        self._thread.join()
        grpc_ended.wait()
        self._models.close()
