"""The wheel that `pip wheel .` makes, installed in an environment of its own."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.cfg")
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("[!_]*.py"))

pytestmark = pytest.mark.slow


def run(*command, folder):
    """Runs a command away from the repository and returns its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=kept, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # From a copy: setuptools would build among the sources, and take up what an older build left.
    copy = tmp_path_factory.mktemp("sources")
    for name in ("tfbp", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    pip = sys.executable, "-m", "pip", "--disable-pip-version-check"
    run(*pip, "wheel", "--no-deps", "--wheel-dir=wheels", ".", folder=copy)
    (path,) = (copy / "wheels").iterdir()
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Returns an environment that holds the wheel and nothing else but what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(
        sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", wheel, folder="/"
    )
    packages = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder="/"
    )
    # What the wheel requires is not downloaded once more; a path in a .pth file stands behind the
    # environment's own, and .pth files there, of an editable tfbp, are not read.
    dependencies = pathlib.Path(importlib.metadata.distribution("tensorflow").locate_file(""))
    (pathlib.Path(packages.strip()) / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder


def test_the_wheel_holds_the_recipes_and_says_that_it_has_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("tfbp", "recipes")
        for path in (ROOT / package).rglob("*.py")
    }
    held = {name for name in names if ".dist-info/" not in name}
    assert held == sources | {"tfbp/py.typed"}


def test_it_is_the_installed_package_that_runs(environment, tmp_path):
    program = "import recipes, tfbp; print(tfbp.__file__); print(recipes.__file__)"
    found = run(environment / "bin" / "python", "-c", program, folder=tmp_path).splitlines()
    assert [pathlib.Path(path).is_relative_to(environment) for path in found] == [True, True]


def test_the_command_lists_the_recipes_in_an_empty_folder(environment, tmp_path):
    listed = run(environment / "bin" / "tfbp", "list", folder=tmp_path)
    assert [line.split()[0] for line in listed.splitlines()] == RECIPES


def test_the_command_runs_a_recipe_in_an_empty_folder(environment, tmp_path):
    tfbp = environment / "bin" / "tfbp"
    run(tfbp, "run", "linear_regression", "--epochs=20", folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "saved_models"]
    saved = tmp_path / "saved_models" / "linear_regression" / "1" / "saved_model.pb"
    assert saved.is_file()
    assert "serving_default" in run(tfbp, "inspect", saved.parent, folder=tmp_path)
