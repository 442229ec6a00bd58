import importlib.util
import json
import pathlib

import pytest

from tfbp.commands import flags

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def walkthrough(monkeypatch, tmp_path):
    """Returns the module of `make run`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("walkthrough", ROOT / "walkthrough.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_calls_are_right_and_its_table_shows_what_the_runs_measured(
    walkthrough, monkeypatch, capsys
):
    accuracies, predicted = iter((0.9, 0.25, 0.75)), []

    def call(command, *arguments):
        if command == "predict":
            predicted.extend(arguments)
            return
        _, config = flags.recipe_and_config(ROOT / "recipes", arguments, about="")
        workdir = pathlib.Path(config.workdir)
        workdir.mkdir(parents=True)
        result = {
            "data": {"spec": config.data},
            "metrics": {"test": {"accuracy": next(accuracies)}},
            "export": {"path": f"{config.export_dir}/vgg16/1"},
            "seconds": 12.3,
        }
        (workdir / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(walkthrough, "recipes", call)
    walkthrough.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("runs/")]
    assert [row[-2:] for row in rows] == [["0.900", "12"], ["0.250", "12"], ["0.750", "12"]]
    assert lines[-1] == "export: saved_models/vgg16/1"
    model, *images = predicted
    assert model == "saved_models/vgg16"
    assert len(images) == walkthrough.IMAGES
    assert all(pathlib.Path(image).read_bytes()[1:4] == b"PNG" for image in images)
