"""The notebooks run, and print what they hold."""

import json
import pathlib
import re

import notebooks
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "examples"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# Another machine rounds otherwise: a trial may cross a line.
COUNT, REST = 1.5, 0.05


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_prints_what_it_holds(path):
    notebook = json.loads(path.read_text())
    for cell, printed in zip(notebooks.code_cells(notebook), notebooks.run(notebook), strict=True):
        stored = notebooks.stored(cell)
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", stored)
        ours, theirs = (np.array([float(each) for each in NUMBER.findall(text)]) for text in (printed, stored))
        allowed = np.where(theirs == np.round(theirs), COUNT, REST + 0.02 * np.abs(theirs))
        assert (np.abs(ours - theirs) <= allowed).all()


def test_notebooks_are_small():
    assert list(FOLDER.glob("*.ipynb"))
    assert all(path.stat().st_size < 20_000 for path in FOLDER.glob("*.ipynb"))
