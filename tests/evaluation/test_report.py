"""Tables and JSON of results."""

import json

import numpy as np
import pytest
from refusals import refusal

from redimnet_jax.evaluation import report


def entry(eer, **changes):
    results = {
        "eer": eer,
        "eer_ci95": [0.9 * eer, 1.2 * eer],
        "threshold": 0.31234,
        "accuracy": 0.9876,
        "min_dcf": {"0.01": 0.12341, "0.05": 0.05},
        "target_mean": 0.61,
        "nontarget_mean": -0.0312,
        "trials": 4950,
    }
    return results | changes


RESULTS = {
    "a|b": {"dims": {"128": entry(0.02), "64": entry(0.1)}},
    "longer name": {"dims": {"64": entry(0.3)}},
}
FIGURES = ["10.00", "9.00 to 12.00", "0.1234", "0.0500", "0.3123", "98.76", "0.610", "-0.031", "4950"]


def test_markdown_table():
    lines = report.table(RESULTS).markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == list(report.HEADER)
    assert cells[1] == ["-"] + ["-:"] * 10
    # By number: as text, 128 would come before 64.
    assert [row[:2] for row in cells[2:]] == [["a\\|b", "64"], ["a\\|b", "128"], ["longer name", "64"]]
    assert cells[2][2:] == FIGURES
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)


def test_text_table():
    lines = report.table(RESULTS).text().splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 5
    assert lines[2].split()[:2] == ["a|b", "64"]
    for figure in FIGURES:
        assert figure in lines[2]
    for column in ("dim", "EER %", "trials"):
        end = lines[0].index(column) + len(column)
        assert all(line[end - 1] != " " and line[end : end + 1] in (" ", "") for line in lines[2:])


@pytest.mark.parametrize("key", ["eer", "eer_ci95", "min_dcf", "trials"])
def test_a_missing_entry_is_named(key):
    broken = entry(0.1)
    del broken[key]
    text = refusal(report.table, {"mine": {"dims": {"64": broken}}})
    assert "mine" in text and "dimension 64" in text and f"'{key}'" in text


def test_json_round_trip(tmp_path):
    path = tmp_path / "report" / "results.json"
    given = {"dims": {"64": entry(np.float32(0.25), trials=np.int64(7), eer_ci95=np.array([0.125, 0.5]))}}
    assert report.write_json(path, given) == path
    assert json.loads(path.read_text()) == {"dims": {"64": entry(0.25, trials=7, eer_ci95=[0.125, 0.5])}}
    report.write_json(path, RESULTS["longer name"])  # Over what was there.
    assert json.loads(path.read_text()) == RESULTS["longer name"]
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_json_refusals(tmp_path):
    path = tmp_path / "results.json"
    assert "NaN or Inf" in refusal(report.write_json, path, {"dims": {"64": entry(float("nan"))}})
    assert not path.exists()
