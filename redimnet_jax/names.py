r"""Names of utterances, speakers and files in text: any bytes, on one line, and equal when they are read back.

A plain name is written as it is. A name with control characters, line separators or bytes that are not UTF-8, an
empty one, and one that begins with `$'`, or begins or ends with white space, is written as a shell quotes it:
`$'caf\xe9.wav'`. Inside the quotes `\t`, `\n`, `\r`, `\\` and `\'` have their usual meaning, `\xHH` is a byte and
`\uHHHH` a character.
"""

import io
import re
import sys
from pathlib import Path

from redimnet_jax import addresses
from redimnet_jax.errors import UserError

BLANKS = " \t\r\v\f"  # what separates columns; other white space belongs to names
# Control characters, separators of lines and paragraphs, the byte order mark, and surrogates: Python's form of bytes
# that are not UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
# Inside quotes also whatever could end a column of a list.
_ESCAPED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\\\\'\",\\s]")
_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|[tnr\\'])")
_LETTERS = {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\\": "\\\\", "'": "\\'"}
_MEANINGS = {escape: character for character, escape in _LETTERS.items()}


def quote(name: str) -> str:
    """Return `name` as lists and tables hold it: one line, without tabs, that UTF-8 can encode."""
    plain = name and name == name.strip() and not name.startswith("$'") and not _UNSAFE.search(name)
    return name if plain else quoted(name)


def quoted(name: str) -> str:
    """Return the quoted form of any `name`, plain or not; it has no blanks, commas or double quotes."""
    return f"$'{_ESCAPED.sub(_escape, name)}'"


def unquote(text: str) -> str:
    """Return the name that `quote` or `quoted` wrote as `text`; raise UserError when the quotes are malformed."""
    if not text.startswith("$'"):
        return text
    body = text[2:-1]
    rest = _ESCAPE.sub("", body)
    if len(text) < 3 or not text.endswith("'") or "\\" in rest or "'" in rest:
        raise UserError(f"The name {text!r} begins with $' but is not quoted as in $'caf\\xe9.wav'; correct it.")
    return _ESCAPE.sub(_meaning, body)


def one_line(text: str) -> str:
    """Return `text` for people to read: what would break a line or cannot be encoded is shown as an escape."""
    return _UNSAFE.sub(_escape, text)


def normalised(path: str) -> str:
    """Return `path` without "." and repeated slashes; ".." stays, for a link may come before it."""
    if "//" not in path and "./" not in path and not path.endswith(("/", "/.")):
        return path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/" * path.startswith("/") + "/".join(parts)


def read_lines(path: str | Path, kind: str) -> list[bytes]:
    """Return the lines of a text file, apart by newlines alone, without a carriage return at their ends.

    Bytes, for names need not be UTF-8: see `decode`. `kind` is what an error calls the file, such as "The trial
    list". Raises UserError when the file cannot be read or is not text.
    """
    try:
        data = addresses.read(path)
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read ({error.strerror or error}); give a text file.") from error
    if b"\0" in data:
        raise UserError(f"{kind} {path} is not text in UTF-8 (it has a zero byte); give a text file.")
    return [line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]


def decode(data: bytes) -> str:
    """Return bytes of a list as text; each byte that is not UTF-8 becomes a surrogate, as in names of files."""
    return data.decode(errors="surrogateescape")


def show_any() -> None:
    """Lets standard output and error show what their encoding lacks as escapes, where they would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _escape(match: re.Match) -> str:
    character = match[0]
    code = ord(character)
    if character in _LETTERS:
        return _LETTERS[character]
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _meaning(match: re.Match) -> str:
    escape = match[0]
    if escape in _MEANINGS:
        return _MEANINGS[escape]
    code = int(escape[2:], 16)
    return chr(code + 0xDC00 if escape[1] == "x" and code >= 0x80 else code)
