"""The page in a real browser: Debian's chromium, which `.ci/run` installs."""

import os
import shutil
from itertools import pairwise

import pytest
from browser import Browser, chromium
from report_runs import HOSTILE, description, make_run, write_samples

from erasure_lightning.report.page import page
from erasure_lightning.report.run_record import read_facts

#: What only a page that escaped nothing would do.
FETCHING = '<img src="http://example.invalid/x.png" onerror="alert(2)">'

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
    """A run of a hostile concept, one of another method measured alike, and one measured otherwise."""
    names = (
        ("one", "uce.UCE", HOSTILE),
        ("two", "rece.RECE", HOSTILE),
        ("three", "esd.ESD", FETCHING),
    )
    made = []
    for folder, method, name in names:
        path = f"erasure_lightning.methods.{method}"
        made.append(
            make_run(tmp_path / folder / HOSTILE.replace("/", "\u2215"), name=name, method=path)
        )
    return made


def written(folder, *runs):
    place = folder / "page.html"
    place.write_text(page([read_facts(run) for run in runs]), encoding="utf-8")
    return place


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("count", [1, 3])
def test_a_page_is_seen_whole_and_does_nothing(browser, runs, tmp_path, count, width, dark):
    seen = browser.look(written(tmp_path, *runs[:count]), width, dark)
    assert (seen.dialogs, seen.requests, seen.complaints) == ([], [], [])
    assert (seen.found["active"], seen.found["handlers"], seen.found["wordless"]) == (0, 0, 0)
    assert set(seen.found["schemes"]) == {"#", "data:", "https:"}
    assert seen.found["overflow"] == 0
    assert len(seen.found["pictures"]) >= 8
    assert min(seen.found["pictures"]) > 0
    assert f"a {HOSTILE}" in seen.found["text"]
    assert HOSTILE in seen.found["title"] or count == 3
    levels = seen.found["headings"]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_same_browser_sees_a_page_that_escapes_nothing(browser, runs, tmp_path, monkeypatch):
    """The control: without escaping and without the policy, every one of those claims fails."""
    monkeypatch.setattr("erasure_lightning.report.page.ESCAPED", ())
    place = written(tmp_path, runs[0], runs[2])
    place.write_text(
        place.read_text(encoding="utf-8").replace("Content-Security-Policy", "x"), encoding="utf-8"
    )
    seen = browser.look(place)
    assert seen.dialogs
    assert seen.requests
    assert seen.complaints
    assert seen.found["active"]
    assert seen.found["handlers"]
    assert f"a {HOSTILE}" not in seen.found["text"]


def test_large_pictures_and_long_words_stay_on_a_phone(browser, tmp_path):
    run = make_run(tmp_path / ("long" * 20), name="x" * 300)
    shutil.rmtree(run / "samples")
    write_samples(run, description(), side=512)
    seen = browser.look(written(tmp_path, run), 375)
    assert seen.found["overflow"] == 0
    assert set(seen.found["pictures"]) == {512}
