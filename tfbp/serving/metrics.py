"""What `GET /monitoring/prometheus/metrics` answers: TensorFlow Serving's main metrics.

Names, labels and buckets are those of servables/tensorflow/util.cc and util/prometheus_exporter.cc,
and of tensorflow/cc/saved_model/loader.cc for the loading.
"""

import bisect
import collections
import threading
from collections.abc import Iterator

PATH = "/monitoring/prometheus/metrics"

_REQUESTS = ":tensorflow:serving:request_count"
_LATENCY = ":tensorflow:serving:request_latency"
_LOADS = ":tensorflow:cc:saved_model:load_attempt_count"
_LOAD_LATENCY = ":tensorflow:cc:saved_model:load_latency"
# Upper ends of the histogram's buckets, microseconds.
_LIMITS = [10 * 1.8**power for power in range(33)]

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts requests and loads, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, collections.Counter[Labels]] = {
            name: collections.Counter() for name in (_LOADS, _LOAD_LATENCY, _REQUESTS)
        }
        self._buckets: dict[Labels, list[int]] = {}
        self._sums: collections.Counter[Labels] = collections.Counter()

    def request(self, model: str, status: str) -> None:
        """Counts a request that has been answered."""
        self._add(_REQUESTS, (("model_name", model), ("status", status)), 1)

    def latency(self, model: str, api: str, entrypoint: str, seconds: float) -> None:
        """Counts how long a good answer took."""
        labels = (("model_name", model), ("API", api), ("entrypoint", entrypoint))
        microseconds = round(seconds * 1e6)
        with self._lock:
            buckets = self._buckets.setdefault(labels, [0] * (len(_LIMITS) + 1))
            buckets[bisect.bisect_right(_LIMITS, microseconds)] += 1
            self._sums[labels] += microseconds

    def load(self, version: str, good: bool, seconds: float) -> None:
        """Counts an attempt to load a version, named MODEL/VERSION."""
        path = ("model_path", version)
        self._add(_LOADS, (path, ("status", "success" if good else "fail")), 1)
        self._add(_LOAD_LATENCY, (path,), round(seconds * 1e6))

    def page(self) -> str:
        """Returns all metrics in the text format of Prometheus."""
        with self._lock:
            return "\n".join(self._lines()) + "\n"

    def _add(self, name: str, labels: Labels, count: int) -> None:
        with self._lock:
            self._counters[name][labels] += count

    def _lines(self) -> Iterator[str]:
        for name, counter in self._counters.items():
            if counter:
                yield f"# TYPE {name} counter"
            for labels, count in counter.items():
                yield f"{name}{{{_written(labels)}}} {count}"
        if self._buckets:
            yield f"# TYPE {_LATENCY} histogram"
        for labels, buckets in self._buckets.items():
            total = 0
            for limit, count in zip([*map("{:g}".format, _LIMITS), "+Inf"], buckets, strict=True):
                total += count
                yield f'{_LATENCY}_bucket{{{_written(labels)},le="{limit}"}} {total}'
            yield f"{_LATENCY}_sum{{{_written(labels)}}} {self._sums[labels]}"
            yield f"{_LATENCY}_count{{{_written(labels)}}} {total}"


def _written(labels: Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
