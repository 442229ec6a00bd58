"""What the server takes: the bounds of a request, of the queue and of a batch."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds that hold for REST and gRPC alike.

    Attributes:
        max_body_bytes: size of one request, sent and inflated.
        max_batch_size: rows of one request, and of the batch that waiting requests are joined to.
        batch_timeout_ms: how long a batch that is not full waits for more rows, milliseconds. At 0
            it takes what is waiting already, so that a lone client never waits.
        max_queue: requests that wait for one signature; one more is refused with 429.
        max_concurrency: requests that are worked on at once; one more is refused with 429.
        deadline_seconds: from the head of a request to its answer, else 504.
        max_json_depth: lists and objects in each other in a JSON body.
        max_image_pixels: height times width that the header of an encoded image may announce.
        max_request_pixels: those of all images of one request.
        max_connections_per_address: HTTP connections of one address at once; one more is closed. 0
            sets no bound, for a proxy, behind which all have one address.
        head_seconds: for a request line and its headers to arrive.
    """

    max_body_bytes: int = 8 * 2**20
    max_batch_size: int = 128
    batch_timeout_ms: float = 0.0
    max_queue: int = 1000
    max_concurrency: int = 256
    deadline_seconds: float = 30.0
    max_json_depth: int = 32
    max_image_pixels: int = 4096 * 4096
    max_request_pixels: int = 4 * 4096 * 4096
    max_connections_per_address: int = 256
    head_seconds: float = 5.0
