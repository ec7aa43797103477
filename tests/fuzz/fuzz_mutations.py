"""Damage to valid inputs: of bytes, of lines of text, of values in JSON, and of the instructions of a pickle."""

import copy
import random
from typing import Any

INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
# Of what pickles of checkpoints are made, and a few that they must not have.
INSTRUCTIONS = [bytes([code]) for code in b"()]}NlaesuRbq.0012h\x85\x86\x87\x88\x89\x94\x93\x81\x92\x95QrjcoiPM"]
INSTRUCTIONS += [
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"\x8a\xff",
    b"\x8b\xff",
]


def bytes_of(rng: random.Random, data: bytes) -> bytes:
    """Returns `data` after one to four changes: flips, cuts, numbers, blocks repeated or removed, noise."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not changed:
            break
        # Headers are where formats say how long they are.
        at = rng.randrange(min(len(changed), 128)) if rng.random() < 0.5 else rng.randrange(len(changed))
        length = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(changed) - at)
        kind = rng.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTERESTING) & ((1 << 8 * width) - 1)
            changed[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 3:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            changed[at : at + length] = rng.randbytes(length)
        else:
            other = rng.randrange(len(changed))
            changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


def text_of(rng: random.Random, data: bytes) -> bytes:
    """Returns lines of text after a change of their cells, or of their bytes."""
    if rng.random() < 0.3:
        return bytes_of(rng, data)
    lines = [line.split(b" ") for line in data.split(b"\n")]
    odd = [
        b"",
        b"\x00",
        "\u2028".encode(),
        b"\xff",
        b"\t",
        b",",
        b'"',
        b"\r",
        b"nan",
        b"inf",
        b"-1",
        b"1e999",
        b"9" * 5000,
    ]
    odd += ["\u00b2".encode(), "\u0661".encode(), b"../" * 50, b"a" * 300, b"/" * 300, b"a\\b", "\ufeff".encode()]
    for _ in range(rng.choice((1, 2, 5))):
        line = rng.choice(lines)
        at = rng.randrange(len(line) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            line.insert(at, rng.choice(odd))
        elif kind == 1 and at < len(line):
            line[at] = rng.choice(odd)
        elif kind == 2 and at < len(line):
            line[at] += rng.choice(odd)
        elif kind == 3 and at < len(line):
            del line[at]
        else:
            lines.append(copy.copy(rng.choice(lines)))
    return b"\n".join(map(b" ".join, lines))


def value_of(rng: random.Random, value: Any) -> Any:
    """Returns a copy of a JSON `value` with one to three of its parts replaced, removed, doubled or wrapped."""
    changed = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(changed))
        holder, key = rng.choice(places)
        if rng.random() < 0.1 and isinstance(holder, dict):
            holder[rng.choice(["", "x" * 300, "a\nb", "\ud800", "0"])] = holder[key]
        elif rng.random() < 0.15 and holder is not changed:
            del holder[key]
        else:
            holder[key] = _odd(rng, holder[key])
    return changed[0]


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def _odd(rng: random.Random, value: Any) -> Any:
    numbers = [0, -1, 1, 3, 7, 1000, 2**20, 2**31, 2**63, 10**30, 10**4000, -(10**400), 0.5, 1e-320, 1e308, -1e308]
    numbers += [float("nan"), float("inf"), -float("inf"), True, False]
    if isinstance(value, int | float) and abs(value) < 1e300 and rng.random() < 0.4:
        return rng.choice([value + 1, value - 1, -value, value * 2, value * 1000, float(value), str(value)])
    others = [None, "", "x", "x" * 100_000, "\ud800", [], {}, [[]], {"a": 1}, [1, 2], list(range(5000)), _deep(50)]
    return rng.choice(numbers if rng.random() < 0.5 else [*others, [value], [value] * 300])


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def program_of(rng: random.Random, program: bytes) -> bytes:
    """Returns a pickle with instructions put in, taken out, or moved, and now and then with damaged bytes."""
    changed = bytearray(program)
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(2, max(3, len(changed)))
        kind = rng.randrange(5)
        if kind == 0:
            changed[at:at] = rng.choice(INSTRUCTIONS)
        elif kind == 1:
            changed[at : at + 1] = rng.choice(INSTRUCTIONS)
        elif kind == 2:
            changed[at:at] = rng.choice(INSTRUCTIONS) * rng.choice((2, 70, 5000))
        elif kind == 3:
            other = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[other : other + rng.choice((2, 10, 40))]
        else:
            changed = bytearray(bytes_of(rng, bytes(changed)))
    return bytes(changed)
