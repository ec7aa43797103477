"""What a good model must show."""

from redimnet_jax.evaluation import verdicts


def results(target, nontarget, eer):
    return {"dims": {"64": {"target_mean": target, "nontarget_mean": nontarget, "eer": eer, "trials": 3}}}


def test_a_good_model_passes_every_one():
    found = verdicts.verdicts(results(0.71, 0.29, 0.019))["64"]
    assert found["target_mean"] == {"value": 0.71, "expected": "> 0.7", "holds": True}
    assert found["nontarget_mean"] == {"value": 0.29, "expected": "< 0.3", "holds": True}
    assert found["eer"] == {"value": 0.019, "expected": "< 0.02", "holds": True}


def test_what_only_reaches_the_bound_fails():
    found = verdicts.verdicts(results(0.7, 0.3, 0.02))["64"]
    assert [each["holds"] for each in found.values()] == [False] * 3
    table = verdicts.table({"64": found})
    assert table.header == ["dim", "target mean > 0.7", "non-target mean < 0.3", "EER < 0.02"]
    assert table.rows == [["64", "0.7000 no", "0.3000 no", "0.0200 no"]]
