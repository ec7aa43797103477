"""What a table says of speakers: their sex, for trials between speakers of one sex."""

from pathlib import Path

from redimnet_jax import names
from redimnet_jax.errors import UserError, shown


def read_sexes(path: str | Path) -> dict[str, str]:
    """Speaker to "m" or "f", from VoxCeleb's `vox1_meta.csv` and `vox2_meta.csv` or LibriSpeech's `SPEAKERS.TXT`.

    Any table will do whose columns are separated by tabs, commas or |, the speaker first, with a heading "gender" or
    "sex". Raises UserError with file and line where it is not so.
    """
    path = Path(path)
    separator, column, sexes = "", -1, {}
    for number, data in enumerate(names.read_lines(path, "The table of speakers"), 1):
        line = names.decode(data)
        if column < 0:
            separator = next((mark for mark in "|\t," if mark in line), "")
            heads = [cell.strip().lower() for cell in line.lstrip(";").split(separator)] if separator else []
            column = next((i for i, head in enumerate(heads) if head in ("gender", "sex")), -1)
            continue
        if not line.strip() or line.startswith(";"):
            continue
        cells = [cell.strip(names.BLANKS) for cell in line.split(separator)]
        speaker = names.unquote(cells[0])
        sex = cells[column].lower() if column < len(cells) else ""
        if not speaker or sex not in ("m", "f", "male", "female"):
            raise UserError(
                f"{path}:{number} names no speaker and sex (m or f) but {shown(line.strip())}; correct it."
            )
        if sexes.setdefault(speaker, sex[0]) != sex[0]:
            raise UserError(
                f"{path}:{number} contradicts an earlier line on the speaker {names.quote(speaker)}; correct it."
            )
    if not sexes:
        raise UserError(f"{path} has no column headed gender or sex with rows below it; give a table of speakers.")
    return sexes
