from pathlib import Path

import torch
import yaml
from edit_files import read_content, write_content

from erasure_lightning.runs.redaction import redact_paths, redact_secrets, write_redacted_edit


def test_paths_of_the_machine_are_cut_to_their_last_name():
    value = {
        "backbone": "/home/me/models/sd15",
        "files": ["~/list.csv", "here/list.csv"],
        "lr": 1e-4,
        "id": "owner/model",
    }
    assert redact_paths(value) == {
        "backbone": "sd15",
        "files": ["list.csv", "here/list.csv"],
        "lr": 1e-4,
        "id": "owner/model",
    }


def test_secrets_are_left_out_and_nothing_else():
    value = {
        "class_path": "x.Logger",
        "init_args": {"api_key": "s", "token": "s", "project": "p", "tokens": 3, "key": "s"},
    }
    left = {"api_key": None, "token": None, "project": "p", "tokens": 3, "key": None}
    assert redact_secrets([value]) == [{"class_path": "x.Logger", "init_args": left}]


def test_words_of_a_concept_named_key_are_no_secret():
    value = {"domain_words": {"key": ["latchkey"], "token": {"coin": ["chip"], "api_key": "s"}}}
    words = redact_secrets(value)["domain_words"]
    assert words == {"key": ["latchkey"], "token": {"coin": ["chip"], "api_key": None}}


def test_a_shared_edit_is_the_same_edit(tmp_path: Path):
    config = {"model": {"init_args": {"backbone": "/home/me/sd15", "lr": 1e-5}}}
    metadata = {"method": "x.Y", "backbone": "/home/me/sd15", "config": yaml.safe_dump(config)}
    write_content(tmp_path / "a", {"w": torch.arange(3.0)}, metadata)
    public = write_redacted_edit(tmp_path / "a", tmp_path / "b")
    tensors, written = read_content(tmp_path / "b")
    assert torch.equal(tensors["w"], torch.arange(3.0))
    assert (
        public
        == {"format": 2, "method": "x.Y", "backbone": "sd15"}
        == {k: v for k, v in written.items() if k != "config"}
    )
    assert yaml.safe_load(written["config"])["model"]["init_args"] == {
        "backbone": "sd15",
        "lr": 1e-5,
    }
    assert b"/home/me" not in (tmp_path / "b").read_bytes()
