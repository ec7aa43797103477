"""The documentation names files and modules that exist, and the README stays short."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "redimnet_jax|configs|benchmarks|experiments|tests|docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_resolve(page):
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link for link in links if link and "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []
    paths = re.findall(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*\w)", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_modules_exist(page):
    names = re.findall(r"\b(redimnet_jax(?:\.[a-z_]\w*)+)", page.read_text())
    assert [name for name in names if not _exists(name)] == []


def _exists(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        if importlib.util.find_spec(name) is not None:
            return True
    except ModuleNotFoundError:
        return hasattr(importlib.import_module(module), attribute)
    return hasattr(importlib.import_module(module), attribute)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 900
