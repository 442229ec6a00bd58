"""Benchmarks are scripts: a test finds them, and what they import, as they themselves do."""

import importlib
import pathlib
from collections.abc import Callable

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch) -> Callable:
    """Returns what imports a module of `benchmarks/` by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module
