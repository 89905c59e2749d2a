"""The folder of a run for the Hugging Face Hub: card, edit, exports and images; and its upload."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from PIL import Image

from erasure_lightning.backbones.sources import is_hub_id
from erasure_lightning.concepts.vocabulary import evenly_spaced
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.files.writing import EDIT_FILE, write_atomically
from erasure_lightning.report.card import HubContent, render_card
from erasure_lightning.report.edit_file import read_edit_file
from erasure_lightning.report.images import ImagePair
from erasure_lightning.report.public_edit import public_yaml, write_public_edits
from erasure_lightning.report.run_record import RunRecord, read_run_record
from erasure_lightning.runs.redaction import redact_secrets
from erasure_lightning.training.checkpoints import locate_checkpoint

#: The card, as the Hub names it.
HUB_CARD_FILE = "README.md"

#: Pairs of images in the gallery, at most.
_MAX_PAIRS = 12

#: A path that begins with a user's home.
_HOME = re.compile(r"(/home|/Users|[A-Za-z]:[\\/]+Users)[\\/]+\w|(?<![\w.])/root/\w")

#: The repository from which a card downloads the edit.
_DOWNLOAD = re.compile(r'(?:hf_hub|snapshot)_download\("([^"]*)"')

#: Files of plain text that may contain no path. Tokenizers' are lists of words.
_TEXTS = {".md", ".yaml", ".yml", ".json"}

#: Meaning of the Hub's responses, by HTTP status.
_REFUSALS = {
    401: "it found no account for the token; log in with `hf auth login`",
    403: "the token may not write there; use one with the permission to write",
    409: "the repository exists already, and is not overwritten; choose another name or delete it",
}


def write_hub_folder(
    run: Path,
    folder: Path,
    repository: str,
    exports: Mapping[str, Callable[[Path], object]] | None = None,
    *,
    with_gallery: bool = True,
) -> list[str]:
    """Write the files of a repository on the Hub; needs no account and no network.

    Paths of the machine and secrets are left out of the edit's metadata, of the card, and of the
    configs of exported models. Edits that the edit is based on are in it too. The folder appears
    once it is complete.

    Args:
        run: The run's folder, with a finished edit.
        folder: The new folder.
        repository: The repository that it is meant for, ``owner/name``.
        exports: By the name of a file or folder, what writes an export there.
            Names begin with the format.
        with_gallery: Whether to add images of the original and of the edited model.

    Returns:
        Sentences on what could not be read and is left out.

    Raises:
        ErasureError: If the repository's name is none, the folder exists, the run has no edit, an
            edit beneath it is not found, or an exported file holds a path of the machine.
    """
    require_hub_id(repository)
    record = read_run_record(run)
    if record.edit is None:
        locate_checkpoint(str(run), "push")  # without a checkpoint, it names another command
        raise ErasureError(
            f"A push needs a finished run; found no {EDIT_FILE} in {run}. Finish it with `erasure"
            f" fit --ckpt_path {shell_word(run)}`."
        )
    with _complete_or_absent(folder) as partial:
        source = run if run.is_file() else _edit_of(run)
        write_public_edits(source, partial)
        files = {
            name.partition(".")[0]: _export(write, partial, name)
            for name, write in (exports or {}).items()
        }
        gallery = _write_gallery(record.image_pairs, partial) if with_gallery else []
        public = _public_record(record, partial / EDIT_FILE)
        card = render_card(public, HubContent(repository, files, gallery))
        write_atomically(partial / HUB_CARD_FILE, card.encode(errors="replace"))
        _remove_origins(partial)
        _check_privacy(partial)
    return list(record.notes)


def upload_hub_folder(folder: Path, repository: str, *, private: bool = False) -> str:
    """Create a repository on the Hub and upload a folder of `write_hub_folder` to it.

    Args:
        folder: The folder.
        repository: The new repository, ``owner/name``.
        private: Whether only its owner can see it.

    Returns:
        The repository's address.

    Raises:
        ErasureError: If the folder is none of a push or was written for another repository, there
            is no network, or the Hub refuses.
    """
    require_hub_id(repository)
    for name in (HUB_CARD_FILE, EDIT_FILE):
        if not (folder / name).is_file():
            raise ErasureError(
                f"An upload needs a folder that `erasure push` wrote; found no {name} in {folder}."
            )
    card = (folder / HUB_CARD_FILE).read_text(encoding="utf-8", errors="replace")
    named = set(_DOWNLOAD.findall(card))
    if named and repository not in named:
        raise ErasureError(
            f"An upload to {repository} needs a card that names it; that of {folder} downloads from"
            f" {', '.join(sorted(named))}. Correct its {HUB_CARD_FILE}, or delete the folder, which"
            " is then written again."
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        url = api.create_repo(repository, private=private)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload the edit")
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = _REFUSALS.get(status, " ".join(str(error).split()))
        raise ErasureError(f"The Hub refused {repository} ({status}): {reason}.") from error
    except OSError as error:  # of the network, and a missing token
        raise _unreachable(repository, error) from error
    except Exception as error:  # httpx's errors of the network have no common class with requests'
        if not type(error).__module__.startswith(("httpx", "requests")):
            raise
        raise _unreachable(repository, error) from error
    return str(url)


def require_hub_id(repository: str) -> None:
    """Check the form of a repository's name.

    Raises:
        ErasureError: If it is not ``owner/name`` in the Hub's characters.
    """
    if not is_hub_id(repository):
        raise ErasureError(
            f"A push needs a repository OWNER/NAME of letters, digits, '-', '_' and '.'; found"
            f" {repository!r}."
        )


def _unreachable(repository: str, error: Exception) -> ErasureError:
    return ErasureError(
        f"{repository} could not be uploaded: {' '.join(str(error).split())}. The folder is"
        " complete; run the command again."
    )


def require_new_folder(folder: Path) -> None:
    """Raise if a folder to push exists."""
    if folder.is_file():
        raise ErasureError(
            f"erasure push needs a folder to write into; found the file {folder}. Choose another"
            " --run_dir."
        )
    if folder.exists():
        raise ErasureError(
            f"{folder} exists already, and is not overwritten: its card may have been edited."
            " Upload it with --upload, choose another --run_dir, or delete it."
        )


@contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    """A folder under a temporary name, which gets its own once it is complete.

    Raises:
        ErasureError: If it exists.
    """
    require_new_folder(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _edit_of(run: Path) -> Path:
    """The edit of a run's folder, or of the run that contains a folder of ``erasure test``."""
    return run / EDIT_FILE if (run / EDIT_FILE).is_file() else run.resolve().parent / EDIT_FILE


def _public_record(record: RunRecord, edit: Path) -> RunRecord:
    """The record of a run without secrets, with the summary of its public edit file."""
    return replace(
        record,
        edit=read_edit_file(edit),
        config=public_yaml(record.config),
        metadata=redact_secrets(record.metadata),
    )


def _export(write: Callable[[Path], object], folder: Path, name: str) -> str:
    """Write one format into a folder, and return the path of its file there.

    A whole pipeline becomes the folder itself: on the Hub only such a one can be loaded.
    """
    path = folder / name
    write(path)
    if not (path / "model_index.json").is_file():
        return path.relative_to(folder).as_posix()
    for part in path.iterdir():
        part.rename(folder / part.name)
    path.rmdir()
    return "."


def _write_gallery(pairs: Sequence[ImagePair], folder: Path) -> list[tuple[str, int, str, str]]:
    """Write images as PNG without their files' metadata."""
    rows = []
    for number, pair in enumerate(evenly_spaced(pairs, _MAX_PAIRS)):
        before, after = (f"images/{number:02}-{title}.png" for title in ("original", "edited"))
        (folder / "images").mkdir(exist_ok=True)
        for file, name in ((pair.before, before), (pair.after, after)):
            with Image.open(file) as image:
                image.convert("RGB").save(folder / name)
        rows.append((pair.prompt, pair.seed, before, after))
    return rows


def _remove_origins(folder: Path) -> None:
    """Remove the folders that the libraries note in the configs of the models they save."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "_name_or_path" in content:
            name = str(content.pop("_name_or_path"))
            if is_hub_id(name):
                content["_name_or_path"] = name
            write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _check_privacy(folder: Path) -> None:
    """Raise if a text or the header of a safetensors file holds a path of this machine."""
    own = [str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent)]
    own = [f"{path}/" for path in own if len(path) > 1]
    for path in sorted(folder.rglob("*")):
        text = _plain_text(path) if path.is_file() else ""
        home = _HOME.search(text)
        place = next((each for each in own if each in text), home and home[0])
        if place:
            raise ErasureError(
                f"A push needs files without paths of this machine; found {place!r} in"
                f" {path.relative_to(folder)}. Remove the path, and write the folder again."
            )


def _plain_text(path: Path) -> str:
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return file.read(size).decode(errors="replace")
    if path.suffix in _TEXTS:
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
