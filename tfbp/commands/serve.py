"""Serves exports for development: `serve SAVED_MODELS [--port=8501 --grpc_port=8500]`.

SAVED_MODELS is a folder of models, or the folder of one model's versions. The server speaks
TensorFlow Serving's REST and gRPC APIs, and takes up new versions while it runs. For production
use tensorflow_model_server: --print_config writes its files. It needs pip install 'tfbp[serving]'.
"""

import dataclasses
import gc
import logging as std_logging
import pathlib
import shlex
import signal
import time
from collections.abc import Sequence

from absl import logging

from tfbp import commands
from tfbp.commands import flags
from tfbp.errors import UserError, mistake
from tfbp.serving.limits import Limits
from tfbp.settings import Fields, field

POLL_SECONDS = 0.1
_DEFAULT = Limits()


@dataclasses.dataclass(frozen=True)
class ServeFlags(Fields):
    port: int = field(8501, "port of REST; 0 takes a free one", low=0, high=65535)
    grpc_port: int = field(8500, "port of gRPC; 0 takes a free one", low=0, high=65535)
    host: str = field(
        "127.0.0.1", "address to listen on; another than loopback needs --token or --insecure"
    )
    token: str = field("", "what clients must send as Authorization: Bearer …")
    insecure: bool = field(False, "let every machine that reaches --host ask")
    labels: tuple[str, ...] = field(
        (), "versions that stay loaded under a name: MODEL/LABEL=VERSION"
    )
    print_config: bool = field(
        False, "write models.config and batching.config for tensorflow_model_server, and end"
    )
    max_batch_size: int = field(
        _DEFAULT.max_batch_size, "rows of a request, and of a batch of requests", low=1
    )
    batch_timeout_ms: float = field(
        _DEFAULT.batch_timeout_ms, "how long a batch waits for more rows, milliseconds", low=0
    )
    max_queue: int = field(_DEFAULT.max_queue, "requests that wait for one signature", low=1)
    max_concurrency: int = field(
        _DEFAULT.max_concurrency, "requests that are worked on at once", low=1
    )
    max_body_bytes: int = field(_DEFAULT.max_body_bytes, "size of a request", low=1)
    max_json_depth: int = field(
        _DEFAULT.max_json_depth, "lists and objects in each other", low=1, high=500
    )
    max_image_pixels: int = field(
        _DEFAULT.max_image_pixels, "height times width of an encoded image", low=1
    )
    deadline_seconds: float = field(
        _DEFAULT.deadline_seconds, "from a request to its answer", low=0.01
    )


def main(recipes_folder: pathlib.Path, arguments: Sequence[str]) -> None:
    settings, rest = flags.parse(ServeFlags, arguments, about=__doc__)
    if len(rest) != 1:
        raise mistake("serve", "must be given one folder, SAVED_MODELS", " ".join(rest))
    folder = pathlib.Path(rest[0])
    limits = Limits(
        **{item.name: getattr(settings, item.name) for item in dataclasses.fields(Limits)}
    )
    labels = _labels(settings.labels)
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
            folder, port=settings.port, grpc_port=settings.grpc_port, limits=limits, labels=labels
        )
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
        print(shlex.join(written.command))
        return
    gate.check_exposure(settings.host, settings.token, settings.insecure)
    running = server.Server(
        folder,
        host=settings.host,
        port=settings.port,
        grpc_port=settings.grpc_port,
        limits=limits,
        labels=labels,
        token=settings.token,
    )
    _serve(running, settings.host)


def _serve(running, host: str) -> None:
    """Runs the server until SIGINT or SIGTERM, and then drains it. A second signal ends at once."""
    asked = []
    before = {
        number: signal.signal(number, lambda number, _: asked.append(number))
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
        while not asked:
            time.sleep(POLL_SECONDS)
        for number, handler in before.items():
            signal.signal(number, handler)
        print("Draining: what has been asked is answered.", flush=True)


def _labels(texts: Sequence[str]) -> dict[str, dict[str, int]]:
    labels: dict[str, dict[str, int]] = {}
    for text in texts:
        place, _, number = text.partition("=")
        model, _, label = place.rpartition("/")
        if not (model and label and number.isdecimal()):
            raise mistake("--labels", "must be MODEL/LABEL=VERSION", text)
        labels.setdefault(model, {})[label] = int(number)
    return labels
