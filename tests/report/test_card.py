import re
import shutil
from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt
from report_runs import HOSTILE, description, make_run, write_config, write_edit

from erasure_lightning.report.card import card, escaped, fenced
from erasure_lightning.report.run_record import read_facts


def front(text):
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def rendered(text):
    """As the Hub would show it, HTML within Markdown allowed."""
    return (
        MarkdownIt("commonmark", {"html": True}).enable("table").render(text.split("---\n", 2)[2])
    )


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "uce-cat", backbone="owner/model-1.5")


def test_the_hub_finds_what_it_reads_and_no_licence(run):
    assert front(card(read_facts(run))) == {
        "base_model": "owner/model-1.5", "library_name": "diffusers", "pipeline_tag": "text-to-image",
        "tags": ["concept-erasure", "erasure-lightning", "uce"],
    }  # fmt: skip


@pytest.mark.parametrize("backbone", ["/home/somebody/sd", "./sd", "emoji-world", "../a/b"])
def test_a_model_that_is_not_on_the_hub_is_not_named_as_one(run, backbone):
    write_edit(run, description(backbone=backbone))
    assert "base_model" not in front(card(read_facts(run)))


def test_it_has_the_facts_of_the_page(run):
    facts = read_facts(run)
    text = card(facts).replace("\u00a0", " ")
    assert "Asked for by name, it is drawn in **0 %** \\[0, 0\\] of pictures" in text
    assert (
        "| Called by other words, is it drawn? | lower | 90 % \\[80, 100\\] | 25 % \\[10, 40\\] |"
        in text
    )
    assert "| UnlearnDiffAtk | 100 % \\[100, 100\\] | 0 % \\[0, 0\\] | 50 % \\[20, 80\\] |" in text
    assert f"SHA-256 of the edit: `{facts.edit.sha256}`" in text
    assert 'apply_edit("edit.safetensors", pipeline)' in text
    assert "up to 39 % of pictures would still pass" in text
    assert "erasure fit --config uce-cat.yaml" in text
    for heading in (
        "Intended use",
        "How to apply it",
        "What was measured",
        "Attacks",
        "Limits",
        "How it was made",
    ):
        assert f"\n## {heading}\n" in text


def test_its_config_runs_as_it_stands(run):
    text = card(read_facts(run))
    (config,) = re.findall(r"```yaml\n(.*?)\n```", text, re.S)
    assert yaml.safe_load(config) == yaml.safe_load((run / "config.yaml").read_text())


def test_nothing_of_the_machine_is_told(run):
    write_edit(run, description())
    write_config(run, description())
    assert "somebody" not in card(read_facts(run))


def test_words_of_a_user_stay_words(tmp_path):
    name = f"{HOSTILE}\n# [x](http://x) | `a` ```"
    text = card(read_facts(make_run(tmp_path / "run", name=name)))
    shown, _, _ = text.partition("With this config")
    assert "<script" not in shown
    assert "\n# [" not in shown
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt; \\# \\[x\\](http://x) \\| \\`a\\` \\`\\`\\`" in shown
    )
    assert text.rstrip().endswith("\n````")
    html = rendered(text)
    assert set(re.findall(r"<(\w+)", html)) <= {
        *(
            "h1",
            "h2",
            "p",
            "ul",
            "li",
            "strong",
            "code",
            "pre",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
        )
    }
    assert html.count("<h2") == 6


def test_without_figures_pictures_or_an_edit(run):
    for name in ("samples", "attacks"):
        shutil.rmtree(run / name)
    facts = read_facts(run)
    assert "\nNothing.\n" in card(replace(facts, result=None))
    assert "\nNone was tried.\n" in card(facts)
    assert "there is no edit yet" in card(replace(facts, result=None, edit=None))


def test_text_is_escaped_and_code_is_fenced():
    assert escaped("a*b_c\n|d <e> & $f$") == "a\\*b\\_c \\|d &lt;e&gt; &amp; \\$f\\$"
    assert fenced("a ``` b", "sh") == "````sh\na ``` b\n````"
