"""Reads text files of users, in the encoding of their byte order mark."""

import codecs
from pathlib import Path

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word

#: Byte order marks and encodings; UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """A file's text: UTF-8, or the encoding of its byte order mark.

    Raises:
        ErasureError: If it cannot be read, or has another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ErasureError(f"{path} could not be read: {error.strerror}.") from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ErasureError(_encoding_message(path, content, error.start)) from error
    if "\0" in text:
        raise ErasureError(
            f"{path} needs to be UTF-8; found zero bytes, as in UTF-16 without its mark."
            " Convert it."
        )
    return text


def _encoding_message(path: Path, content: bytes, place: int) -> str:
    """The error for a text that is not UTF-8, with the line read as Windows-1252 as a guess."""
    line = content[content.rfind(b"\n", 0, place) + 1 :].split(b"\n", 1)[0].strip()
    number = content.count(b"\n", 0, place) + 1
    shown = line[:60].decode("cp1252", errors="replace")
    return (
        f"{path} needs to be UTF-8; found another encoding at byte {place}, in line {number}: in"
        f" Windows-1252 it reads {shown!r}. If that is right, save it as UTF-8, as by `iconv -f"
        f" CP1252 -t UTF-8 {shell_word(path)}`."
    )


def read_prompts_file(path: str, owner: str, otherwise: str = "") -> list[str]:
    """The lines of a text file, without empty ones and comments, which begin with ``#``.

    Args:
        path: The file.
        owner: What needs it, for errors.
        otherwise: What else could be given, for errors.

    Raises:
        ErasureError: If the file is missing, empty or of another encoding (`read_text`).
    """
    try:
        text = read_text(Path(path))
    except ErasureError as error:
        raise ErasureError(f"{owner} needs {otherwise}a text file of prompts; {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ErasureError(
            f"{owner} needs at least one prompt; {path} holds none. Lines that begin with # are"
            " comments."
        )
    return prompts
