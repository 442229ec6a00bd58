"""The table of silent faults: complete, and right where a few of its rows are made here."""

import importlib
import pathlib

import pytest

from tfbp.finding import IDS

pytestmark = pytest.mark.slow

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Returns the module, found as its own script finds what it imports."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("silent_faults")


def test_each_finding_and_three_failures_of_the_proof_have_their_rows(benchmark):
    due = [fault.due for fault in benchmark.every()]
    assert set(due) == {*IDS, "ProofFailed"}
    assert due.count("ProofFailed") == 3


@pytest.mark.parametrize(
    ("due", "harm"),
    [
        ("not-connected", "answers change by 0 when the body is zeroed"),
        ("dead-layer", "largest change of hidden: 0"),
        ("ProofFailed", "it moved by 0.0003"),
    ],
)
def test_what_plain_keras_passes_over_is_refused(benchmark, due, harm):
    fault = next(fault for fault in benchmark.every() if fault.due == due)
    assert benchmark.make(fault) == benchmark.Outcome("nothing", harm, due)


def test_what_plain_keras_says_is_told_from_silence(benchmark):
    fault = next(fault for fault in benchmark.every() if fault.due == "no-gradient")
    outcome = benchmark.make(fault)
    assert outcome.said.startswith("warns: Gradients do not exist")
    assert outcome.answer == "no-gradient"
