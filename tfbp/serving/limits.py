"""What the server takes: the bounds of a request, of the queue and of a batch."""

import dataclasses

from tfbp.settings import Fields, field


@dataclasses.dataclass(frozen=True)
class Limits(Fields):
    """Bounds that hold for REST and gRPC alike. What each one bounds, its `help` says."""

    max_body_bytes: int = field(8 * 2**20, "size of a request, sent and inflated", low=1)
    max_batch_size: int = field(128, "rows of a request, and of a batch of requests", low=1)
    # At 0 a batch takes what is waiting already, so that a lone client never waits.
    batch_timeout_ms: float = field(
        0.0, "how long a batch waits for more rows, milliseconds", low=0
    )
    max_queue: int = field(1000, "requests that wait for one signature", low=1)
    max_concurrency: int = field(256, "requests that are worked on at once", low=1)
    deadline_seconds: float = field(30.0, "from a request to its answer", low=0.01)
    max_json_depth: int = field(32, "lists and objects in each other", low=1, high=500)
    max_image_pixels: int = field(4096 * 4096, "height times width of an encoded image", low=1)
    max_request_pixels: int = field(
        4 * 4096 * 4096, "height times width of all images of a request", low=1
    )
    max_connections_per_address: int = field(
        256, "HTTP connections of one address at once; 0, for a proxy, sets no bound", low=0
    )
    head_seconds: float = field(5.0, "for a request line and its headers to arrive", low=0.01)
