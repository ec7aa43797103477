"""The four signs of overfitting over a history of validations."""

import itertools
import json

import pytest

from redimnet_jax.training import overfitting


def history(target=(), nontarget=(), eer=(), loss=(), dim="64"):
    columns = zip(target, nontarget, eer, loss, strict=True)
    return [
        {"step": 10 * i, "epoch": i, "loss": last, "dims": {dim: {"target_mean": a, "nontarget_mean": b, "eer": c}}}
        for i, (a, b, c, last) in enumerate(columns, 1)
    ]


FALLS, RISES, FLAT = (5.0, 4.0, 3.0, 2.0, 1.0), (1.0, 2.0, 3.0, 4.0, 5.0), (2.0,) * 5
HELD = {"target_mean": True, "nontarget_mean": True, "eer": True, "loss": True}


def test_all_four_signs_are_overfitting():
    found = overfitting.signs(history(FALLS, RISES, RISES, FALLS))
    assert found == {"64": {"epochs": [1, 5], "signs": HELD, "overfitting": True}}
    assert json.loads(json.dumps(found)) == found
    (sentence,) = overfitting.warnings(found)
    assert sentence == (
        "dimension 64, epochs 1 to 5: overfitting: mean cosine of target trials falls, mean cosine of non-target "
        "trials rises, EER rises, training loss falls"
    )


@pytest.mark.parametrize("missing", HELD)
@pytest.mark.parametrize("instead", [FLAT, "the other way"])
def test_each_sign_is_needed_and_named(missing, instead):
    columns = {"target_mean": FALLS, "nontarget_mean": RISES, "eer": RISES, "loss": FALLS}
    columns[missing] = columns[missing][::-1] if instead == "the other way" else instead
    found = overfitting.signs(history(*columns.values()))["64"]
    assert found["signs"] == HELD | {missing: False} and not found["overfitting"]
    (sentence,) = overfitting.warnings({"64": found})
    assert "not overfitting" in sentence and overfitting.NAMES[missing] not in sentence


def test_training_that_goes_well_gives_no_warning():
    found = overfitting.signs(history(RISES, FALLS, FALLS, FALLS))
    assert found["64"]["signs"] == HELD | {"target_mean": False, "nontarget_mean": False, "eer": False}
    assert overfitting.warnings(found) == []


def test_only_the_last_five_validations_count():
    before = history(*[(0.0,) * 20] * 4)
    found = overfitting.signs(before + history(FALLS, RISES, RISES, FALLS))
    assert found["64"]["overfitting"] and found["64"]["epochs"] == [1, 5]


def test_one_pair_of_ten_may_disagree():
    # By chance alone one order in 24 does: 5 of the 120 of five values, 1 of the 24 of four.
    for size, agreeing in ((5, 5), (4, 1)):
        orders = itertools.permutations(range(size))
        found = [
            overfitting.signs(history(FLAT[:size], FLAT[:size], order, FLAT[:size]))["64"]["signs"]["eer"]
            for order in orders
        ]
        assert sum(found) == agreeing


def test_entries_without_loss_or_validation_do_not_count():
    entries = history(FALLS, RISES, RISES, FALLS)
    start = {key: value for key, value in entries[0].items() if key != "loss"}
    skipped = {key: value for key, value in entries[0].items() if key != "dims"}
    assert overfitting.signs([start, skipped, *entries[:3]]) == {}
    assert overfitting.signs([start, entries[0], skipped, *entries[1:]])["64"]["overfitting"]


def test_a_dimension_that_is_new_is_left_out():
    entries = history(FALLS, RISES, RISES, FALLS)
    entries[-1]["dims"]["128"] = entries[-1]["dims"]["64"]
    assert overfitting.signs(entries).keys() == {"64"}
