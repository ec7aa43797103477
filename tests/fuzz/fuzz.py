"""Damages small valid files of every kind and reads them; anything but a result or one sentence is a failure.

    python tests/fuzz/fuzz.py --count=1000 --seed=1 --target="checkpoint zip"

Mutant i of a target depends on the seed, the target and i alone. What fails is kept, with its path and its seed.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.append(str(Path(__file__).parents[1] / "helpers"))

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from fuzz_targets import TARGETS, Target  # noqa: E402

from redimnet_jax.errors import UserError  # noqa: E402

SECONDS = 5.0  # of a processor, a mutant: some build a network, and a machine may be busy
MEGABYTES = 400  # that the process may grow by, a mutant
LONGEST_MESSAGE = 2000  # characters beside the path
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn", "socket.connect")

_watching = False


class Harm(BaseException):
    """A mutant does what nothing may: run a command, or take too long. No `except Exception` catches it."""


def _watch(event: str, _arguments: tuple) -> None:
    if _watching and event in _RUNS:
        raise Harm(f"it caused {event}")


sys.addaudithook(_watch)


def _late(*_: object) -> None:
    raise Harm(f"it takes more than {SECONDS} s")


def failure_of(target: Target, path: Path) -> str | None:
    """Reads the mutant at `path`; returns what is wrong with how that went, or None."""
    global _watching
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    _watching = True
    try:
        target.read(path)
    except UserError as error:
        text = str(error)
        if not text.endswith(".") or "\n" in text or len(text) > LONGEST_MESSAGE + 3 * len(str(path)):
            return f"not one short sentence: {text[:300]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
    finally:
        _watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"it took {grown:.0f} MB" if grown > MEGABYTES else None


def failures(name: str, count: int, seed: int, keep: Path) -> Iterator[str]:
    """Reads `count` mutants of the target `name`; yields what is wrong with each that fails, after keeping it."""
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            path = target.make(random.Random(f"{seed} {name} {number}"), Path(folder))
            wrong = failure_of(target, path)
            if wrong is None:
                continue
            kept = keep / f"{name.replace(' ', '-')}-{seed}-{number}{path.suffix}"
            keep.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, kept, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, kept)
            yield f"{name}, seed {seed}, mutant {number}, kept as {kept}: {wrong}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="mutants a target (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="(default: a random one)")
    parser.add_argument(
        "--target", action="append", choices=TARGETS, help="may be given several times (default: all)"
    )
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="(default: %(default)s)")
    args = parser.parse_args()
    print(f"seed {args.seed}")
    failed = 0
    for name in args.target or TARGETS:
        start, found = time.process_time(), 0
        for text in failures(name, args.count, args.seed, args.keep):
            print(text)
            found += 1
        print(f"{name}: {found} of {args.count} failed, {time.process_time() - start:.0f} s", flush=True)
        failed += found
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
