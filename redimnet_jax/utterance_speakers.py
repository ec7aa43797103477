"""Find the speaker of every utterance in a list, on which error rates and their intervals depend."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from redimnet_jax import names as name_forms
from redimnet_jax.errors import ArgumentError, UserError, shown

OPTIONS = "say who the speakers are with `utt2spk` or `speaker_pattern`"  # for an ArgumentError


class Labelled(Protocol):
    """Utterances of known speakers, such as a corpus."""

    @property
    def speakers(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class SpeakerRule:
    """How the user names speakers: by a table of utterances, or by a pattern whose one group is the speaker."""

    utt2spk: Mapping[str, str] | None = None
    utt2spk_path: str = ""
    pattern: re.Pattern | None = None


def rule(utt2spk: str | Path | None = None, pattern: str | None = None) -> SpeakerRule:
    """Return the rule of a file of lines `utterance speaker`, or of a regular expression with one group.

    Raises UserError when both are given or one of them is malformed.
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
    """Return the speaker of every utterance in a file of lines `utterance speaker`, the format of Kaldi.

    Columns are separated by a tab or by blanks; names may be quoted as by `names.quote`. Raises UserError naming the
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
    utterances: Sequence[str], rule: SpeakerRule, corpus: Labelled | None = None, source: str | Path = "the list"
) -> list[str]:
    """Return the speaker of each of `utterances`.

    The speaker comes from the first of these that is there: the table of the rule, the `corpus` that holds exactly
    these utterances, the pattern of the rule, and the first folder below those that all names have in common. Raises
    UserError, naming the `source` of the names, when an utterance has no speaker.
    """
    if rule.utt2spk is not None:
        return _by_table(utterances, rule.utt2spk, rule.utt2spk_path, source)
    if corpus is not None:
        return [corpus.speakers[label] for label in corpus.labels]
    if rule.pattern is not None:
        return _by_pattern(utterances, rule.pattern, source)
    return _by_folder(utterances, source)


def origin(rule: SpeakerRule, corpus: Labelled | None) -> str:
    """Return a phrase that says where `speakers_of` takes the speakers from."""
    if rule.utt2spk is not None:
        return f"the speakers in {rule.utt2spk_path}"
    if corpus is not None:
        return "the speakers of the corpus"
    return "the speakers by speaker_pattern" if rule.pattern is not None else "the speakers by folder"


def _by_table(utterances: Sequence[str], table: Mapping[str, str], path: str, source: str | Path) -> list[str]:
    normalised = {name_forms.normalised(name): speaker for name, speaker in table.items()}
    speakers = [table.get(name) or normalised.get(name_forms.normalised(name), "") for name in utterances]
    missing = [name for name, speaker in zip(utterances, speakers, strict=True) if not speaker]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of {len(utterances)} utterances of {source}, the first "
            f"{shown(missing[0])}; add them."
        )
    return speakers


def _by_pattern(utterances: Sequence[str], pattern: re.Pattern, source: str | Path) -> list[str]:
    matches = [pattern.search(name) for name in utterances]
    speakers = [(match[1] or "") if match else "" for match in matches]
    missing = [name for name, speaker in zip(utterances, speakers, strict=True) if not speaker]
    if missing:
        raise ArgumentError(
            f"`speaker_pattern` {shown(pattern.pattern)} finds no speaker in {len(missing)} of {len(utterances)} "
            f"names of {source}, the first {shown(missing[0])}; correct it."
        )
    return speakers


def _by_folder(utterances: Sequence[str], source: str | Path) -> list[str]:
    folders = [name_forms.normalised(name).split("/")[:-1] for name in utterances]
    common = len(os.path.commonprefix(folders))
    if all(len(parts) == common for parts in folders):
        common -= 1  # All names are in one folder, which is the only speaker's.
    speakers = [parts[common] if 0 <= common < len(parts) else "" for parts in folders]
    without = [name for name, speaker in zip(utterances, speakers, strict=True) if not speaker]
    if without:
        raise ArgumentError(
            f"{len(without)} of {len(utterances)} names of {source} have no folder of a speaker, the first "
            f"{shown(without[0])}; {OPTIONS}."
        )
    return speakers
