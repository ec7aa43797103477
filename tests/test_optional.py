"""A missing extra is one sentence with the command that installs it."""

import sys
import tomllib
from pathlib import Path

import pytest

from redimnet_jax import optional
from redimnet_jax.errors import UserError

MODULES = {
    "absl-py": "absl",
    "PyYAML": "yaml",
    "scikit-learn": "sklearn",
    "apache-beam": "apache_beam",
    "Jinja2": "jinja2",
}
ROOT = Path(__file__).parents[1]


def packages_of(extras: dict[str, list[str]], extra: str) -> set[str]:
    """Return the modules that `extra` installs, those of the extras it includes too."""
    names = set()
    for requirement in extras[extra]:
        name = requirement.partition(">")[0]
        if name.startswith("redimnet_jax["):
            names |= packages_of(extras, name[len("redimnet_jax[") : -1])
        else:
            names.add(MODULES.get(name, name.replace("-", "_")))
    return names


@pytest.mark.parametrize("extra", ["train", "report", "speech", "tfds", "export"])
def test_packages_are_those_of_pyproject(extra):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(optional.PACKAGES[extra]) == packages_of(extras, extra)


def test_a_missing_package_names_its_extra(monkeypatch):
    optional.require("report")
    monkeypatch.setitem(optional.PACKAGES, "report", ("sklearn", "no_such_package"))
    with pytest.raises(UserError, match=r"^no_such_package cannot .* pip install 'redimnet_jax\[report\]'\.$"):
        optional.require("report")


def test_nothing_is_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow_datasets", raising=False)
    optional.require("tfds")
    assert "tensorflow_datasets" not in sys.modules
