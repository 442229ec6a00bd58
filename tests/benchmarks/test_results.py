"""What `make bench` writes, from benchmarks that are not run here."""

import pathlib
import subprocess
import types

import pytest


@pytest.fixture
def results(script):
    return script("results")


def answer(monkeypatch, results, codes):
    """Lets each benchmark end with its code; returns the command lines."""
    lines = {}

    def run(command, **options):
        name = pathlib.Path(command[1]).stem
        lines[name] = command[2:]
        return types.SimpleNamespace(returncode=codes.get(name, 0), stdout=f"figures of {name}\n")

    monkeypatch.setattr(results.torch_sides, "version", lambda python: None)
    monkeypatch.setattr(results, "subprocess", types.SimpleNamespace(run=run, PIPE=subprocess.PIPE))
    return lines


def test_every_benchmark_has_its_section_and_gets_the_flags_that_it_knows(
    results, monkeypatch, tmp_path
):
    lines = answer(monkeypatch, results, {})
    out = tmp_path / "RESULTS.md"
    monkeypatch.setattr("sys.argv", ["results", f"--out={out}", "--turns=5", "--data=folder:x"])
    results.main()
    text = out.read_text(encoding="utf-8")
    for name in results.BENCHMARKS:
        assert f"\n## {name}\n" in text
        assert f"`python benchmarks/{name}.py" in text
        assert f"```\nfigures of {name}\n```" in text
        assert "--turns=5" in lines[name]
        assert ("--data=folder:x" in lines[name]) == (
            name in ("head_swap", "two_phase", "views", "input")
        )
    assert results.processor() in text
    assert "PyTorch not installed" in text


def test_a_benchmark_that_fails_is_named_and_the_others_are_kept(results, monkeypatch, tmp_path):
    answer(monkeypatch, results, {"growth": 1})
    out = tmp_path / "RESULTS.md"
    monkeypatch.setattr("sys.argv", ["results", f"--out={out}", "--only=growth,start"])
    with pytest.raises(SystemExit, match="Failed: growth"):
        results.main()
    text = out.read_text(encoding="utf-8")
    assert "figures of growth" not in text
    assert "It failed: there are no figures." in text
    assert "figures of start" in text
