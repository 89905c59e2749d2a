"""`erasure push`: the folder for the Hub, what is not in it, and the upload to a fake Hub."""

import json
import shutil
import socket

import httpx
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from original_layouts import original_tensors, write_original
from PIL import Image
from report_runs import make_run
from safetensors import safe_open
from safetensors.torch import load_file

from erasure_lightning import apply_edit, erase
from erasure_lightning.__main__ import main
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.errors import ErasureError
from erasure_lightning.report.hub_folder import upload_hub_folder, write_hub_folder

SECRETS = ("zoe", "hf_secret", "box-nine", "/work", "/tmp", "/home")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that was made in the home of a user, with a token in its config."""
    home = tmp_path / "home" / "zoe"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(socket, "gethostname", lambda: "box-nine")
    folder = make_run(home / "uce-cat", backbone=f"{home}/models/sd")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"hf_token": "hf_secret", "run_dir": str(folder), "note": f"see {home}/notes.txt"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def push(capsys, *argv):
    code = main(["push", *map(str, argv)])
    output = capsys.readouterr()
    return code, output.out, output.err


def error(capsys, *argv):
    code, _, lines = push(capsys, *argv)
    assert code == 2
    assert lines.count("\n") == 1
    return lines


def contents(folder):
    """All that a reader of a folder sees: names, texts, headers, metadata of images."""
    for path in folder.rglob("*"):
        yield path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                yield str(file.metadata())
        elif path.suffix == ".png":
            yield str(Image.open(path).info)
        elif path.is_file():
            yield path.read_text()


def saved(text="weights"):
    """A stand-in for an export: a file."""

    def write(path):
        path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
        return path

    return write


def test_a_push_writes_a_folder_without_network_and_account(run, capsys, no_network):
    code, output, _ = push(capsys, run, "zoe-k/no-cats")
    assert code == 0
    assert "Nothing was uploaded" in output
    folder = run / "hub"
    assert {path.name for path in folder.iterdir()} == {"README.md", "edit.safetensors", "images"}
    assert len(list((folder / "images").iterdir())) == 8
    card = ModelCard((folder / "README.md").read_text())
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "text-to-image"
    assert {"concept-erasure", "uce"} <= set(card.data.tags)
    assert card.data.license is None
    assert 'hf_hub_download("zoe-k/no-cats", "edit.safetensors")' in card.text
    assert "| a cat | 0 | ![original](images/00-original.png)" in card.text


def test_nothing_of_the_machine_is_in_it(run):
    assert any("zoe" in text for text in contents(run))  # the control
    write_hub_folder(run, run / "hub", "owner/no-cats")
    texts = list(contents(run / "hub"))
    assert not [(word, text) for word in SECRETS for text in texts if word in text]


def test_exports_are_in_it_and_on_its_card(run):
    def pipeline(path):
        (path / "unet").mkdir(parents=True)
        (path / "model_index.json").write_text(json.dumps({"_name_or_path": str(run), "a": 1}))
        (path / "unet" / "config.json").write_text("{}")
        return path

    exports = {"lora.safetensors": saved(), "diffusers": pipeline}
    write_hub_folder(run, run / "hub", "owner/x", exports, with_gallery=False)
    assert json.loads((run / "hub" / "model_index.json").read_text()) == {"a": 1}
    text = (run / "hub" / "README.md").read_text()
    assert "load_lora_weights('owner/x', weight_name='lora.safetensors')" in text
    assert "DiffusionPipeline.from_pretrained('owner/x')" in text
    assert not (run / "hub" / "images").exists()


def test_an_export_with_a_path_is_refused_and_no_folder_is_left(run):
    exports = {"lora.safetensors": saved(json.dumps({"base": f"{run}/base"}))}
    with pytest.raises(ErasureError, match=r"without paths of this machine; found .*in lora"):
        write_hub_folder(run, run / "hub", "owner/x", exports)
    assert not [path.name for path in run.iterdir() if "hub" in path.name]


def test_the_users_checkpoint_with_the_edit_is_pushed(run, tmp_path, capsys):
    TinyBackbone().save(tmp_path / "model")
    pipeline = TinyBackbone().to_pipeline()
    source = write_original(original_tensors(pipeline), tmp_path / "mine.safetensors")
    edit = erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False)
    edit.metadata["backbone"] = str(tmp_path / "model")
    edit.save(run / "edit.safetensors")
    formats = ["--to", "checkpoint", "diff", "--no_gallery"]
    capsys.readouterr()
    assert "--checkpoint FILE" in error(capsys, run, "a/b", *formats)
    assert "Did you mean 'lora'" in error(capsys, run, "a/b", "--to", "loar")
    none = ("--checkpoint", tmp_path / "none.safetensors")
    assert "No checkpoint at" in error(capsys, run, "a/b", *formats, *none)
    assert not [path.name for path in run.iterdir() if "hub" in path.name]
    code, _, _ = push(capsys, run, "a/b", *formats, "--checkpoint", source)
    assert code == 0
    names = {"README.md", "edit.safetensors", "checkpoint.safetensors", "diff.safetensors"}
    assert {path.name for path in (run / "hub").iterdir()} == names
    written, expected = load_file(run / "hub/checkpoint.safetensors"), original_tensors(pipeline)
    assert all(torch.allclose(written[name], expected[name], atol=1e-6) for name in expected)
    card = (run / "hub" / "README.md").read_text()
    assert "`checkpoint.safetensors`: a single file of the whole edited model" in card


def linked_copy(folder, parent):
    """A folder of links into a store, as huggingface_hub's cache is."""
    (parent / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.rglob("*.safetensors"))):
        link = parent / "snapshot" / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(shutil.copy(file, parent / "blobs" / str(number)))
    return parent / "snapshot"


def test_a_push_brings_the_edits_beneath_along(run, tmp_path, capsys):
    pipeline = TinyBackbone().to_pipeline()
    (tmp_path / "home").mkdir(exist_ok=True)
    runs = [tmp_path / "home" / name for name in ("first", "second")]
    for folder, name in zip(runs, ("house", "dog"), strict=True):
        edit = erase(pipeline, name, method="UCE", anchor="bird", progress_bar=False)
        edit.remove()
        edit.save(folder / "edit.safetensors")
        apply_edit(folder, pipeline).strength = 0.5
    edit = erase(pipeline, "cat", method="UCE", anchor="bird", progress_bar=False)
    edit.save(run / "edit.safetensors")
    capsys.readouterr()
    assert push(capsys, run, "a/b", "--no_gallery")[0] == 0
    assert not [(word, text) for word in SECRETS for text in contents(run / "hub") if word in text]
    card = (run / "hub" / "README.md").read_text()
    assert 'apply_edit(snapshot_download("a/b"), pipeline)' in card
    downloaded = (run / "hub").rename(tmp_path / "downloaded")
    linked = linked_copy(downloaded, tmp_path)
    runs[0].rename(tmp_path / "gone")
    message = error(capsys, run, "a/b", "--no_gallery")
    assert "needs the run of UCE of house" in message
    assert not (run / "hub").exists()
    shutil.rmtree(runs[1])
    for folder in (downloaded, linked):
        other = TinyBackbone().to_pipeline()
        apply_edit(folder, other)
        ours, theirs = pipeline.unet.state_dict(), other.unet.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    plain = TinyBackbone().to_pipeline().unet.state_dict()
    assert any(not torch.equal(plain[name], ours[name]) for name in ours)
    apply_edit(linked / "base-edits" / "1", TinyBackbone().to_pipeline())  # alone, with its own


@pytest.mark.parametrize("name", ["cats", "a/b/c", "a b/c", "/cats", "a/..", "https://hf.co/a/b"])
def test_a_wrong_name_is_one_line(run, capsys, name):
    assert f"found {name!r}" in error(capsys, run, name)
    assert not (run / "hub").exists()


def test_an_existing_folder_and_a_run_without_edit_are_refused(run, capsys, tmp_path):
    push(capsys, run, "a/b")
    before = (run / "hub" / "README.md").read_bytes()
    assert "exists already" in error(capsys, run, "a/b")
    assert "hub exists already" in error(capsys, run, "a/b", "--to", "lora")
    assert "found the file" in error(capsys, run, "a/b", "--run_dir", run / "edit.safetensors")
    assert "uploaded as it is" in error(capsys, run, "a/b", "--upload", "--no_gallery")
    assert (run / "hub" / "README.md").read_bytes() == before
    assert "No run at" in error(capsys, tmp_path / "none", "a/b")
    (run / "edit.safetensors").unlink()
    argv = (run, "a/b", "--run_dir", tmp_path / "other")
    assert "push could use, like a run that was stopped before its first" in error(capsys, *argv)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    assert "needs a finished run" in (message := error(capsys, *argv))
    assert f"erasure fit --ckpt_path {run}" in message


class FakeHub:
    """Records what an `HfApi` is called with, or raises."""

    calls = ()
    failure = None

    def create_repo(self, repository, private):
        if FakeHub.failure:
            raise FakeHub.failure
        FakeHub.calls = [(repository, private)]
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        FakeHub.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "failure", None)
    return FakeHub


def test_an_upload_takes_the_folder_as_it_was_edited(run, capsys, hub):
    push(capsys, run, "a/b")
    (run / "hub" / "LICENSE").write_text("mine")
    code, output, _ = push(capsys, run, "a/b", "--upload", "--private")
    assert code == 0
    assert "Uploaded: https://huggingface.co/a/b" in output
    names = ["LICENSE", "README.md", "edit.safetensors", "images"]
    assert hub.calls == [("a/b", True), ("a/b", names)]


def test_private_without_an_upload_is_refused(run, capsys, hub):
    assert "--private needs --upload" in error(capsys, run, "a/b", "--private")
    assert not (run / "hub").exists()


def test_a_folder_written_for_another_repository_is_not_uploaded(run, capsys, hub):
    push(capsys, run, "a/b")
    hub.calls = ()
    assert "needs a card that names it; that of" in error(capsys, run, "a/c", "--upload")
    assert hub.calls == ()
    card = run / "hub" / "README.md"
    card.write_text(card.read_text().replace("a/b", "a/c"))
    assert push(capsys, run, "a/c", "--upload")[0] == 0
    assert hub.calls[0] == ("a/c", False)


def refusal(status):
    request = httpx.Request("POST", "https://huggingface.co/api/repos/create")
    return HfHubHTTPError("no", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (refusal(401), "hf auth login"),
        (refusal(409), "exists already"),
        (refusal(500), "refused a/b (500): no."),
        (httpx.ConnectError("no route"), "could not be uploaded: no route"),
    ],
)
def test_what_the_hub_refuses_is_one_line(run, capsys, hub, failure, words):
    hub.failure = failure
    assert words in error(capsys, run, "a/b", "--upload")
    assert (run / "hub").is_dir()


def test_an_upload_needs_a_folder_of_a_push(tmp_path):
    with pytest.raises(ErasureError, match=r"found no README\.md"):
        upload_hub_folder(tmp_path, "a/b")
