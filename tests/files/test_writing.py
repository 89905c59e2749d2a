import os
from pathlib import Path

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
