"""What the optimized program of a TPU's compiler, and the instruction bundles that it writes, say about a program."""

import re
from pathlib import Path

import numpy as np

NO_ESTIMATE = 2**53
OPERATIONS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
# The text of every instruction and how often it is executed.
Instructions = list[tuple[str, int]]
# The first line of a computation.
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")


def instructions(program: str) -> Instructions:
    """Return the lines of the optimized HLO `program` that are instructions, and how often each is executed.

    Only loops whose condition compares with a constant count; a fused computation counts once.
    """
    computations = _computations(program)
    lines = [(computation, text) for computation, texts in computations.items() for text in texts]
    times: dict[str, int] = {}
    # A loop's body is above what calls it.
    for computation, text in reversed(lines):
        if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", text):
            trips = re.search(r" s32\[\]\S* constant\((\d+)\)", "\n".join(computations[loop[1]]))
            times[loop[2]] = times.get(computation, 1) * (int(trips[1]) if trips else 1)
    return [(text, times.get(computation, 1)) for computation, text in lines]


def collectives(program: Instructions) -> dict[str, dict[str, float]]:
    """Return for each kind of collective in `program` its number and the MB of its results."""
    found: dict[str, dict[str, float]] = {}
    for text, times in program:
        match = re.search(rf"= (.+?) ({OPERATIONS})(-start|-done)?\(", text)
        if match is None or match[3] == "-done":
            continue
        results, kind = match[1], match[2]
        size = 0
        for dtype, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", results):
            size += ITEM_BYTES.get(dtype, 0) * int(np.prod([int(n) for n in dims.split(",") if n] or [1]))
        entry = found.setdefault(kind, {"count": 0, "mb": 0.0})
        entry["count"] += times
        entry["mb"] += times * size / 1e6
    return found


def bundle_cycles(folder: Path, program: str) -> float:
    """Return the bundles of the optimized HLO `program`, which the compiler has written to `folder` by instruction.

    Loops count times their trips. Of instructions that do the same the compiler makes and writes one.
    """
    written = {re.sub(r"^\d+-|-\d+-final_bundles$", "", path.stem): path for path in _bundles(folder)}
    computations = _computations(program)
    named = {name[1]: (text, times) for text, times in instructions(program) if (name := _NAME.match(text))}
    first = {_meaning(named[name][0], computations): name for name in written if name in named}
    cycles = {name: _cycles(path) for name, path in written.items()}
    # What has no instruction of its own, such as the program that calls all others, runs once.
    total = sum(cycles[name] for name in written if name not in named)
    for name, (text, times) in named.items():
        if name not in written and "backend_config" in text:
            meaning = _meaning(text, computations)
            # Of what has an estimate the bundles must be there; copies have none.
            name = first[meaning] if "estimated_cycles" in text else first.get(meaning, name)
        total += times * cycles.get(name, 0.0)
    return total


_NAME = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = ")


def _bundles(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*-final_bundles.txt") if "schedule-analysis" not in path.name]


def _cycles(path: Path) -> float:
    # Of every loop that a line is in: the bundles of its body so far, its trips, and what its branch back depends on.
    loops: list[list] = [[0.0, 1, None]]
    for line in path.read_text().splitlines():
        bundle = re.match(r"\s*0x[0-9a-f]+\s+(LB:)?", line)
        if bundle is None:
            continue
        if bundle[1]:
            # A pipelined loop runs two trips more than the work needs, in which it starts and ends.
            loops.append([0.0, -2 if "iteration index, stage" in line else 0, None])
        innermost = loops[-1]
        innermost[0] += 1
        if end := re.search(r"(%\w+) = scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test", line):
            innermost[1:] = innermost[1] + int(end[2]), end[1]
        if innermost[2] and f"sbr.rel (!{innermost[2]})" in line:
            loops.pop()
            loops[-1][0] += innermost[0] * innermost[1]
    return sum(bundles * max(trips, 1) for bundles, trips, _ in loops)


def _computations(program: str) -> dict[str, list[str]]:
    """Return the instructions of every computation of `program`."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for text in program.splitlines():
        if head := _HEAD.match(text):
            lines = found.setdefault(head[1], [])
        elif " = " in text:
            lines.append(text)
    return found


def _meaning(text: str, computations: dict[str, list[str]]) -> tuple:
    """Return what an instruction does, without names: equal where the compiler makes one program for two."""
    shapes = re.sub(r", (metadata|frontend_attributes|sharding|backend_config)=\{.*", "", text)
    windows = re.findall(r'"(?:window_config|convolution_algorithm_config)":\{.*?\}', text)
    called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", text)
    # In any order: the compiler numbers the two sides of a maximum either way.
    inner = tuple(
        sorted((_meaning(line, computations) for name in called for line in computations.get(name, [])), key=repr)
    )
    return re.sub(r"%[\w.\-]+", "%", shapes.split(" = ")[1]), *windows, inner


def estimated_cycles(program: Instructions) -> int | None:
    """Return the cycles that the compiler's cost model estimates for `program`, operations one after another.

    None where it has no estimate for some operation, for which it writes the largest number.
    """
    estimates = ((re.search(r'"estimated_cycles":"(\d+)"', text), times) for text, times in program)
    cycles = [(int(cycles[1]), times) for cycles, times in estimates if cycles]
    if any(count >= NO_ESTIMATE for count, _ in cycles):
        return None
    return sum(count * times for count, times in cycles)
