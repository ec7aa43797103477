"""Where the time of a run goes: seconds by kind over all its starts, work that was lost, goodput and utilisation.

The first process keeps the account in `<workdir>/time.json`, with an entry for every start of the run. It writes the
file while the run goes on, so that what a killed start has done is known, and how much of it the next one does again.
"""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from redimnet_jax import files
from redimnet_jax.errors import UserError

FILE = "time.json"
WRITE_SECONDS = 30.0

START = "start-up"
COMPILATION = "compilation"
FEATURES = "features"
INPUT = "input"
STEPS = "steps"
VALIDATION = "validation"
CHECKPOINTS = "checkpoints"
OTHER = "other"
LOST = "lost"
# In the order of the table. `LOST` is never measured, it follows from where the next start began.
KINDS = (START, COMPILATION, FEATURES, INPUT, STEPS, VALIDATION, CHECKPOINTS, OTHER)

# Dense bfloat16 FLOP/s of a device by the start of its `device_kind`, from the manufacturers' data sheets. The device
# of a v4 or v5p is a chip of two cores.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
}
# What JAX reports of the lowering and compilation of a program, also where it comes from the compilation cache.
_COMPILE_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")
# The call of a kernel of `nn/cuda` in a program.
_PTX_CALL = "xla.gpu.ptx"


class Clock:
    """Counts the seconds of this process by kind; what is counted within something else is not counted there too."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._kinds: list[str] = [START]
        self._since = now()

    @contextlib.contextmanager
    def counting(self, kind: str) -> Iterator[None]:
        """Count the time of the block as `kind`."""
        self._settle()
        self._kinds.append(kind)
        try:
            yield
        finally:
            self._settle()
            self._kinds.pop()

    def begin(self, kind: str) -> None:
        """Count everything from now on, outside of `counting`, as `kind`."""
        self._settle()
        self._kinds[0] = kind

    def move(self, seconds: float, kind: str) -> None:
        """Count that many seconds, which passed within what is being counted now, as `kind` instead."""
        self._seconds[self._kinds[-1]] -= seconds
        self._seconds[kind] += seconds

    def seconds(self) -> dict[str, float]:
        """Return the seconds by kind until now."""
        self._settle()
        return dict(self._seconds)

    @contextlib.contextmanager
    def noting_compilations(self) -> Iterator[None]:
        """Count what JAX compiles in this thread during the block, wherever that is, as compilation."""
        thread = threading.get_ident()

        def note(event: str, duration_secs: float, **_: str | int) -> None:
            if event in _COMPILE_EVENTS and threading.get_ident() == thread:
                self.move(duration_secs, COMPILATION)

        jax.monitoring.register_event_duration_secs_listener(note)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(note)

    def _settle(self) -> None:
        now = self._now()
        self._seconds[self._kinds[-1]] += now - self._since
        self._since = now


@dataclasses.dataclass
class Start:
    """One start of a run: it `began` (seconds since 1970) after `first_step` steps and has done those up to `step`.

    `flops` are those of a step on one device, None where they are not known.
    """

    began: float
    first_step: int
    step: int
    seconds: dict[str, float]
    device_kind: str
    flops: float | None = None


class RunTime:
    """The account of a run in `workdir`, whose current start goes on after `step`; the `first` process writes it."""

    def __init__(self, workdir: Path, clock: Clock, step: int, *, first: bool):
        self.clock = clock
        self._path = workdir / FILE
        self._first = first
        self._written = time.monotonic()
        earlier = read(self._path) if first else []
        self.starts = [*earlier, Start(time.time(), step, step, {}, jax.devices()[0].device_kind)]

    def note(self, step: int, flops: float | None) -> None:
        """Note that `step`, of that many FLOPs on a device, was dispatched, and write the account now and then."""
        self.starts[-1].flops = flops
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write(step)

    def write(self, step: int) -> None:
        """Write the account as it is after `step`; raise UserError where the disk fails."""
        self.starts[-1].step = step
        self.starts[-1].seconds = self.clock.seconds()
        self._written = time.monotonic()
        if self._first:
            entries = {"starts": [dataclasses.asdict(start) for start in self.starts], "total": summary(self.starts)}
            files.write(self._path, json.dumps(entries, indent=2) + "\n")

    def table(self) -> str:
        """Return the table of the account as it was last written."""
        return table(summary(self.starts), len(self.starts))


def read(path: Path) -> list[Start]:
    """Return the starts in an account; raise UserError when it is damaged."""
    try:
        return [Start(**entries) for entries in json.loads(path.read_text())["starts"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}, the account of the run's time, cannot be read; remove it to begin a new one."
        ) from error


def summary(starts: Sequence[Start]) -> dict[str, Any]:
    """Return {"seconds": {kind: sum}, "lost_steps", "goodput", "utilization"} of all starts of a run.

    Steps that the next start had to do again are lost; their share of a start's time for steps and input counts as
    `LOST`. Goodput is the time of the steps that were not lost, without waiting for input, over all time. The
    utilisation is that of the arithmetic of the devices during these steps, as a fraction of their peak in bfloat16,
    or None where the peak or the FLOPs of the step are not known.
    """
    total: dict[str, float] = dict.fromkeys((*KINDS, LOST), 0.0)
    lost_steps = 0
    peak_seconds = 0.0
    flops = 0.0
    known = True
    begins = [start.first_step for start in starts[1:]]
    for start, begin in zip(starts, [*begins, starts[-1].step], strict=True):
        done = start.step - start.first_step
        lost = max(0, start.step - max(begin, start.first_step))
        share = lost / done if done else 0.0
        lost_steps += lost
        for kind, seconds in start.seconds.items():
            lost_seconds = share * seconds if kind in (STEPS, INPUT) else 0.0
            total[kind] += seconds - lost_seconds
            total[LOST] += lost_seconds
        peak = peak_flops(start.device_kind)
        if done > lost:
            known = known and peak is not None and start.flops is not None
            peak_seconds += (1 - share) * start.seconds.get(STEPS, 0.0) * (peak or 0.0)
            flops += (done - lost) * (start.flops or 0.0)
    every = sum(total.values())
    return {
        "seconds": total,
        "lost_steps": lost_steps,
        "goodput": total[STEPS] / every if every else 0.0,
        "utilization": flops / peak_seconds if known and peak_seconds else None,
    }


def peak_flops(device_kind: str) -> float | None:
    """Return the peak of a device in bfloat16, FLOP/s, or None for a kind that is not known here."""
    matching = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(matching, key=len)] if matching else None


def table(total: dict[str, Any], starts: int) -> str:
    """Return a `summary` as text: a row for every kind that took time, then goodput and utilisation."""
    seconds = total["seconds"]
    every = sum(seconds.values())
    plural = "s" if starts > 1 else ""
    rows = [f"{'time of the run':<16} {'seconds':>10} {'%':>6}   ({starts} start{plural})"]
    rows += [
        f"{kind:<16} {spent:>10,.1f} {100 * spent / every:>6.1f}" for kind, spent in seconds.items() if spent > 0
    ]
    rows.append(f"{'all':<16} {every:>10,.1f} {100.0:>6.1f}")
    rows.append(f"goodput {100 * total['goodput']:.1f} %: steps that were not lost, without waiting for input")
    if total["lost_steps"]:
        rows.append(f"{total['lost_steps']:,} steps were lost with starts that were killed, and done again")
    if total["utilization"] is not None:
        rows.append(f"utilisation of the devices' bfloat16 arithmetic in steps: {100 * total['utilization']:.1f} %")
    return "\n".join(rows)


def program_flops(program: Any) -> float | None:
    """Return the FLOPs of a compiled `program` on one device by the compiler's count, or None if there is none.

    There is none for a function that is no compiled program itself, nor for a program with CUDA kernels of this
    package, for which the compiler counts nothing.
    """
    if not isinstance(program, jax.stages.Compiled):
        return None
    if jax.default_backend() == "gpu" and _PTX_CALL in (program.as_text() or ""):
        return None
    costs = program.cost_analysis()
    flops = (costs[0] if isinstance(costs, list) else costs or {}).get("flops", 0.0)
    return float(flops) if flops > 0 else None
