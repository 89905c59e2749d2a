"""`erasure demo`: the page in a real browser, with a tiny model."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from browser import REQUEST, Browser, chromium
from edit_files import read_content, write_content

from erasure_lightning import erase
from erasure_lightning.__main__ import main
from erasure_lightning.api import demo
from erasure_lightning.api.demo import SideBySide, word_buttons
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.checks import require_host
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.image_grid import to_pil
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.errors import ErasureError

CONCEPT = Concept("cat", anchor="dog", domain=["<b>red</b>", "star"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from diffusers import DiffusionPipeline

    folder = tmp_path_factory.mktemp("demo")
    TinyBackbone().to_pipeline().save_pretrained(folder / "base")
    pipeline = DiffusionPipeline.from_pretrained(folder / "base")
    edit = erase(pipeline, CONCEPT, method="UCE", progress_bar=False)
    edit.metadata["backbone"] = str(folder / "base")
    edit.metadata["concepts"][0]["domain"] += ["many words on one button " * 4]
    edit.save(folder / "run" / "edit.safetensors")
    return folder / "run"


def test_strength_0_is_the_original_and_the_order_of_calls_does_not_matter(run):
    both = SideBySide(run, steps=2)
    edited = both._generate("a cat", 0, 1.0).tobytes()
    original = both._generate("a cat", 0, 0.0).tobytes()
    base = load_backbone(str(run.parent / "base")).eval()
    plain = sample_images(base, ["a cat"], [0], steps=2, guidance=7.5)
    assert original == to_pil(plain[0]).tobytes()
    assert original != edited
    assert both._generate("a cat", 0, 1.0).tobytes() == edited
    assert both._generate("a cat", 1, 0.0).tobytes() != original


def test_it_draws_as_its_run_did_or_with_the_steps_of_the_caller(run, tmp_path):
    tensors, metadata = read_content(run / "edit.safetensors")
    config = "data:\n  steps: 3\n  guidance: 0.0\n"
    file = tmp_path / "edit.safetensors"
    write_content(file, tensors, metadata | {"config": config})
    drawn = {}
    for source, steps in ((run, None), (file, None), (file, 2)):
        both = SideBySide(source, steps)
        drawn[source, steps] = (both.steps, both.guidance)
    assert drawn == {(run, None): (50, 7.5), (file, None): (3, 0.0), (file, 2): (2, 0.0)}


def test_a_seed_beyond_a_generator_s_is_refused(run):
    both = SideBySide(run, steps=2)
    for seed in (-1, 2**64):
        with pytest.raises(ErasureError, match=f"A demo needs seed .*; found {seed}"):
            both.generate("a cat", seed, 1.0)
    both.generate("a cat", 2**64 - 1, 1.0)


def test_the_model_beneath_an_edit_on_another_is_not_called_the_original(run, tmp_path):
    pipeline = load_backbone(str(run.parent / "base")).to_pipeline()
    quick = {"method": "UCE", "anchor": "dog", "progress_bar": False}
    edit = erase(pipeline, "star", base_edit=run, **quick)
    edit.metadata["backbone"] = str(run.parent / "base")
    above = SideBySide(edit.save(tmp_path / "edit.safetensors"), steps=2)
    beneath = SideBySide(run, steps=2)
    assert (above.base_title, beneath.base_title) == ("With UCE of cat", "Original")
    assert above.generate("a cat", 0, 0.0).tobytes() == beneath.generate("a cat", 0, 1.0).tobytes()


def test_buttons_are_the_words_of_the_concepts():
    buttons = word_buttons([CONCEPT, Concept("Picasso", kind="person")])
    assert [b.prompt for b in buttons["erased"]] == ["a cat", "a photo of Picasso"]
    assert [b.word for b in buttons["described"]] == ["<b>red</b>", "star"]
    assert [b.word for b in buttons["anchors"]] == ["dog"]


def test_without_gradio_it_is_one_line(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", str(run)]) == 2
    line = capsys.readouterr().err
    assert "pip install 'erasure-lightning[demo]'" in line
    assert line.count("\n") == 1


def test_a_port_that_cannot_be(run, capsys):
    assert main(["demo", str(run), "--port", "99999"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("erasure: error: A demo needs port of at least 1 and at most 65535")


def test_a_port_that_is_taken(run, monkeypatch):
    def launch(**_):
        raise OSError("Cannot find empty port")

    gradio = SimpleNamespace(themes=SimpleNamespace(Default=lambda **_: None))
    monkeypatch.setattr(demo, "_gradio", lambda: gradio)
    monkeypatch.setattr(demo, "_page", lambda *_: SimpleNamespace(launch=launch))
    with pytest.raises(ErasureError, match=r"port at 127.0.0.1; found port 7899, which is taken"):
        demo.serve_demo(run, port=7899)


def test_sigterm_ends_it_as_ctrl_c_does(run, capsys, monkeypatch):
    """So that the folder of images is removed."""
    ended = []

    def serve(*_, **__):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            ended.append(True)

    monkeypatch.setattr(demo, "serve_demo", serve)
    assert main(["demo", str(run)]) == 130
    assert ended == [True]
    assert capsys.readouterr().err == "erasure: Interrupted.\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("host", ["no host", "192.0.2.1", "x" * 70])
def test_a_host_that_is_no_address_of_this_machine(run, capsys, host):
    assert main(["demo", str(run), "--host", host]) == 2
    error = capsys.readouterr().err
    assert f"needs an address of this machine as its host; found {host!r}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_host_of_this_machine(host):
    require_host("A demo", host)


def evaluate(browser, expression):
    return browser.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get(
        "value"
    )


def wait(browser, expression):
    deadline = time.monotonic() + 60
    while not (value := evaluate(browser, expression)):
        assert time.monotonic() < deadline, expression
        time.sleep(0.1)
    return value


IMAGES = "[...document.querySelectorAll('.generated img')]"
SOURCES = f"{IMAGES}.map(i => i.src)"
BUTTONS_ENDS = (
    "[...document.querySelectorAll('.row-of-words button')].map("
    "b => b.getBoundingClientRect().right)"
)


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs the extra [demo]")
@pytest.mark.skipif(
    chromium() is None and not os.environ.get("CI"),
    reason="needs a Chromium: apt-get install chromium",
)
def test_the_page_draws_in_a_browser_without_network_and_ctrl_c_ends_it(run, erasure):
    command = [erasure, "demo", str(run), "--steps", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
        with Browser() as browser:
            browser.ask("Page.navigate", url=address)
            wait(browser, f"{IMAGES}.filter(i => i.naturalWidth).length == 2")
            first = evaluate(browser, SOURCES)
            press = "[...document.querySelectorAll('.row-of-words button')].find(b => b.innerText"
            evaluate(browser, f"{press} == '<b>red</b>').click()")
            wait(browser, "document.querySelector('#prompt textarea').value == 'a <b>red</b>'")
            wait(browser, f"{SOURCES}.every((s, i) => s != {first}[i])")
            seed = "document.querySelector('input[aria-label=Seed]')"
            evaluate(browser, f"{seed}.value = -5, {seed}.dispatchEvent(new Event('input'))")
            evaluate(browser, f"{seed}.dispatchEvent(new Event('blur'))")
            wait(browser, "document.body.innerText.includes('found -5')")
            for width in (1280, 375):
                browser.resize(width)
                page = "document.documentElement"
                assert evaluate(browser, f"{page}.scrollWidth <= {page}.clientWidth")
                assert evaluate(browser, f"Math.max(...{BUTTONS_ENDS}) <= {page}.clientWidth")
            urls = [e["params"]["request"]["url"] for e in browser.events if e["method"] == REQUEST]
            assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []
            assert len(urls) > 3  # the control
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert errors == "erasure: Interrupted.\n"
    finally:
        process.kill()
