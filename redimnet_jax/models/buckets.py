"""Static shapes for inputs of any size: a bounded number of compilations at a bounded waste."""

from collections.abc import Iterator, Sequence

# Lengths of audio are rounded up in steps of a quarter of a second at 16 kHz.
SAMPLES_STEP = 4000
# Sizes between a number and twice as many, where nothing else is asked for.
SIZES_AN_OCTAVE = 4


def round_up(count: int, sizes: int = SIZES_AN_OCTAVE) -> int:
    """Return the least of 1..8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ... that holds `count`: four sizes an octave.

    The waste is at most a quarter, and sizes up to N need no more than about 4 * log2(N) compilations. With
    another number of `sizes` an octave the waste is at most the fraction 1 / `sizes`.
    """
    step = 1
    while count > 2 * sizes * step:
        step *= 2
    return -(-count // step) * step


def samples(length: int, least: int = 1, sizes: int = SIZES_AN_OCTAVE) -> int:
    """Return the number of samples to pad a signal of `length` to, at least `least`, with `sizes` an octave."""
    return round_up(-(-max(length, least) // SAMPLES_STEP), sizes) * SAMPLES_STEP


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Group signals by padded length: yield (padded length, indices of at most `batch_size` signals)."""
    by_size: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_size.setdefault(samples(length), []).append(index)
    for size, indices in sorted(by_size.items()):
        for start in range(0, len(indices), batch_size):
            yield size, indices[start : start + batch_size]
