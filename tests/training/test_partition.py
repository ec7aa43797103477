"""Filters: what matches, how deep a variable lies, and the refusal of a filter that matches nothing."""

import pytest
from refusals import refusal

from redimnet_jax.training import partition

NAMES = [
    "network.frontend.spec_norm.mean",
    "network.backbone.stem.conv.kernel",
    *(f"network.backbone.stages.{index}.{leaf}" for index in (0, 1, 10) for leaf in ("patch.kernel", "norm.bias")),
    "network.backbone.aggregate.w",
    "network.pool.linear1.kernel",
    "network.bn.scale",
    "network.linear.kernel",
    "heads.prototypes.0",
    "heads.prototypes.1",
]


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (["projection"], ["network.bn.scale", "network.linear.kernel"]),
        (["heads"], ["heads.prototypes.0", "heads.prototypes.1"]),
        (["backbone"], [name for name in NAMES if partition.part_of(name) == "backbone"]),
        (["backbone.stages.1"], ["network.backbone.stages.1.patch.kernel", "network.backbone.stages.1.norm.bias"]),
        (
            ["backbone.stages.1*.bias"],
            ["network.backbone.stages.1.norm.bias", "network.backbone.stages.10.norm.bias"],
        ),
        (["pool", "heads.prototypes.[1-9]"], ["network.pool.linear1.kernel", "heads.prototypes.1"]),
        (["*"], NAMES),
    ],
)
def test_what_filters_match(filters, wanted):
    assert partition.select_variables(NAMES, filters, "parts") == set(wanted)


@pytest.mark.parametrize(
    ("pattern", "near"), [("backbone.stage.1", "backbone.stages.1"), ("projections", "projection"), ("xyz", "pool")]
)
def test_a_filter_that_matches_nothing_is_refused(pattern, near):
    told = refusal(partition.select_variables, NAMES, ["heads", pattern], "stage2.parts")
    assert f"config.stage2.parts has '{pattern}'" in told and near in told.split("near it are")[1]


def test_every_variable_has_one_part():
    assert [partition.part_of(name) for name in NAMES] == ["backbone"] * 10 + ["projection"] * 2 + ["heads"] * 2
    with pytest.raises(ValueError, match="classifier"):
        partition.part_of("network.classifier.kernel")


def test_depth_counts_the_stages_that_follow():
    depths = {name.split("network.")[1]: partition.depth(name, NAMES) for name in NAMES[:9:2]}
    assert depths == {
        "frontend.spec_norm.mean": 11,
        "backbone.stages.0.patch.kernel": 10,
        "backbone.stages.1.patch.kernel": 9,
        "backbone.stages.10.patch.kernel": 0,
        "backbone.aggregate.w": 0,
    }
