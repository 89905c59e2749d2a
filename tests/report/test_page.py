import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image
from report_runs import (
    ESTIMATES,
    HOSTILE,
    PROTOCOL,
    description,
    estimate,
    make_run,
    outcome,
    write_config,
    write_figures,
    write_images,
)

from erasure_lightning.report.page import page_title, render_page, split_links
from erasure_lightning.report.page_figures import (
    attack_figures,
    grouped_attacks,
    measured_figures,
)
from erasure_lightning.report.page_model import comparisons, label_runs
from erasure_lightning.report.run_record import read_run_record

VOID = {"meta", "link", "img", "br", "line", "circle", "polyline"}


class ParsedPage(HTMLParser):
    """Elements and text of a page; asserts that every element is closed."""

    def __init__(self, html):
        super().__init__()
        self.stack = []
        self.texts = []
        self.tags = []
        self.ids = []
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
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "uce-cat")


def read(*folders):
    return ParsedPage(render_page([read_run_record(folder) for folder in folders]))


class TestOneRun:
    def test_the_verdict_comes_first(self, run):
        text = read(run).text
        title = text.index("UCE erases cat")
        assert title < text.index("Prompted by name, it is shown in 0 %") < text.index("Before and")

    def test_images_from_equal_noise(self, run):
        page = read(run)
        first, second = [image["alt"] for image in page.all("img")][:2]
        assert first == "“a cat”, seed 0, the original model"
        assert second == "“a cat”, seed 0, edited by UCE"
        assert len(page.all("img")) == 8
        assert all(a["src"].startswith("data:image/png;base64,") for a in page.all("img"))

    def test_figures_are_printed_and_drawn(self, run):
        page = read(run)
        question = "Called by other words, is it shown? lower is better; 6 images, 3 seeds"
        assert question in page.text
        assert "25 % [10, 40]" in page.text
        bar = {"class": "bar", "x1": "10.0%", "x2": "40.0%", "y1": "50%", "y2": "50%"}
        assert bar in page.all("line")
        assert {"class": "dot", "cx": "25.0%", "cy": "50%", "r": "5"} in page.all("circle")
        assert "original 0 % , UCE 89.5 %" in page.text

    def test_attacks(self, run):
        text = read(run).text
        assert "UnlearnDiffAtk Zhang 2023, https://arxiv.org/abs/2310.11868" in text
        assert "edited, attacked 0 % 50 % 100 %" not in text
        assert re.search(r"edited, attacked\s+50 % \[20, 80\]", text)
        assert "zq cat" in text
        assert "an embedding (found.safetensors)" in text
        evaluations = "800 evaluations of a denoiser, 400 of them with gradient"
        assert f"It took 12.5 s, {evaluations}, 0.5 GiB." in text
        charts = str(read(run).all("svg"))
        assert "success by budget: 0 at budget 1, 0.5 at budget 100" in charts

    def test_controls_of_attacks(self, run):
        controls = {"shuffled": estimate(0.25, 0.1, 0.4)}
        attacked = outcome(description(), controls=controls)
        attacked.save(run / "attacks" / "unlearndiffatk" / "attack.json")
        assert re.search(r"edited, control: shuffled\s+25 % \[10, 40\]", read(run).text)

    def test_the_numbers_of_images_of_an_attack_and_of_its_controls(self, run):
        """A probe by eight words has eight times as many images as its control without any."""
        controls = {"no prompt": estimate(0.25, images=2)}
        attacked = outcome(description(), controls=controls)
        (run / "attacks" / "p4d").mkdir()
        attacked.save(run / "attacks" / "p4d" / "attack.json")
        figures = [attack_figures(group) for group in grouped_attacks({"a": read_run_record(run)})]
        hints = {figure.hint.replace("\u00a0", " ") for figure in figures}
        assert hints == {"2 to 6 images, 3 seeds", "6 images, 3 seeds"}

    def test_curves(self, run):
        labels = [a["aria-label"] for a in read(run).all("svg") if "aria-label" in a]
        titles = [label.partition(":")[0] for label in labels]
        assert titles == ["success by budget", "retained", "erased", "loss"]
        assert labels[1] == "retained: 1 at step 0, 0.025 at step 39, between 0.025 and 1."

    def test_cost_config_and_hashes(self, run):
        page = read(run)
        edit = read_run_record(run).edit
        for text in (edit.sha256, "ba5e", "5c07e", PROTOCOL.identity):
            assert text in page.text
        assert "Training time 3.25 s" in page.text
        assert "torch 2.13.0" in page.text
        assert "backbone: …/sd" in page.text
        (link,) = [a for a in page.all("a") if "download" in a]
        assert link["download"] == "uce-cat.yaml"

    def test_commands_that_reproduce_it(self, run):
        text = read(run).text
        assert "erasure fit --config uce-cat.yaml --run_dir again/uce-cat" in text
        attack = "erasure attack --ckpt_path again/uce-cat --attack UnlearnDiffAtk"
        assert f"{attack} --attack.images '…/pictures' --attack.steps 40" in text
        assert "Set your own: model.init_args.backbone." in text

    def test_no_path_of_the_machine_is_named(self, run):
        html = render_page([read_run_record(run)])
        assert "/home/" not in html
        assert "somebody" not in html
        assert str(run.parent) not in html

    def test_every_section_is_linked(self, run):
        page = read(run)
        targets = {a["href"] for a in page.all("a") if a["href"].startswith("#")}
        assert targets == {f"#{section}" for section in page.ids}
        assert len(page.ids) == 8

    def test_equal_runs_have_equal_pages(self, run):
        assert render_page([read_run_record(run)]) == render_page([read_run_record(run)])

    def test_nothing_is_fetched(self, run):
        page = read(run)
        assert page.all("script") == []
        (meta,) = [a for a in page.all("meta") if "http-equiv" in a]
        assert meta["http-equiv"] == "Content-Security-Policy"
        policy = meta["content"]
        assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


class TestMissing:
    def test_an_unfinished_run(self, tmp_path):
        folder = tmp_path / "run"
        folder.mkdir()
        write_config(folder, description())
        text = read(folder).text
        assert "This run has not finished : it is still training or was stopped" in text
        assert "erasure fit --ckpt_path run resumes a stopped run." in text
        assert "The run's folder holds no images." in text
        assert "The cost was not recorded" in text

    def test_no_figures(self, run):
        (run / "metrics.json").unlink()
        text = read(run).text
        assert "No images of this edit were measured" in text
        assert "erasure test --ckpt_path uce-cat measures them." in text
        quoted = run.rename(run.with_name("no cat"))
        assert "erasure test --ckpt_path 'no cat' measures them." in read(quoted).text

    def test_no_scorer(self, run):
        protocol = replace(PROTOCOL, scorer="", scorer_fingerprint="")
        estimates = {"structure": {"distance": ESTIMATES["structure"]["distance"]}}
        write_figures(run, description(), protocol, estimates)
        text = read(run).text
        assert "No scorer recognised what the images show" in text
        assert "pixels, no scorer." in text
        assert "Overall, the harmonic mean" not in text

    def test_no_images_but_the_grid(self, run):
        shutil.rmtree(run / "samples")
        Image.new("RGB", (900, 600), "red").save(run / "grid.png")
        Image.new("RGB", (90, 60), "red").save(run / "attacks" / "unlearndiffatk" / "grid.png")
        grid, attack = read(run).all("img")
        assert attack["alt"].startswith("Images of UCE under UnlearnDiffAtk")
        assert grid["alt"] == "Images before and after the edit by UCE, by prompt"

    def test_no_attacks_curves_cost_or_config(self, run):
        (run / "attacks/unlearndiffatk/attack.json").unlink()
        for name in ("metrics.csv", "cost.json", "config.yaml"):
            (run / name).unlink()
        text = read(run).text
        assert "It was not attacked." in text
        assert "No values were logged during training." in text
        assert "The cost was not recorded" in text
        assert "The run's folder holds no config.yaml ." in text

    def test_a_closed_form_has_no_curves(self, run):
        (run / "metrics.csv").unlink()
        (run / "cost.json").write_text('{"steps": 1}')
        assert "The method solves for its edit in one step" in read(run).text

    def test_notes_are_shown(self, run):
        (run / "cost.json").write_text("{")
        assert (
            "Some files of the run are missing or cannot be read. cost.json cannot be read"
            in read(run).text
        )


class TestSeveralRuns:
    @pytest.fixture
    def runs(self, run, tmp_path):
        other = make_run(tmp_path / "rece-cat", method="erasure_lightning.methods.rece.RECE")
        shutil.rmtree(other / "samples")
        write_images(other, description(), "green")
        return [run, other]

    def test_runs_of_one_protocol_share_a_table(self, runs):
        page = read(*runs)
        assert page_title([read_run_record(run) for run in runs]) == "2 edits that erase cat"
        rows = r"original\s+100 % \[100, 100\] UCE\s+0 % \[0, 0\] RECE\s+0 % \[0, 0\]"
        assert re.search(rows, page.text)
        assert "measured differently" not in page.text
        assert len(page.all("img")) == 4 * 3
        models = [image["alt"].rpartition(", ")[2] for image in page.all("img")][:3]
        assert models == ["the original model", "edited by UCE", "edited by RECE"]

    def test_equal_attacks_are_compared(self, runs, tmp_path):
        third = make_run(tmp_path / "esd-cat", method="erasure_lightning.methods.esd.ESD")
        stronger = outcome(description(), arguments={"steps": 80})
        stronger.save(third / "attacks" / "unlearndiffatk" / "attack.json")
        stronger.save(third / "attacks" / "again" / "attack.json")
        text = read(*runs, third).text
        assert "UCE, RECE under UnlearnDiffAtk" in text
        rows = r"UCE, attacked\s+50 % \[20, 80\] RECE, plain prompts\s+0 % \[0, 0\] RECE, attacked"
        assert re.search(rows + r"\s+50 %", text)
        assert text.count("ESD under UnlearnDiffAtk") == 2
        assert "RECE: it took 12.5 s" in text

    def test_a_run_that_was_not_attacked_is_named(self, runs):
        shutil.rmtree(runs[1] / "attacks")
        assert "RECE was not attacked." in read(*runs).text

    def test_runs_of_other_protocols_are_marked(self, runs):
        metadata = description(method="erasure_lightning.methods.rece.RECE")
        write_figures(runs[1], metadata, replace(PROTOCOL, guidance=7.5))
        page = read(*runs)
        assert "These runs were measured by several protocols" in page.text
        assert "Measured by another protocol than the first" in page.text
        assert "They differ in guidance: 3.0 and 7.5." in page.text
        assert not re.search(r"UCE\s+0 % \[0, 0\] RECE", page.text)
        assert len(page.all("img")) == 2 * 4 * 2

    def test_an_older_run_stands_beside_those_that_it_may_be_compared_with(self, tmp_path):
        """It lacks the sampler's settings; where those of two others differ, only beside one."""
        records = {}
        for label, spacing in {"old": None, "new": "leading", "other": "trailing"}.items():
            settings = {"timestep_spacing": spacing} if spacing else {}
            protocol = replace(PROTOCOL, sampler_settings=settings)
            folder = make_run(tmp_path / label, protocol=protocol)
            made = folder / "attacks" / "unlearndiffatk" / "attack.json"
            outcome(description(), protocol=protocol).save(made)
            records[label] = read_run_record(folder)
        first, second = comparisons(records, {})
        assert ([*first.runs], [*second.runs]) == (["old", "new"], ["other"])
        assert "timestep_spacing of the sampler: 'leading'" in second.difference
        assert [[*group] for group in grouped_attacks(records)] == [["old", "new"], ["other"]]

    def test_a_folder_named_original_is_not_taken_for_the_original_model(self, tmp_path):
        first, second = (make_run(tmp_path / name) for name in ("original", "longer"))
        labelled = label_runs([read_run_record(first), read_run_record(second)])
        rows = next(iter(measured_figures(labelled))).rows
        assert [row.mean for row in rows] == ["100\xa0%", "0\xa0%", "0\xa0%"]
        assert [row.is_reference for row in rows] == [True, False, False]

    def test_runs_of_one_method_are_labelled_by_their_folders(self, run, tmp_path):
        other = make_run(tmp_path / "second")
        assert re.search(r"uce-cat\s+0 % \[0, 0\] second\s+0 % \[0, 0\]", read(run, other).text)
        other = make_run(tmp_path / "elsewhere" / "uce-cat")
        assert re.search(r"uce-cat \(1\)\s+0 % \[0, 0\] uce-cat \(2\)\s+0 %", read(run, other).text)

    def test_a_run_that_lacks_a_group(self, runs):
        less = {group: metrics for group, metrics in ESTIMATES.items() if group != "generality"}
        write_figures(runs[1], description(), estimates=less)
        rows = r"Called by other words, is it shown\?.*?UCE\s+25 % \[10, 40\] 0 % 50 %"
        assert re.search(rows, read(*runs).text)

    def test_a_missing_image_leaves_an_empty_place(self, runs):
        (runs[1] / "samples" / "000-after.png").unlink()
        page = read(*runs)
        assert "“a cat”, seed 0, edited by RECE: not generated" in str(page.all("div"))


def test_texts_of_a_user_are_escaped(tmp_path):
    name = f"{HOSTILE}\"'><img src=x onerror=alert(2)>{{{{ 7 * 7 }}}}"
    run = make_run(
        tmp_path / "<b>&amp;", name=name, method="x.<i>Evil</i>", backbone="<u>model</u>"
    )
    page = read(run)
    assert page.all("script") == page.all("b") == page.all("i") == page.all("u") == []
    assert not [a for tag, a in page.tags if any(key.startswith("on") for key in a)]
    assert f"a {name}" in page.text
    assert "49" not in re.findall(r"\d+", page.text)


def test_only_web_addresses_become_links():
    address = "https://arxiv.org/abs/1"
    pieces = split_links(f"A 2024, {address}.")
    assert pieces == [("A 2024, ", ""), (address, address), (".", "")]
    text = "javascript:alert(1) data:text/html,x"
    assert split_links(text) == [(text, "")]


def test_mined_words_stand_beside_their_concept(tmp_path):
    concepts = [{"name": name, "anchor": "", "domain": ["k"], "kind": "thing"} for name in "ab"]
    mined = {"a": ["kit", HOSTILE], "b": []}
    run = make_run(tmp_path / "run", concepts=concepts, domain_words=mined)
    page = read(run)
    assert f"a (other words: k; mined and erased too: kit, {HOSTILE})" in page.text
    assert "b (other words: k)" in page.text
    assert page.all("script") == []
    mangled = make_run(tmp_path / "mangled", concepts=concepts, domain_words={"a": 3})
    assert "a (other words: k)" in read(mangled).text


def test_many_concepts_are_shortened(tmp_path):
    concepts = [{"name": f"c{i}", "anchor": "", "domain": [], "kind": "thing"} for i in range(100)]
    text = read(make_run(tmp_path / "run", concepts=concepts)).text
    assert "UCE erases c0, c1, c2 and 97 more" in text
    assert "and 92 more" in text
    assert "they are shown in 0 %" in text
