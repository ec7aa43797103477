"""Trials: which pairs of utterances are compared, and which of them are of one speaker."""

import csv
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from redimnet_jax import files, utterance_speakers
from redimnet_jax import names as name_forms
from redimnet_jax.errors import UserError, shown

LABELS = {"1": True, "0": False, "target": True, "nontarget": False, "non-target": False}


@dataclasses.dataclass(frozen=True)
class Trials:
    """Pairs of utterances. Trial i compares names[left[i]] with names[right[i]].

    `names`: every utterance once, in order of first use. `left`, `right`: int32 (trials,). `labels`: bool (trials,),
    True for a target trial (one speaker).
    """

    names: list[str]
    left: np.ndarray
    right: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def from_pairs(left: list[str], right: list[str], labels: Iterable[bool]) -> Trials:
    """Trials from the names of both sides, one pair a trial."""
    number = {name: index for index, name in enumerate(dict.fromkeys(left) | dict.fromkeys(right))}
    lookup = number.__getitem__
    return Trials(
        list(number),
        np.fromiter(map(lookup, left), np.int32, len(left)),
        np.fromiter(map(lookup, right), np.int32, len(right)),
        np.fromiter(labels, bool, len(left)),
    )


def read(path: str | Path) -> Trials:
    """Read a trial list: a trial a line, `1 a b` (VoxCeleb) or `a b target`, columns apart by blanks, tabs or commas.

    Labels are 1, 0, target, nontarget or non-target in any case. With commas (and CSV quotes) or tabs, names may hold
    blanks, and a first line without a label is a header. Empty lines are skipped. Names may have any bytes, and
    may be quoted as by `names.quote`. Raises UserError naming the first line that does not fit.
    """
    path = Path(path)
    lines = name_forms.read_lines(path, "The trial list")
    numbers = [number for number, line in enumerate(lines, 1) if line and not line.isspace()]
    if not numbers:
        raise UserError(f"The trial list {path} is empty; give lines such as '1 a.wav b.wav'.")
    if len(numbers) < len(lines):
        lines = [lines[number - 1] for number in numbers]
    try:
        cells, widths = _cells(lines)
    except csv.Error as error:
        raise UserError(
            f"The trial list {path} is no table of columns apart by commas ({error}); correct it."
        ) from error
    if len(widths) != len(lines):
        raise UserError(f"The trial list {path} has a quotation mark that its line does not close; correct the line.")
    if widths.count(3) < len(widths):
        wrong = next(index for index, width in enumerate(widths) if width != 3)
        raise UserError(
            f"Line {numbers[wrong]} of {path} has {widths[wrong]} columns but a trial has three, a label and two "
            "utterances; correct the line."
        )
    delimited = b"\t" in lines[0] or b"," in lines[0]
    if delimited:
        cells = [cell.strip(name_forms.BLANKS) for cell in cells]
        if _is_header(cells[:3], cells[3:6]):
            cells, numbers = cells[3:], numbers[1:]
    first, middle, last = cells[0::3], cells[1::3], cells[2::3]
    labels_first, labels_last = _labels(first), _labels(last)
    if labels_first is not None and labels_last is not None:
        raise UserError(f"Both the first and the last column of {path} look like labels; rename the utterances.")
    if labels_first is not None:
        return _unquoted(middle, last, labels_first, numbers, path)
    if labels_last is not None:
        return _unquoted(first, middle, labels_last, numbers, path)
    column = first if first[0].lower() in LABELS else last
    wrong = next(index for index, cell in enumerate(column) if cell.lower() not in LABELS)
    raise UserError(
        f"Line {numbers[wrong]} of {path} has the label {shown(column[wrong])} but labels are 1, 0, target or "
        "nontarget, in the first or the last column of every line; correct the line."
    )


def write(trials: Trials, path: str | Path) -> None:
    """Write a list that `read` gives back, in VoxCeleb's form, whole or not at all.

    Columns are apart by tabs if a name has a blank or a comma; names are written as by `names.quote`, and so are
    those that could be taken for labels. Raises UserError where it cannot be written.
    """
    shown = [name_forms.quoted(name) if name.lower() in LABELS else name_forms.quote(name) for name in trials.names]
    separator = "\t" if any(" " in name or "," in name for name in shown) else " "
    text = "".join(
        f"{label}{separator}{shown[left]}{separator}{shown[right]}\n"
        for label, left, right in zip(
            trials.labels.astype(int).tolist(), trials.left.tolist(), trials.right.tolist(), strict=True
        )
    )
    files.write(path, text)


def generate(
    corpus,
    *,
    count: int,
    seed: int = 0,
    sexes: Mapping[str, str] | None = None,
    cross_session: bool = False,
) -> Trials:
    """`count` trials of a `Corpus`, half of them target trials, no pair twice and none of an utterance with itself.

    Every utterance takes part about equally often. `sexes` (speaker -> sex) keeps non-target trials within one sex;
    `cross_session` keeps target trials to utterances of different sessions. The same seed gives the same trials.
    Raises UserError where the corpus has too few such pairs.
    """
    if count < 2 or count % 2:
        raise UserError(f"count is {count} but must be an even number of trials, at least 2.")
    speakers = np.asarray(corpus.labels, np.int64)
    sessions = np.asarray(corpus.sessions, np.int64)
    if cross_session and (sessions < 0).any():
        raise UserError("Trials across sessions need a corpus whose layout has sessions; leave cross_session out.")
    groups = np.zeros(len(speakers), np.int64)
    if sexes is not None:
        unknown = [speaker for speaker in corpus.speakers if speaker not in sexes]
        if unknown:
            raise UserError(
                f"The table of sexes lacks {len(unknown)} of {len(corpus.speakers)} speakers, the first "
                f"{shown(unknown[0])}; add them."
            )
        kinds = {kind: number for number, kind in enumerate(sorted({sexes[s] for s in corpus.speakers}))}
        groups = np.array([kinds[sexes[s]] for s in corpus.speakers], np.int64)[speakers]
    rng = np.random.default_rng(seed)
    half = count // 2
    targets = _pairs(
        speakers, half, rng, lambda a, b: sessions[a] != sessions[b] if cross_session else np.ones(len(a), bool)
    )
    nontargets = _pairs(groups, half, rng, lambda a, b: speakers[a] != speakers[b])
    for kind, pairs in (("target", targets), ("non-target", nontargets)):
        if pairs.shape[1] < half:
            raise UserError(
                f"The corpus has only {pairs.shape[1]} of the {half} {kind} trials asked for; ask for at most "
                f"{2 * pairs.shape[1]} trials."
            )
    used, indices = np.unique(np.concatenate([targets, nontargets], axis=1), return_inverse=True)
    left, right = indices.reshape(2, count).astype(np.int32)
    return Trials([corpus.name(int(i)) for i in used], left, right, np.arange(count) < half)


def speaker_of_path(name: str) -> str:
    """Return the speaker of an utterance named as in VoxCeleb, `speaker/session/file`: the first component.

    Of a whole list, `utterance_speakers.speakers_of` leaves out what all names have in common.
    """
    speaker, slash, _ = name_forms.normalised(name).partition("/")
    if not speaker or not slash:
        raise UserError(
            f"The name {shown(name)} does not begin with its speaker's folder; give the speaker of every utterance."
        )
    return speaker


def speakers(
    trials: Trials, speaker_of: Callable[[str], str] | Mapping[str, str] | None = None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the speakers' names, and the number of each trial's left and right speaker, int32 (trials,).

    `speaker_of` is a function or a mapping from an utterance's name; None is the folder, see `utterance_speakers`.
    Raises UserError for an unknown utterance.
    """
    if isinstance(speaker_of, Mapping):
        unknown = [name for name in trials.names if name not in speaker_of]
        if unknown:
            raise UserError(
                f"The speaker of {len(unknown)} of {len(trials.names)} utterances is unknown, the first "
                f"{shown(unknown[0])}; add them to the mapping."
            )
        speaker_of = speaker_of.__getitem__
    if speaker_of is None:
        of = utterance_speakers.speakers_of(trials.names, utterance_speakers.rule(), source="the trials")
    else:
        of = [speaker_of(name) for name in trials.names]
    number = {name: index for index, name in enumerate(dict.fromkeys(of))}
    index = np.fromiter(map(number.__getitem__, of), np.int32, len(of))
    return list(number), index[trials.left], index[trials.right]


def check(
    trials: Trials,
    *,
    known: Collection[str] | None = None,
    training_speakers: Collection[str] | None = None,
    speaker_of: Callable[[str], str] | Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return what is wrong with a list: kind -> one sentence; empty if nothing is.

    "missing": utterances not among `known`. "one class": no target or no non-target trials. "self": an utterance
    compared with itself. "duplicate": a pair, in either order, more than once. "shared": speakers that are also
    `training_speakers`, by `speaker_of` (see `speakers`), and then "label": labels at odds with the speakers.
    """
    problems = {}
    if known is not None:
        # A set makes a million look-ups quick whatever was given.
        known = known if isinstance(known, set | frozenset | Mapping) else set(known)
        missing = [name for name in trials.names if name not in known]
        if missing:
            problems["missing"] = (
                f"{len(missing)} of {len(trials.names)} utterances of the trial list do not exist, the first "
                f"{shown(missing[0])}; check the audio root or leave their trials out."
            )
    targets = int(trials.labels.sum())
    if targets in (0, len(trials)):
        only = "target" if targets else "non-target"
        problems["one class"] = (
            f"All {len(trials)} trials of the list are {only} trials; error rates need both classes."
        )
    # One file may have several names, such as "a.wav" and "./a.wav".
    number: dict[str, int] = {}
    same = np.array([number.setdefault(name_forms.normalised(name), i) for i, name in enumerate(trials.names)], int)
    left, right = same[trials.left], same[trials.right]
    itself = left == right
    if itself.any():
        name = trials.names[trials.left[np.argmax(itself)]]
        problems["self"] = (
            f"{int(itself.sum())} of {len(trials)} trials compare an utterance with itself, the first {shown(name)}; "
            "leave them out."
        )
    low, high = np.minimum(left, right), np.maximum(left, right)
    pairs = np.sort(low.astype(np.int64) * len(trials.names) + high)
    repeated = pairs[1:][pairs[1:] == pairs[:-1]]
    if len(repeated):
        first, second = (trials.names[i] for i in divmod(int(repeated[0]), len(trials.names)))
        problems["duplicate"] = (
            f"{len(repeated)} of {len(trials)} trials repeat an earlier pair, such as {shown(first)} with "
            f"{shown(second)}; leave them out."
        )
    if training_speakers is not None:
        names, left, right = speakers(trials, speaker_of)
        shared = sorted(set(names).intersection(training_speakers))
        if shared:
            problems["shared"] = (
                f"{len(shared)} of {len(names)} speakers of the trial list are training speakers too, the first "
                f"{shown(shared[0])}; leave them out of one of the two."
            )
        odd = (left == right) != trials.labels
        if odd.any():
            index = int(np.argmax(odd))
            problems["label"] = (
                f"{int(odd.sum())} of {len(trials)} labels are at odds with the speakers, the first that of "
                f"{shown(trials.names[trials.left[index]])} with "
                f"{shown(trials.names[trials.right[index]])}; correct the list."
            )
    return problems


def _unquoted(left: list[str], right: list[str], labels: list[bool], numbers: list[int], path: Path) -> Trials:
    """Return the trials of the names in two columns, quoted where need be, of the lines `numbers` of `path`."""
    if not any(name.startswith("$'") for side in (left, right) for name in side):
        return from_pairs(left, right, labels)
    plain: list[list[str]] = []
    for side in (left, right):
        plain.append([])
        for number, name in zip(numbers, side, strict=True):
            try:
                plain[-1].append(name_forms.unquote(name))
            except UserError as error:
                raise UserError(f"Line {number} of {path} cannot be read: {error}") from error
    return from_pairs(plain[0], plain[1], labels)


def _cells(lines: list[bytes]) -> tuple[list[str], list[int]]:
    """Return the cells of all lines in one list, and how many each line has; the first line shows the separator.

    A list for every line of a million would keep the garbage collector busy for longer than the reading takes.
    """
    if b"," in lines[0] and b"\t" not in lines[0]:
        cells, widths = [], []
        for row in csv.reader(map(name_forms.decode, lines), skipinitialspace=True):
            cells += row
            widths.append(len(row))
        return cells, widths
    # As bytes, columns end at blanks of ASCII alone; others belong to names.
    separator = b"\t" if b"\t" in lines[0] else None
    cells = (separator or b" ").join(lines).split(separator)
    return name_forms.decode(b"\n".join(cells)).split("\n"), [len(line.split(separator)) for line in lines]


def _is_header(first: list[str], second: list[str]) -> bool:
    """Return True when the first row has no label, or has a word where the second row has 0 or 1."""
    first_words = {cell.lower() for cell in first}
    second_words = {cell.lower() for cell in second}
    numbers = {"0", "1"}
    without_label = not first_words & LABELS.keys()
    return bool(second) and (without_label or bool(second_words & numbers and not first_words & numbers))


def _labels(column: list[str]) -> list[bool] | None:
    """Return the column as labels, or None when it has another word."""
    words = set(column)
    if any(word.lower() not in LABELS for word in words):
        return None
    meaning = {word: LABELS[word.lower()] for word in words}
    return [meaning[word] for word in column]


def _pairs(
    groups: np.ndarray, count: int, rng: np.random.Generator, allowed: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """At most `count` different pairs (2, pairs) of different members of one group (members,) that are `allowed`.

    The members of a group stand on a circle in random order; round r pairs each with the one r places on. Every
    round uses a member twice, and the rounds up to half the circle give every pair once.
    """
    circle = rng.permutation(len(groups))
    circle = circle[np.argsort(groups[circle], kind="stable")]
    _, start, size = np.unique(groups[circle], return_index=True, return_counts=True)
    start, size = np.repeat(start, size), np.repeat(size, size)
    place = np.arange(len(groups)) - start
    blocks, total = [np.empty((2, 0), np.int64)], 0
    for step in range(1, int(size.max(initial=0)) // 2 + 1):
        # At half an even circle, the second half would repeat the first.
        once = (2 * step < size) | ((2 * step == size) & (place < step))
        a, b = circle[once], circle[(start + (place + step) % size)[once]]
        ok = allowed(a, b)
        pairs = np.stack([a[ok], b[ok]])
        if total + pairs.shape[1] > count:
            pairs = pairs[:, rng.choice(pairs.shape[1], count - total, replace=False)]
        blocks.append(pairs)
        total += pairs.shape[1]
        if total == count:
            break
    return np.concatenate(blocks, axis=1)
