"""What the optimized program of a TPU's compiler, and the instruction bundles that it writes, say about a program."""

import re
from pathlib import Path

import numpy as np

OPERATIONS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
# The text of every instruction and how often it is executed.
Instructions = list[tuple[str, int]]


def instructions(program: str) -> Instructions:
    """Return the lines of the optimized HLO `program` that are instructions, and how often each is executed.

    Only loops whose number of trips the compiler knows count; a fused computation counts once.
    """
    lines = []
    computation = ""
    for text in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", text):
            computation = head[1]
        elif " = " in text:
            lines.append((computation, text))
    times: dict[str, int] = {}
    # A loop's body is above what calls it.
    for computation, text in reversed(lines):
        if loop := re.search(r" while\(.*body=%?([\w.\-]+)", text):
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', text)
            times[loop[1]] = times.get(computation, 1) * (int(trips[1]) if trips else 1)
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
        entry["mb"] = round(entry["mb"] + times * size / 1e6, 3)
    return found


def bundle_cycles(folder: Path, program: Instructions) -> float:
    """Return the bundles of the instructions of `program`, which the compiler has written to `folder`.

    Loops count times their trips.
    """
    times = {name[1]: n for text, n in program if (name := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", text))}
    total = 0.0
    for path in folder.glob("*-final_bundles.txt"):
        if "schedule-analysis" in path.name:
            continue
        # The innermost loop that a line is in is the last entry; the first is what lies outside of all loops.
        open_loops = [0.0]
        for line in path.read_text().splitlines():
            bundle = re.match(r"\s*0x[0-9a-f]+\s+(LB:)?", line)
            if bundle is None:
                continue
            if bundle[1]:
                open_loops.append(0.0)
            open_loops[-1] += 1
            end = re.search(r"scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test", line)
            if end and len(open_loops) > 1:
                # A pipelined loop's first and last trip are outside of it.
                trips = int(end[1])
                body = open_loops.pop()
                open_loops[-1] += body * (trips - 2 if trips > 4 else trips)
        instruction = re.sub(r"^\d+-|-\d+-final_bundles$", "", path.stem)
        total += times.get(instruction, 1) * sum(open_loops)
    return total


def estimated_cycles(program: Instructions) -> int:
    """Return the cycles that the compiler's cost model estimates for `program`, operations one after another."""
    estimates = ((re.search(r'"estimated_cycles":"(\d+)"', text), times) for text, times in program)
    return sum(int(cycles[1]) * times for cycles, times in estimates if cycles)
