"""Serves exports for development: `serve SAVED_MODELS [--port=8501 --grpc_port=8500]`.

SAVED_MODELS is a folder of models, or the folder of one model's versions. The server speaks
TensorFlow Serving's REST and gRPC APIs, and takes up new versions while it runs. For production
use tensorflow_model_server: --print_config writes its files. It needs pip install 'tfbp[serving]'.
"""

import dataclasses
import gc
import logging as std_logging
import os
import pathlib
import shlex
import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import logging

from tfbp import commands
from tfbp.commands import flags
from tfbp.errors import UserError, mistake
from tfbp.serving.limits import Limits
from tfbp.settings import field

if TYPE_CHECKING:
    from tfbp.serving.production import Written
    from tfbp.serving.server import Server

POLL_SECONDS = 0.1
TOKEN_VARIABLE = "TFBP_SERVING_TOKEN"


@dataclasses.dataclass(frozen=True)
class ServeFlags(Limits):
    port: int = field(8501, "port of REST; 0 takes a free one", low=0, high=65535)
    grpc_port: int = field(8500, "port of gRPC; 0 takes a free one", low=0, high=65535)
    host: str = field(
        "127.0.0.1", "address to listen on; another than loopback needs a token or --insecure"
    )
    token: str = field(
        "",
        f"what clients must send as Authorization: Bearer …; {TOKEN_VARIABLE} and --token_file "
        "do not show in the list of processes",
    )
    token_file: str = field("", "a file that holds the token")
    insecure: bool = field(False, "let every machine that reaches --host ask")
    labels: tuple[str, ...] = field(
        (), "versions that stay loaded under a name: MODEL/LABEL=VERSION"
    )
    print_config: bool = field(
        False, "write models.config and batching.config for tensorflow_model_server, and end"
    )


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    settings, rest = flags.parse(ServeFlags, arguments, about=__doc__ or "")
    if len(rest) != 1:
        raise mistake("serve", "must be given one folder, SAVED_MODELS", " ".join(rest))
    folder = pathlib.Path(rest[0])
    labels = _labels(settings.labels)
    token = _token(settings)
    try:
        # Here, so that --help and the mistakes above need no extra.
        with commands.quiet_start():
            from tfbp.serving import gate, production, server
    except ModuleNotFoundError as error:
        raise UserError(f"`serve` needs {error.name}: pip install 'tfbp[serving]'.") from None
    # It says for each version that loading as TensorFlow Serving does is deprecated.
    std_logging.getLogger("tensorflow").setLevel(std_logging.ERROR)
    if settings.print_config:
        written = production.write(
            folder, port=settings.port, grpc_port=settings.grpc_port, limits=settings, labels=labels
        )
        _warn(written)
        print(shlex.join(written.command))
        return
    gate.check_exposure(settings.host, token, settings.insecure)
    running = server.Server(
        folder,
        host=settings.host,
        port=settings.port,
        grpc_port=settings.grpc_port,
        limits=settings,
        labels=labels,
        token=token,
    )
    _serve(running, settings.host)


def _warn(written: "Written") -> None:
    """Says what tensorflow_model_server will not do as this server does."""
    if written.unbatched:
        logging.warning(
            "--enable_batching is left out: TensorFlow Serving would fail %s, which take or "
            "answer values without a batch dimension, or take rows of different sizes.",
            ", ".join(written.unbatched),
        )
    if written.whole:
        logging.warning(
            "All versions of %s will be loaded: with labels TensorFlow Serving takes up new "
            "versions only so. Delete those that nobody needs.",
            ", ".join(written.whole),
        )
    if written.skipped:
        logging.warning(
            "Left out, without a version that can be loaded: %s.", ", ".join(written.skipped)
        )


def _serve(running: "Server", host: str) -> None:
    """Runs the server until SIGINT or SIGTERM, and then drains it. A second signal ends at once."""
    signals: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: signals.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    with running:
        # The lists of each JSON body make Python look for garbage, and TensorFlow's objects are
        # hundreds of thousands: looking through them took longer than all else of a request.
        gc.collect()
        gc.freeze()
        print(
            f"Serving REST on http://{host}:{running.port} and gRPC on {host}:{running.grpc_port}"
            "\nThis server is for development: in production use tensorflow_model_server.",
            flush=True,
        )
        # No lock, which a handler could wait for in vain; and where another thread has taken the
        # signal, the handler runs when this one wakes.
        while not signals:
            time.sleep(POLL_SECONDS)
        for number, handler in before.items():
            signal.signal(number, handler)
        print("Draining: what has been asked is answered.", flush=True)


def _token(settings: ServeFlags) -> str:
    """Returns the token from wherever it was given.

    Raises:
        tfbp.UserError: it was given twice, or the file cannot be read or holds none.
    """
    variable = os.environ.get(TOKEN_VARIABLE, "")
    if settings.token and settings.token_file:
        raise UserError("`--token` and `--token_file` are two tokens: give one of them.")
    if not settings.token_file:
        return settings.token or variable
    try:
        token = pathlib.Path(settings.token_file).read_text().strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if not token:
        raise mistake("--token_file", "must be a file that holds a token", settings.token_file)
    return token


def _labels(texts: Sequence[str]) -> dict[str, dict[str, int]]:
    labels: dict[str, dict[str, int]] = {}
    for text in texts:
        place, _, number = text.partition("=")
        model, _, label = place.rpartition("/")
        if not (model and label and number.isdecimal()):
            raise mistake("--labels", "must be MODEL/LABEL=VERSION", text)
        labels.setdefault(model, {})[label] = int(number)
    return labels
