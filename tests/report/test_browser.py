"""The page in a browser: Debian's Chromium, which `.ci/run` installs."""

import os
import shutil
from itertools import pairwise

import pytest
from browser import Browser, chromium
from report_runs import HOSTILE, description, make_run, write_images

from erasure_lightning.report.page import render_page
from erasure_lightning.report.run_record import read_run_record

#: Fetches an image and opens a dialog in a page that does not escape it.
FETCHING = '<img src="http://example.invalid/x.png" onerror="alert(2)">'

#: Most lines of a run's name in the results of attacks.
LINES_OF_RUNS = """Math.max(...[...document.querySelectorAll('td.run')].map(cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return range.getClientRects().length;
}))"""

pytestmark = pytest.mark.skipif(
    chromium() is None and not os.environ.get("CI"),
    reason="needs a Chromium: apt-get install chromium",
)


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture
def runs(tmp_path):
    """Two runs of a hostile concept by two methods, and one of another concept."""
    methods = (("uce.UCE", HOSTILE), ("rece.RECE", HOSTILE), ("esd.ESD", FETCHING))
    folder_name = HOSTILE.replace("/", "\u2215")
    return [
        make_run(
            tmp_path / method / folder_name, name=name, method=f"erasure_lightning.methods.{method}"
        )
        for method, name in methods
    ]


def write_page(folder, *runs):
    path = folder / "page.html"
    path.write_text(render_page([read_run_record(run) for run in runs]), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("count", [1, 3])
def test_a_page_is_complete_and_makes_no_requests(browser, runs, tmp_path, count, width, dark):
    seen = browser.look(write_page(tmp_path, *runs[:count]), width, dark)
    assert (seen.dialogs, seen.requests, seen.complaints) == ([], [], [])
    assert (seen.content["active"], seen.content["handlers"], seen.content["wordless"]) == (0, 0, 0)
    assert set(seen.content["schemes"]) == {"#", "data:", "https:"}
    assert seen.content["overflow"] == 0
    assert len(seen.content["pictures"]) >= 8
    assert min(seen.content["pictures"]) > 0
    assert f"a {HOSTILE}" in seen.content["text"]
    assert HOSTILE in seen.content["title"] or count == 3
    levels = seen.content["headings"]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_page_without_escaping_fails_these_checks(browser, runs, tmp_path, monkeypatch):
    """The control: without escaping and without the policy, every check fails."""
    monkeypatch.setattr("erasure_lightning.report.page._ESCAPED_SUFFIXES", ())
    path = write_page(tmp_path, runs[0], runs[2])
    html = path.read_text(encoding="utf-8").replace("Content-Security-Policy", "x")
    path.write_text(html, encoding="utf-8")
    seen = browser.look(path)
    assert seen.dialogs
    assert seen.requests
    assert seen.complaints
    assert seen.content["active"]
    assert seen.content["handlers"]
    assert f"a {HOSTILE}" not in seen.content["text"]


def test_many_runs_fit_on_a_phone(browser, tmp_path):
    """Their images are scrolled within the card, with the captions that are not shown."""
    runs = [make_run(tmp_path / f"run{number}") for number in range(8)]
    assert browser.look(write_page(tmp_path, *runs), 375).content["overflow"] == 0
    lines = browser.ask("Runtime.evaluate", expression=LINES_OF_RUNS)["result"]["value"]
    assert lines == 1  # the name of a run is not broken into letters


def test_large_images_and_long_words_fit_on_a_phone(browser, tmp_path):
    run = make_run(tmp_path / ("long" * 20), name="x" * 300)
    shutil.rmtree(run / "samples")
    write_images(run, description(), side=512)
    seen = browser.look(write_page(tmp_path, run), 375)
    assert seen.content["overflow"] == 0
    assert set(seen.content["pictures"]) == {512}
