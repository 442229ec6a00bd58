"""The notebook runs as it stands, and its outputs are kept in it."""

import pathlib
import re

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "fine_tune.ipynb"


def outputs(notebook) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def written(notebook) -> str:
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def test_its_outputs_are_kept_whole_and_without_paths_or_warnings():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells[1:])  # the first one imports
    assert {output.output_type for output in outputs(notebook)} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs(notebook)} == {"stdout"}
    assert not re.search(r"/(?:home|root|tmp|usr)/|Warning", written(notebook))


@pytest.mark.slow
def test_it_trains_proves_exports_and_asks_the_export(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    said = written(notebook)
    assert float(re.search(r"^accuracy ([\d.]+) on 179 digits", said, re.MULTILINE)[1]) > 0.8
    assert re.findall(r"^(\w+) trained (.*)$", said, re.MULTILINE) == [
        ("head", "['head']"),
        ("tune", "['backbone/block3_conv', 'head']"),
    ]
    label, answer = re.findall(r"^(?:label |answer) (.*)$", said, re.MULTILINE)
    right = sum(a == b for a, b in zip(label.split(), answer.split(), strict=True))
    assert right >= 9  # of 12; by chance 1.2
    assert (tmp_path / "saved_models" / "digits" / "1" / "saved_model.pb").is_file()
