import os
from pathlib import Path

import pytest

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically


def test_writers_of_one_process_number_do_not_meet(tmp_path, monkeypatch):
    """As in two containers that share a folder."""
    path = tmp_path / "score.json"
    sync = os.fsync

    def meanwhile(descriptor):
        monkeypatch.setattr(os, "fsync", sync)
        write_atomically(path, b"the other's")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomically(path, b"mine")
    assert path.read_bytes() == b"mine"
    assert [entry.name for entry in Path(tmp_path).iterdir()] == ["score.json"]


def test_a_pipe_is_not_replaced(tmp_path):
    """As root a file would take the place of /dev/null."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ErasureError, match="Could not write .*pipe: it is no regular file"):
        write_atomically(path, b"new")
    assert path.is_fifo()


def test_an_empty_name_is_refused():
    with pytest.raises(ErasureError, match=r"Could not write \.: it is no regular file"):
        write_atomically(Path(""), b"new")


def test_an_interruption_leaves_no_half_written_file(tmp_path, monkeypatch):
    def interrupted(descriptor):
        assert len(list(tmp_path.iterdir())) == 2  # the control: there is one meanwhile
        raise KeyboardInterrupt

    path = tmp_path / "edit.safetensors"
    write_atomically(path, b"before")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"after")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"before"
