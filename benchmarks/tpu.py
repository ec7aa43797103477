"""Compile the programs of redimnet_jax for TPUs, on a machine without one, and say what the compiler says of them.

    python benchmarks/tpu.py [--programs forward step] [--variants b2] [--chips v5e] [--devices 4] [--batch 128]
                             [--seconds 3] [--remat] [--json FILE]

The compiler comes with libtpu (pip install '.[tpu]'); nothing runs. Programs:

    forward      waveform to embedding, in eval mode
    extraction   waveforms of several lengths to pooled features, as in validation and for the feature cache
    cached       up to 100 steps of the projection on cached features
    projection   a step on audio that trains projection and heads
    step         a step on audio that trains everything
    scoring      EER and minDCF of all prefixes
    validation   extraction for all lengths of 1,000 recordings of 4 to 60 s, a row each, and their sum

Columns:

    compile      CPU seconds of the compiler (of all threads), without tracing
    MiB          memory of a chip at the peak: arguments, results and temporaries
    GB           what the operations of a call read and write, in a chip's memory or on the chip, by the cost model
    model/s      utterances a second of all chips, by the cycles that the cost model estimates for every operation
    bundles/s    the same by the instruction bundles of the final programs, loops times their trips, in which no
                 wait for memory is counted; for v5e and v6e with --bundles, which compiles once more and takes 4
                 times as long
    memory/s     the same if all those GB went through the chip's memory and nothing else took time
    collectives  kind, number and MB of their results on a chip

Programs of steps and of extraction run on all devices, forward and scoring on one. `cached` and `scoring` have no
utterances a second, since their work is not counted by them. The dtype is bfloat16. The compiler has the options that
the library gives it (`redimnet_jax.compilation`). --effort, and --vmem, the KiB on the chip that an operation may
take, replace them (--vmem 0: the compiler's own).
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tpu_program import bundle_cycles, collectives, estimated_cycles, instructions

from redimnet_jax import sharding
from redimnet_jax.compilation import HALF_EFFORT, LEAST_EFFORT, for_tpu
from redimnet_jax.embedding import extract
from redimnet_jax.evaluation import device_metrics
from redimnet_jax.losses.heads import Heads
from redimnet_jax.losses.objective import Objective
from redimnet_jax.models import config as model_config
from redimnet_jax.models.blocks import Execution
from redimnet_jax.models.network import SpeakerNetwork
from redimnet_jax.models.variants import VARIANTS
from redimnet_jax.nn import tpu_chip
from redimnet_jax.training import optimizer
from redimnet_jax.training.partition import PARTS, TrainableModel, TrainablePartition
from redimnet_jax.training.step import initial_state, lower_step, make_step
from redimnet_jax.training.steppers import lower_loop

DIMS = (64, 128, 192, 256)
# VoxCeleb2's development set, and the trials of VoxCeleb1-E.
CLASSES = 5994
UTTERANCES = 1_092_009
TRIALS = 579_818
CACHED_BATCH = 1024
MAX_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU: how a topology of some devices is named, bytes a second of its memory, cycles a second."""

    topologies: dict[int, str]
    bandwidth: float
    clock: float


# https://cloud.google.com/tpu/docs gives the bandwidths; the clock rates follow from the peak rates of the products.
FLAT = {1: "2x2", 4: "2x2", 8: "2x4", 16: "4x4", 64: "8x8", 256: "16x16"}
CUBES = {1: "2x2x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 64: "4x4x4"}
CHIPS = {
    "v5e": Chip(FLAT, 819e9, 1.5e9),
    "v6e": Chip(FLAT, 1640e9, 1.75e9),
    "v4": Chip(CUBES, 1228e9, 1.05e9),
    "v5p": Chip(CUBES, 2765e9, 1.75e9),
}
BUNDLES = ("v5e", "v6e")


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled: a program of a variant for `devices` chips, `batch` utterances of `seconds` on each."""

    program: str
    variant: str
    chip: str
    devices: int
    batch: int
    seconds: float
    remat: bool
    options: dict[str, Any]


def abstract(tree: Any, placement: Any) -> Any:
    """Return the shapes of the arrays of `tree` with a sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement), tree)


def abstract_state(tree: Any, mesh: Mesh) -> Any:
    """Return the shapes of `tree` as `sharding.place_state` would place it."""

    def shape(path: tuple, x: Any) -> jax.ShapeDtypeStruct:
        name = str(getattr(path[-1], "key", ""))
        if not name.endswith(".prototypes") or sharding.class_shards(len(x), mesh) == 1:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh))
        rows = -(-len(x) // mesh.size) * mesh.size
        return jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding.by_rows(mesh))

    return jax.tree_util.tree_map_with_path(shape, tree)


def rows(mesh: Mesh, *shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """Return a shape whose first axis is divided among the devices."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.by_rows(mesh))


def network(case: Case, embed_dim: int | None = None) -> SpeakerNetwork:
    arch, entries = VARIANTS[case.variant]
    entries = entries if embed_dim is None else entries | {"embed_dim": embed_dim}
    made = SpeakerNetwork(model_config.parse(arch, entries), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    made.backbone.execution = Execution(remat=case.remat, scan=case.program not in ON_ONE_DEVICE)
    return made


def audio(case: Case, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return rows(mesh, case.batch * mesh.size, round(16000 * case.seconds))


def lower_forward(case: Case, mesh: Mesh) -> jax.stages.Lowered:
    graph, state = nnx.split(network(case))
    leaves, tree = jax.tree.flatten(state)

    def forward(leaves: list, waveform: jax.Array) -> jax.Array:
        return nnx.merge(graph, tree.unflatten(leaves))(waveform)

    return jax.jit(forward).lower(abstract(leaves, sharding.replicated(mesh)), audio(case, mesh))


def lower_extraction(case: Case, mesh: Mesh) -> jax.stages.Lowered:
    graph, state = nnx.split(network(case))
    leaves, tree = jax.tree.flatten(state)
    waveform = audio(case, mesh)
    batch = {"waveform": waveform, "lengths": rows(mesh, waveform.shape[0], dtype=jnp.int32)}
    program: Any = extract.pooling_program(graph, tree, mesh, tpu_effort=LEAST_EFFORT)
    return program.lower(abstract(leaves, sharding.replicated(mesh)), batch)


def training(case: Case, mesh: Mesh, parts: tuple[str, ...]) -> tuple[Callable, Any, Any, SpeakerNetwork]:
    """Return (step, state, frozen variables, network) of a run that trains `parts`, the arrays as shapes."""
    trained = network(case, DIMS[-1])
    model = TrainableModel(trained, Heads(CLASSES, DIMS, rngs=nnx.Rngs(1)))
    partition = TrainablePartition(model, parts)
    optimiser = optimizer.adamw(optimizer.schedule(1e-3, 10_000, 500), weight_decay=1e-4, clip_norm=5.0)
    step = make_step(partition, optimiser, Objective((1.0,) * len(DIMS), lambda _: 0.2), seed=0)
    state = abstract_state(initial_state(partition, optimiser), mesh)
    return step, state, abstract_state(partition.arrays("frozen"), mesh), trained


def lower_audio_step(case: Case, mesh: Mesh, parts: tuple[str, ...]) -> jax.stages.Lowered:
    step, state, frozen, _ = training(case, mesh, parts)
    batch = {"waveform": audio(case, mesh), "label": rows(mesh, case.batch * mesh.size, dtype=jnp.int32)}
    return lower_step(step, mesh, state, frozen, batch)


def lower_cached(case: Case, mesh: Mesh) -> jax.stages.Lowered:
    step, state, frozen, trained = training(case, mesh, ("projection", "heads"))
    streams = mesh.size
    width = -(-UTTERANCES // streams)
    features = rows(mesh, streams, width, trained.pool.features, dtype=jnp.bfloat16)
    labels, order = (rows(mesh, streams, width, dtype=jnp.int32) for _ in range(2))
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    arguments = state, frozen, features, labels, order, number, number
    return lower_loop(step, mesh, CACHED_BATCH // streams, MAX_STEPS, *arguments)


def lower_scoring(case: Case, mesh: Mesh) -> jax.stages.Lowered:
    whole = sharding.replicated(mesh)
    scores = jax.ShapeDtypeStruct((len(DIMS), TRIALS), jnp.float32, sharding=whole)
    labels = jax.ShapeDtypeStruct((TRIALS,), jnp.bool, sharding=whole)
    return jax.jit(lambda scores, labels: device_metrics.eer_and_min_dcf(scores, labels)).lower(scores, labels)


def validation(case: Case) -> list[Case]:
    """Return the programs of a validation with recordings of 4 to 60 s, in any proportion."""
    lengths = np.random.default_rng(0).integers(4 * 16000, 60 * 16000, 1000, endpoint=True)
    batches = extract.plan(lengths, np.arange(len(lengths)), 240 * 16000, case.devices, on_tpu=True)
    shapes = dict.fromkeys((batch.rows // case.devices, batch.size / 16000) for batch in batches)
    return [dataclasses.replace(case, program="extraction", batch=rows, seconds=seconds) for rows, seconds in shapes]


PROGRAMS: dict[str, Callable[[Case, Mesh], jax.stages.Lowered]] = {
    "forward": lower_forward,
    "extraction": lower_extraction,
    "cached": lower_cached,
    "projection": lambda case, mesh: lower_audio_step(case, mesh, ("projection", "heads")),
    "step": lambda case, mesh: lower_audio_step(case, mesh, tuple(PARTS)),
    "scoring": lower_scoring,
}
ON_ONE_DEVICE = ("forward", "scoring")
WITHOUT_UTTERANCES = ("cached", "scoring")
# The library's efforts of the compiler, where they are not full: extraction is compiled for every padded length.
EFFORTS = {
    "extraction": LEAST_EFFORT,
    "validation": LEAST_EFFORT,
    "cached": HALF_EFFORT,
    "projection": HALF_EFFORT,
    "step": HALF_EFFORT,
}


def compiler_options(program: str, effort: float | None = None, vmem: int | None = None) -> dict[str, Any]:
    """Return the library's options for the compiler, of which `effort` and `vmem`, where given, replace two."""
    options = for_tpu(EFFORTS.get(program, 0.0) if effort is None else effort)
    if vmem is not None:
        options.pop("xla_tpu_scoped_vmem_limit_kib", None)
        options |= {"xla_tpu_scoped_vmem_limit_kib": vmem} if vmem else {}
    return options


def compile_case(case: Case, dump: Path | None) -> dict[str, Any]:
    """Return the row of `case`; only with `dump`, where the compiler writes its programs, does it count bundles."""
    from jax.experimental import topologies

    chip = CHIPS[case.chip]
    name = f"{case.chip}:{chip.topologies[case.devices]}"
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    count = 1 if case.program in ON_ONE_DEVICE else case.devices
    mesh = Mesh(np.array(devices[:count]), (sharding.AXIS,))
    with tpu_chip.compiled_for(devices[0].device_kind):
        lowered = PROGRAMS[case.program](case, mesh)
    start = resource.getrusage(resource.RUSAGE_SELF)
    compiled = lowered.compile(compiler_options=case.options)
    end = resource.getrusage(resource.RUSAGE_SELF)
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    text = compiled.as_text() or ""
    program = instructions(text)
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    accessed = cost["bytes accessed"]
    row = dataclasses.asdict(case) | {
        "devices": count,
        "compile_cpu_s": round(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime, 1),
        "mib": round((peak - memory.alias_size_in_bytes) / 2**20),
        "gb": round(accessed / 1e9, 2),
        "collectives": collectives(program),
    }
    if case.program not in WITHOUT_UTTERANCES:
        utterances = case.batch * count
        cycles = estimated_cycles(program)
        if cycles is not None:
            row["model_per_s"] = round(utterances * chip.clock / cycles)
        if dump is not None:
            row["bundles_per_s"] = round(utterances * chip.clock / bundle_cycles(dump, text))
        row["memory_per_s"] = round(utterances * chip.bandwidth / accessed)
    return row


def in_own_process(case: Case, dump: str | None = None) -> dict[str, Any]:
    """Return the row of `case`, or what is known of it and an `error`, compiled in a process of its own."""
    # Several processes may have the compiler open, and none looks for the metadata of a TPU's machine.
    environment = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [sys.executable, __file__, "--case", json.dumps(dataclasses.asdict(case))]
    if dump is not None:
        flags = (
            f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
        )
        environment["LIBTPU_INIT_ARGS"] = flags
        command += ["--dump", dump]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    # The compiler logs an error for every thing that it finds no machine of TPUs by.
    said = [line for line in done.stderr.splitlines() if not line.startswith("E0000")]
    reasons = [line for line in said if "Error" in line or "Exceeded" in line or "SIG" in line]
    reason = reasons[-1].strip() if reasons else f"The compiler ended with code {done.returncode}."
    return dataclasses.asdict(case) | {"error": reason}


def measured(case: Case, bundles: bool) -> dict[str, Any]:
    """Return the row of `case`, with `bundles` the rate by bundles too."""
    row = in_own_process(case)
    if bundles and "error" not in row and case.chip in BUNDLES and case.program not in WITHOUT_UTTERANCES:
        # A second time, since what the compiler writes takes most of its time.
        with tempfile.TemporaryDirectory() as dump:
            counted = in_own_process(case, dump)
            row |= {key: counted[key] for key in ("bundles_per_s", "error") if key in counted}
    return row


def line(row: dict[str, Any]) -> str:
    """Return the row of the table."""
    kinds = row.get("collectives", {})
    passed = ", ".join(f"{kind} {of['count']} ({of['mb']:.3g})" for kind, of in kinds.items())
    rates = [row.get(name, "") for name in ("model_per_s", "bundles_per_s", "memory_per_s")]
    shape = [f"{row['chip']} x {row['devices']}", f"{row['batch']}{' remat' if row['remat'] else ''}"]
    cells = [row["program"], row["variant"], *shape, f"{row['seconds']:g}"]
    if "error" in row:
        cells += [row["error"]]
    else:
        cells += [row["compile_cpu_s"], row["mib"], row["gb"], *rates, passed or "none"]
    return f"| {' | '.join(map(str, cells))} |"


def summed(rows: list[dict[str, Any]]) -> str:
    """Return the row of the table for the programs of `rows` together."""
    seconds = [row["compile_cpu_s"] for row in rows if "error" not in row]
    first = rows[0]
    cells = ["all lengths", first["variant"], f"{first['chip']} x {first['devices']}", "", "", round(sum(seconds), 1)]
    return f"| {' | '.join(map(str, cells))} | {len(seconds)} of {len(rows)} programs |"


TITLES = "program variant chips batch/chip seconds compile MiB GB model/s bundles/s memory/s collectives"
TITLES = TITLES.replace(" ", " | ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=[*PROGRAMS, "validation"])
    parser.add_argument("--variants", nargs="+", default=["b2"], choices=VARIANTS)
    parser.add_argument("--chips", nargs="+", default=["v5e", "v6e"], choices=CHIPS)
    parser.add_argument("--devices", type=int, default=4, choices=FLAT, help="number of chips")
    parser.add_argument("--batch", nargs="+", type=int, default=[128], help="utterances on a chip")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of an utterance")
    parser.add_argument("--remat", action="store_true", help="compute the blocks twice in a step (setting `remat`)")
    parser.add_argument("--effort", type=float, help="effort of the compiler, from -1 to 1")
    parser.add_argument("--vmem", type=int, help="KiB on the chip that an operation may take")
    parser.add_argument("--bundles", action="store_true", help="count instruction bundles as well")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--dump", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("The TPU compiler, libtpu, is not installed: pip install '.[tpu]'.")
    if args.case:
        print(json.dumps(compile_case(Case(**json.loads(args.case)), args.dump)))
        return
    libtpu = importlib.metadata.version("libtpu")
    print(f"JAX {jax.__version__}, libtpu {libtpu}, {args.seconds:g} s, bfloat16\n")
    print(f"| {TITLES} |\n|{'---|' * (TITLES.count('|') + 1)}", flush=True)
    found = []
    for chip in args.chips:
        for variant in args.variants:
            for program in args.programs:
                for batch in args.batch:
                    options = compiler_options(program, args.effort, args.vmem)
                    case = Case(program, variant, chip, args.devices, batch, args.seconds, args.remat, options)
                    parts = validation(case) if program == "validation" else [case]
                    for part in parts:
                        found.append(measured(part, args.bundles))
                        print(line(found[-1]), flush=True)
                        if args.json is not None:
                            args.json.write_text(json.dumps({"libtpu": libtpu, "rows": found}, indent=2) + "\n")
                    if len(parts) > 1:
                        print(summed(found[-len(parts) :]), flush=True)


if __name__ == "__main__":
    main()
