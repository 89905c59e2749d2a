import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_runs import (
    ESTIMATES,
    HOSTILE,
    PROTOCOL,
    description,
    make_run,
    outcome,
    write_config,
    write_figures,
    write_samples,
)

from erasure_lightning.report.page import linked, page, title
from erasure_lightning.report.run_record import read_facts

VOID = {"meta", "link", "img", "br", "line", "circle", "polyline"}


class Read(HTMLParser):
    """What a page says, and whether every element that is opened is closed."""

    def __init__(self, html):
        super().__init__()
        self.stack, self.words, self.tags, self.ids = [], [], [], []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "uce-cat")


def read(*folders):
    return Read(page([read_facts(folder) for folder in folders]))


class TestOneRun:
    def test_the_verdict_leads(self, run):
        text = read(run).text
        assert (
            text.index("UCE erases cat")
            < text.index("Asked for by name, it is drawn in 0 %")
            < text.index("Before and")
        )

    def test_pictures_from_equal_noise(self, run):
        made = read(run)
        assert [a["alt"] for a in made.all("img")][:2] == [
            "“a cat”, seed 0, the original model", "“a cat”, seed 0, edited by UCE"
        ]  # fmt: skip
        assert len(made.all("img")) == 8
        assert all(a["src"].startswith("data:image/png;base64,") for a in made.all("img"))

    def test_figures_are_printed_and_drawn(self, run):
        made = read(run)
        assert (
            "Called by other words, is it drawn? lower is better; 6 pictures, 3 seeds" in made.text
        )
        assert "25 % [10, 40]" in made.text
        assert {"class": "bar", "x1": "10.0%", "x2": "40.0%", "y1": "50%", "y2": "50%"} in made.all(
            "line"
        )
        assert {"class": "dot", "cx": "25.0%", "cy": "50%", "r": "5"} in made.all("circle")
        assert "original 0 % , UCE 89.5 %" in made.text

    def test_attacks(self, run):
        text = read(run).text
        assert "UnlearnDiffAtk Zhang 2023, https://arxiv.org/abs/2310.11868" in text
        assert "edited, attacked 0 % 50 % 100 %" not in text
        assert re.search(r"edited, attacked\s+50 % \[20, 80\]", text)
        assert "zq cat" in text
        assert "an embedding (found.safetensors)" in text
        assert (
            "It took 12.5 s, 800 evaluations of a denoiser, 400 of them with gradient, 0.5 GiB."
            in text
        )
        assert "comes back, by budget: 0 at budget 1, 0.5 at budget 100" in str(
            read(run).all("svg")
        )

    def test_curves(self, run):
        told = [a["aria-label"] for a in read(run).all("svg") if "aria-label" in a]
        assert [label.partition(":")[0] for label in told] == [
            "comes back, by budget",
            "kept",
            "forgotten",
            "loss",
        ]
        assert told[1] == "kept: 1 at step 0, 0.025 at step 39, between 0.025 and 1."

    def test_cost_config_and_hashes(self, run):
        made, facts = read(run), read_facts(run)
        for words in (
            facts.edit.sha256,
            "ba5e",
            "5c07e",
            PROTOCOL.identity,
            "Training time 3.25 s",
            "torch 2.13.0",
        ):
            assert words in made.text
        assert "backbone: …/sd" in made.text
        (link,) = [a for a in made.all("a") if "download" in a]
        assert link["download"] == "uce-cat.yaml"

    def test_how_to_do_it_again(self, run):
        text = read(run).text
        assert "erasure fit --config uce-cat.yaml --run_dir again/uce-cat" in text
        attack = "erasure attack --ckpt_path again/uce-cat --attack UnlearnDiffAtk"
        assert f"{attack} --attack.images '…/pictures' --attack.steps 40" in text
        assert "Give your own: model.init_args.backbone." in text

    def test_no_path_of_the_machine_is_told(self, run):
        html = page([read_facts(run)])
        assert "/home/" not in html
        assert "somebody" not in html
        assert str(run.parent) not in html

    def test_every_section_is_reached(self, run):
        made = read(run)
        assert {a["href"] for a in made.all("a") if a["href"].startswith("#")} == {
            f"#{i}" for i in made.ids
        }
        assert len(made.ids) == 8

    def test_one_run_makes_one_page(self, run):
        assert page([read_facts(run)]) == page([read_facts(run)])

    def test_nothing_is_fetched(self, run):
        made = read(run)
        assert made.all("script") == []
        (policy,) = [
            a["content"]
            for a in made.all("meta")
            if a.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


class TestMissing:
    def test_an_unfinished_run(self, tmp_path):
        folder = tmp_path / "run"
        folder.mkdir()
        write_config(folder, description())
        text = read(folder).text
        assert "This run has not finished : it is still training or was stopped" in text
        assert "erasure fit --ckpt_path run goes on." in text
        assert "No pictures lie in the run's folder." in text
        assert "What it cost was not noted" in text

    def test_no_figures(self, run):
        (run / "metrics.json").unlink()
        text = read(run).text
        assert "Nothing was measured of this edit" in text
        assert "erasure test --ckpt_path uce-cat does." in text

    def test_no_scorer(self, run):
        write_figures(run, description(), replace(PROTOCOL, scorer="", scorer_fingerprint=""), {
            "structure": {"distance": ESTIMATES["structure"]["distance"]}
        })  # fmt: skip
        text = read(run).text
        assert "No scorer was there to recognise things" in text
        assert "pixels, no scorer." in text
        assert "Overall, the harmonic mean" not in text

    def test_no_pictures_but_the_grid(self, run):
        shutil.rmtree(run / "samples")
        from PIL import Image

        Image.new("RGB", (900, 600), "red").save(run / "grid.png")
        Image.new("RGB", (90, 60), "red").save(run / "attacks" / "unlearndiffatk" / "grid.png")
        picture, attack = read(run).all("img")
        assert attack["alt"].startswith("What UnlearnDiffAtk brought back")
        assert picture["alt"] == "Pictures before and after the edit by UCE, by prompt"

    def test_no_attacks_curves_cost_or_config(self, run):
        for name in (
            "attacks/unlearndiffatk/attack.json",
            "metrics.csv",
            "cost.json",
            "config.yaml",
        ):
            (run / name).unlink()
        text = read(run).text
        assert "No attack was tried on it." in text
        assert "Nothing was logged over the steps." in text
        assert "What it cost was not noted" in text
        assert "The run's config.yaml is not there" in text

    def test_a_method_that_solves_has_no_curves(self, run):
        (run / "metrics.csv").unlink()
        (run / "cost.json").write_text('{"steps": 1}')
        assert "The method solves for its edit in one step" in read(run).text

    def test_notes_are_told(self, run):
        (run / "cost.json").write_text("{")
        assert "Something is missing. cost.json cannot be read" in read(run).text


class TestSeveralRuns:
    @pytest.fixture
    def runs(self, run, tmp_path):
        other = make_run(tmp_path / "rece-cat", method="erasure_lightning.methods.rece.RECE")
        shutil.rmtree(other / "samples")
        write_samples(other, description(), "green")
        return [run, other]

    def test_equally_measured_ones_share_a_table(self, runs):
        made = read(*runs)
        assert title([read_facts(run) for run in runs]) == "2 edits that erase cat"
        assert re.search(
            r"original\s+100 % \[100, 100\] UCE\s+0 % \[0, 0\] RECE\s+0 % \[0, 0\]", made.text
        )
        assert "measured differently" not in made.text
        assert len(made.all("img")) == 4 * 3
        assert [a["alt"].rpartition(", ")[2] for a in made.all("img")][:3] == [
            "the original model", "edited by UCE", "edited by RECE"
        ]  # fmt: skip

    def test_equal_attacks_are_compared(self, runs, tmp_path):
        third = make_run(tmp_path / "esd-cat", method="erasure_lightning.methods.esd.ESD")
        stronger = outcome(description(), arguments={"steps": 80})
        stronger.save(third / "attacks" / "unlearndiffatk" / "attack.json")
        stronger.save(third / "attacks" / "again" / "attack.json")
        text = read(*runs, third).text
        assert "UCE, RECE under UnlearnDiffAtk" in text
        assert re.search(
            r"UCE, attacked\s+50 % \[20, 80\] RECE, plain prompts\s+0 % \[0, 0\] RECE,"
            r" attacked\s+50 %",
            text,
        )
        assert text.count("ESD under UnlearnDiffAtk") == 2
        assert "RECE: it took 12.5 s" in text

    def test_one_that_was_not_attacked_is_named(self, runs):
        shutil.rmtree(runs[1] / "attacks")
        assert "RECE: no attack was tried." in read(*runs).text

    def test_others_are_shown_but_marked(self, runs):
        write_figures(
            runs[1],
            description(method="erasure_lightning.methods.rece.RECE"),
            replace(PROTOCOL, guidance=7.5),
        )
        made = read(*runs)
        assert "These runs were not all measured alike" in made.text
        assert "Measured by another protocol than the first" in made.text
        assert "They differ in guidance: 3.0 and 7.5." in made.text
        assert not re.search(r"UCE\s+0 % \[0, 0\] RECE", made.text)
        assert len(made.all("img")) == 2 * 4 * 2

    def test_two_of_one_method_go_by_their_folders(self, run, tmp_path):
        other = make_run(tmp_path / "second")
        assert re.search(r"uce-cat\s+0 % \[0, 0\] second\s+0 % \[0, 0\]", read(run, other).text)
        twin = make_run(tmp_path / "elsewhere" / "uce-cat")
        assert re.search(r"uce-cat \(1\)\s+0 % \[0, 0\] uce-cat \(2\)\s+0 %", read(run, twin).text)

    def test_a_run_that_lacks_a_group(self, runs):
        less = {group: found for group, found in ESTIMATES.items() if group != "generality"}
        write_figures(runs[1], description(), estimates=less)
        assert re.search(
            r"Called by other words, is it drawn\?.*?UCE\s+25 % \[10, 40\] 0 % 50 %",
            read(*runs).text,
        )

    def test_a_picture_that_one_lacks_leaves_a_place(self, runs):
        (runs[1] / "samples" / "000-after.png").unlink()
        made = read(*runs)
        assert "“a cat”, seed 0, edited by RECE: not drawn" in str(made.all("div"))


def test_nothing_a_user_wrote_becomes_markup(tmp_path):
    name = f"{HOSTILE}\"'><img src=x onerror=alert(2)>{{{{ 7 * 7 }}}}"
    run = make_run(
        tmp_path / "<b>&amp;", name=name, method="x.<i>Evil</i>", backbone="<u>model</u>"
    )
    made = read(run)
    assert made.all("script") == made.all("b") == made.all("i") == made.all("u") == []
    assert not [a for tag, a in made.tags if any(key.startswith("on") for key in a)]
    assert f"a {name}" in made.text
    assert "49" not in re.findall(r"\d+", made.text)


def test_only_web_addresses_become_links():
    assert linked("A 2024, https://arxiv.org/abs/1.") == [
        ("A 2024, ", ""), ("https://arxiv.org/abs/1", "https://arxiv.org/abs/1"), (".", "")
    ]  # fmt: skip
    assert linked("javascript:alert(1) data:text/html,x") == [
        ("javascript:alert(1) data:text/html,x", "")
    ]


def test_many_concepts_are_folded(tmp_path):
    concepts = [{"name": f"c{i}", "anchor": "", "domain": [], "kind": "thing"} for i in range(100)]
    text = read(make_run(tmp_path / "run", concepts=concepts)).text
    assert "UCE erases c0, c1, c2 and 97 more" in text
    assert "and 92 more" in text
    assert "they are drawn in 0 %" in text
