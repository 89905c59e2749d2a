import re
import shutil
from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt
from report_runs import HOSTILE, description, make_run, write_config, write_edit

from erasure_lightning.report.card import code_block, escape_markdown, render_card
from erasure_lightning.report.run_record import read_run_record


def front(text):
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def rendered(text):
    """HTML of a card as on the Hub, where HTML within Markdown is allowed."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    return parser.render(text.split("---\n", 2)[2])


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "uce-cat", backbone="owner/model-1.5")


def test_front_matter_has_the_fields_of_the_hub_and_no_license(run):
    assert front(render_card(read_run_record(run))) == {
        "base_model": "owner/model-1.5",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["concept-erasure", "erasure-lightning", "uce"],
    }


def test_it_has_the_mined_words(tmp_path):
    run = make_run(tmp_path / "run", domain_words={"cat": ["kit*"]})
    words = "(other words: kitten; mined and erased too: kit\\*)"
    assert words in render_card(read_run_record(run))


def test_a_revision_is_no_part_of_the_base_models_name(run):
    write_edit(run, description(backbone="owner/model@v2"))
    assert front(render_card(read_run_record(run)))["base_model"] == "owner/model"


@pytest.mark.parametrize(
    "backbone",
    [
        "/home/somebody/sd",
        "./sd",
        "emoji-world",
        "../a/b",
        "models/sd.safetensors",
        "models/sd.safetensors@owner/model",
    ],
)
def test_a_local_model_is_no_base_model_of_the_hub(run, backbone):
    write_edit(run, description(backbone=backbone))
    assert "base_model" not in front(render_card(read_run_record(run)))


def test_it_has_the_figures_of_the_page(run):
    record = read_run_record(run)
    text = render_card(record).replace("\u00a0", " ")
    assert "Prompted by name, it is shown in **0 %** \\[0, 0\\] of images" in text
    row = "| Called by other words, is it shown? | lower | 90 % \\[80, 100\\] | 25 % \\[10, 40\\] |"
    assert row in text
    assert "| UnlearnDiffAtk | 100 % \\[100, 100\\] | 0 % \\[0, 0\\] | 50 % \\[20, 80\\] |" in text
    assert f"SHA-256 of the edit: `{record.edit.sha256}`" in text
    assert 'apply_edit("edit.safetensors", pipeline)' in text
    assert "up to 39 % of images would still pass" in text
    assert "erasure fit --config uce-cat.yaml" in text
    for heading in ("Intended use", "How to apply it", "Figures"):
        assert f"\n## {heading}\n" in text
    for heading in ("Attacks", "Limits", "Method and versions"):
        assert f"\n## {heading}\n" in text


def test_its_config_is_that_of_the_run(run):
    text = render_card(read_run_record(run))
    (config,) = re.findall(r"```yaml\n(.*?)\n```", text, re.S)
    assert yaml.safe_load(config) == yaml.safe_load((run / "config.yaml").read_text())


def test_it_names_no_path_of_the_machine(run):
    write_edit(run, description())
    write_config(run, description())
    assert "somebody" not in render_card(read_run_record(run))


def test_a_name_with_markup_is_escaped(tmp_path):
    name = f"{HOSTILE}\n# [x](http://x) | `a` ```"
    text = render_card(read_run_record(make_run(tmp_path / "run", name=name)))
    shown, _, _ = text.partition("With the config below")
    assert "<script" not in shown
    assert "\n# [" not in shown
    script = "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert f"{script} \\# \\[x\\](http://x) \\| \\`a\\` \\`\\`\\`" in shown
    assert text.rstrip().endswith("\n````")
    html = rendered(text)
    elements = {"h1", "h2", "p", "ul", "li", "strong", "code", "pre"}
    elements |= {"table", "thead", "tbody", "tr", "th", "td"}
    assert set(re.findall(r"<(\w+)", html)) <= elements
    assert html.count("<h2") == 6


def test_without_figures_images_or_an_edit(run):
    for name in ("samples", "attacks"):
        shutil.rmtree(run / name)
    record = read_run_record(run)
    bare = render_card(replace(record, result=None))
    assert "\nNo figures were measured.\n" in bare
    assert "In brackets" not in bare
    assert "In brackets" in render_card(record)
    assert "\nThe edit was not attacked.\n" in render_card(record)
    assert "there is no edit yet" in render_card(replace(record, result=None, edit=None))


def test_text_is_escaped_and_code_is_fenced():
    assert escape_markdown("a*b_c\n|d <e> & $f$") == "a\\*b\\_c \\|d &lt;e&gt; &amp; \\$f\\$"
    assert code_block("a ``` b", "sh") == "````sh\na ``` b\n````"
