"""The pages build, load nothing from a network, and name what is there."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import tfbp
from tfbp import finding

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Builds the pages as `make docs` does, in a folder of its own; returns them by name."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    for name in ("mkdocs.yml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    (folder / "tfbp").symlink_to(ROOT / "tfbp")
    build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    subprocess.run(build, cwd=folder, check=True)
    return {path.name: path.read_text() for path in (folder / "build" / "docs").glob("*.html")}


def test_every_page_is_built_and_in_the_navigation(site):
    navigation = re.findall(r"(\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(navigation) == sorted(path.name for path in DOCS.glob("*.md"))
    assert {name.replace(".md", ".html") for name in navigation} <= set(site)


def test_no_page_loads_anything_from_a_network(site):
    for name, page in site.items():
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?([^\" >]+)", page)
        assert loaded
        assert not [each for each in loaded if re.match(r"(?:https?:)?//", each)], name
        # The theme fetches these programs from a network where a page has such an element.
        assert not re.search(r'class="?[^">]*\b(mermaid|glightbox|pyodide)\b', page), name


def test_the_api_has_every_public_name(site):
    listed = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    public = {f"{getattr(tfbp, name).__module__}.{name}" for name in tfbp.__all__ if name[0] != "_"}
    assert sorted(listed) == sorted(public)
    for path in listed:
        assert f'id="{path}"' in site["api.html"] or f"id={path}" in site["api.html"], path


def test_every_finding_of_the_audit_is_explained():
    table = (DOCS / "audit.md").read_text().partition("| finding |")[2].partition("\n\n")[0]
    explained = [
        cell
        for row in table.splitlines()[2:]
        for cell in re.findall(r"`([a-z-]+)`", row.split("|")[1])
    ]
    assert sorted(explained) == sorted(finding.IDS)


def test_the_map_of_the_house_names_every_module():
    page = (DOCS / "architecture.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    found = [path for path in (ROOT / "tfbp").iterdir() if path.name[0] != "_"]
    assert sorted(listed) == sorted(path.stem for path in found if path.name != "py.typed")
