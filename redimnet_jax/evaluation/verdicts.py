"""Does a model do what a good one must: three figures of every dimension against what is expected of them.

Mean cosines of target and non-target trials show whether the embeddings mean anything for speakers whom training has
not seen; the EER shows whether they verify them. A classification loss on such speakers shows neither.
"""

import operator
from collections.abc import Mapping
from typing import Any

from redimnet_jax.evaluation import report

COMPARISONS = {">": operator.gt, "<": operator.lt}
EXPECTED = {"target_mean": (">", 0.7), "nontarget_mean": ("<", 0.3), "eer": ("<", 0.02)}
NAMES = {"target_mean": "target mean", "nontarget_mean": "non-target mean", "eer": "EER"}


def verdicts(results: report.Results) -> dict[str, Any]:
    """{dim: {figure: {"value", "expected", "holds"}}} of the cosines' results (see `report`)."""
    return {
        str(dim): {figure: _verdict(figure, entry[figure]) for figure in EXPECTED}
        for dim, entry in report.dims(results)
    }


def table(of: Mapping[str, Any]) -> report.Table:
    """What `verdicts` gives, a row a dimension."""
    header = ["dim"] + [f"{NAMES[figure]} {sign} {bound:g}" for figure, (sign, bound) in EXPECTED.items()]
    rows = [
        [dim, *(f"{each['value']:.4f} {'yes' if each['holds'] else 'no'}" for each in figures.values())]
        for dim, figures in of.items()
    ]
    return report.Table("Verdicts on the cosines", header, rows)


def _verdict(figure: str, value: float) -> dict[str, Any]:
    sign, bound = EXPECTED[figure]
    return {"value": value, "expected": f"{sign} {bound:g}", "holds": COMPARISONS[sign](value, bound)}
