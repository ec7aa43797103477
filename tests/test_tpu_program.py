"""What benchmarks/tpu_program.py reads from a program and the bundles of its instructions."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import pytest
from tpu_program import bundle_cycles, collectives, estimated_cycles, instructions

# Two equal fusions in a loop of five trips, of which the compiler writes the first, and another outside.
PROGRAM = """\
%inner (p.1: f32[8]) -> f32[8] {
  ROOT %add.1 = f32[8]{0} add(%p.1, %p.1), metadata={op_name="a"}
}

%inner.clone (p.2: f32[8]) -> f32[8] {
  ROOT %add.2 = f32[8]{0} add(%p.2, %p.2), metadata={op_name="b"}
}

%other (p.3: f32[8]) -> f32[8] {
  ROOT %multiply.1 = f32[8]{0} multiply(%p.3, %p.3)
}

%condition (p.4: (s32[], f32[8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %constant.1), direction=LT
}

%body (p.5: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%inner, backend_config={"estimated_cycles":"7"}
  %fusion.2 = f32[8]{0} fusion(%fusion.1), kind=kLoop, calls=%inner.clone, backend_config={"estimated_cycles":"7"}
  %all-reduce.1 = f32[8]{0} all-reduce(%fusion.2), to_apply=%sum
}

ENTRY %main (p.6: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %fusion.3 = f32[8]{0} fusion(%y), kind=kLoop, calls=%other, backend_config={"estimated_cycles":"7"}
}
"""
# Two bundles before a loop of ten trips; the test for its end comes before its last bundles, as compilers may put it.
LOOP = """\
= control target key start
LB: loop body
     0x1   :  { %1 = nop }
     0x2   :  { %2 = nop }
     0x3 LB: > { %s3_s1 = sphi %s4_s2, %s5_s3 }
     0x4   : > { %p6_p0 = scmp.ge.s32.totalorder %s3_s1, 10 /* loop exit test */ }
     0x5   : > { %7 = nop }
     0x6   :  { %8 = sbr.rel (!%p6_p0) target = $region4 }
     0x7   :  { %9 = nop }
"""


def test_loops_and_equal_instructions_count(tmp_path):
    (tmp_path / "17-fusion.1-01-final_bundles.txt").write_text(LOOP)
    (tmp_path / "17-fusion.1-00-schedule-analysis_final_bundles.txt").write_text(LOOP)
    (tmp_path / "18-fusion.3-01-final_bundles.txt").write_text("     0x1   :  { %1 = nop }\n")
    (tmp_path / "18-TLP-01-final_bundles.txt").write_text("     0x1   :  { %1 = nop }\n" * 3)
    once = 2 + 4 * 10 + 1
    assert bundle_cycles(tmp_path, PROGRAM) == 2 * 5 * once + 1 + 3


def test_a_pipelined_loop_has_two_trips_more_than_its_work(tmp_path):
    pipelined = LOOP.replace("%s5_s3 }", "%s5_s3 /* iteration index, stage = 1 */ }")
    (tmp_path / "17-fusion.3-01-final_bundles.txt").write_text(pipelined)
    (tmp_path / "17-fusion.1-01-final_bundles.txt").write_text("")
    assert bundle_cycles(tmp_path, PROGRAM) == 2 + 4 * 8 + 1


def test_collectives_in_a_loop_count_times_its_trips():
    assert collectives(instructions(PROGRAM)) == {"all-reduce": {"count": 5, "mb": pytest.approx(5 * 32 / 1e6)}}


def test_cycles_of_a_loop_count_times_its_trips_unless_one_is_unknown():
    assert estimated_cycles(instructions(PROGRAM)) == 2 * 5 * 7 + 7
    unknown = PROGRAM.replace(
        'calls=%other, backend_config={"estimated_cycles":"7"}', f'"estimated_cycles":"{2**63 - 1}"'
    )
    assert estimated_cycles(instructions(unknown)) is None
