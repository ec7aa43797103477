"""The speaker of every utterance of a list, which error rates and their intervals depend on."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from redimnet_jax import names as name_forms
from redimnet_jax.errors import ArgumentError, UserError, shown

if TYPE_CHECKING:
    from redimnet_jax.data.corpus import Corpus

OPTIONS = "say who the speakers are with `utt2spk` or `speaker_pattern`"  # for an ArgumentError


@dataclasses.dataclass(frozen=True)
class SpeakerRule:
    """What the user says of speakers: a table of utterances, or a pattern whose one group is the speaker."""

    utt2spk: Mapping[str, str] | None = None
    utt2spk_path: str = ""
    pattern: re.Pattern | None = None


def rule(utt2spk: str | Path | None = None, pattern: str | None = None) -> SpeakerRule:
    """Returns the rule of a file of lines `utterance speaker`, or of a regular expression with one group.

    Raises UserError when both are given, and when one of them is malformed.
    """
    if utt2spk and pattern:
        raise ArgumentError("`utt2spk` and `speaker_pattern` both define the speakers; give one of them.")
    if utt2spk:
        return SpeakerRule(utt2spk=read_utt2spk(utt2spk), utt2spk_path=str(utt2spk))
    if not pattern:
        return SpeakerRule()
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ArgumentError(
            f"`speaker_pattern` {shown(pattern)} is no regular expression ({error}); correct it."
        ) from error
    if compiled.groups != 1:
        raise ArgumentError(
            f"`speaker_pattern` {shown(pattern)} has {compiled.groups} groups but must have one, the speaker, as in "
            r"'(id\d+)'; correct it."
        )
    return SpeakerRule(pattern=compiled)


def read_utt2spk(path: str | Path) -> dict[str, str]:
    """Returns the speaker of every utterance in a file of lines `utterance speaker`, Kaldi's format.

    Columns are apart by a tab or by blanks; names may be quoted as by `names.quote`. Raises UserError naming the
    first line that has no speaker or contradicts an earlier one.
    """
    table: dict[str, str] = {}
    for number, line in enumerate(name_forms.read_lines(path, "The file of speakers"), 1):
        if not line.strip():
            continue
        separator = b"\t" if b"\t" in line.strip() else None
        cells = [name_forms.decode(cell.strip()) for cell in line.strip().rsplit(separator, 1)]
        if len(cells) < 2 or not all(cells):
            raise UserError(
                f"Line {number} of {path} reads {shown(name_forms.decode(line).strip())} but must be "
                "`utterance speaker`; correct it."
            )
        try:
            utterance, speaker = map(name_forms.unquote, cells)
        except UserError as error:
            raise UserError(f"Line {number} of {path} cannot be read: {error}") from error
        if table.setdefault(utterance, speaker) != speaker:
            raise UserError(
                f"Line {number} of {path} gives {shown(utterance)} the speaker {shown(speaker)} but an earlier line "
                f"{shown(table[utterance])}; correct one of them."
            )
    if not table:
        raise UserError(f"The file of speakers {path} is empty; give lines `utterance speaker`.")
    return table


def speakers_of(
    utterances: Sequence[str], by: SpeakerRule, corpus: "Corpus | None" = None, source: str | Path = "the list"
) -> list[str]:
    """Returns the speaker of each of `utterances`.

    By, in this order, the rule's table, the `corpus` that holds exactly these utterances, the rule's pattern, or the
    first folder below those that all names have in common. Raises UserError, naming the `source` of the names, when
    that leaves out an utterance.
    """
    if by.utt2spk is not None:
        return _by_table(utterances, by, source)
    if corpus is not None:
        return [corpus.speakers[label] for label in corpus.labels]
    if by.pattern is not None:
        return _by_pattern(utterances, by.pattern, source)
    return _by_folder(utterances, source)


def origin(by: SpeakerRule, corpus: "Corpus | None") -> str:
    """Returns what `speakers_of` takes the speakers from, as a sentence says it."""
    if by.utt2spk is not None:
        return f"the speakers in {by.utt2spk_path}"
    if corpus is not None:
        return "the speakers of the corpus"
    return "the speakers by speaker_pattern" if by.pattern is not None else "the speakers by folder"


def _by_table(utterances: Sequence[str], by: SpeakerRule, source: str | Path) -> list[str]:
    forms = {name_forms.normalised(name): speaker for name, speaker in by.utt2spk.items()}
    found = [by.utt2spk.get(name) or forms.get(name_forms.normalised(name)) for name in utterances]
    missing = [name for name, speaker in zip(utterances, found, strict=True) if speaker is None]
    if missing:
        raise UserError(
            f"{by.utt2spk_path} lacks {len(missing)} of {len(utterances)} utterances of {source}, the first "
            f"{shown(missing[0])}; add them."
        )
    return found


def _by_pattern(utterances: Sequence[str], pattern: re.Pattern, source: str | Path) -> list[str]:
    matches = [pattern.search(name) for name in utterances]
    found = [match[1] if match else None for match in matches]
    missing = [name for name, speaker in zip(utterances, found, strict=True) if not speaker]
    if missing:
        raise ArgumentError(
            f"`speaker_pattern` {shown(pattern.pattern)} finds no speaker in {len(missing)} of {len(utterances)} "
            f"names of {source}, the first {shown(missing[0])}; correct it."
        )
    return found


def _by_folder(utterances: Sequence[str], source: str | Path) -> list[str]:
    folders = [name_forms.normalised(name).split("/")[:-1] for name in utterances]
    common = len(os.path.commonprefix(folders))
    if all(len(parts) == common for parts in folders):
        common -= 1  # Every name is of one folder: that of the only speaker, unless the labels say otherwise.
    found = [parts[common] if 0 <= common < len(parts) else "" for parts in folders]
    without = [name for name, speaker in zip(utterances, found, strict=True) if not speaker]
    if without:
        raise ArgumentError(
            f"{len(without)} of {len(utterances)} names of {source} have no folder of a speaker, the first "
            f"{shown(without[0])}; {OPTIONS}."
        )
    return found
