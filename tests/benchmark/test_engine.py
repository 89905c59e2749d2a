import os
import signal
import threading
import time

import pytest

from erasure_lightning.benchmark.engine import Engine, last_words
from erasure_lightning.benchmark.jobs import Status

pytestmark = pytest.mark.usefixtures("stand_in")


def calls(cell):
    """Commands that were run in a cell."""
    path = cell.run.root / "calls"
    return path.read_text().split() if path.exists() else []


def run(cells, jobs=1):
    return {str(done.cell): done for done in Engine(jobs, 1).run(cells)}


def test_every_cell_is_fitted_and_attacked(made):
    cells = made(("cat", "dog"), ["P4D"], uce={}, esd={})
    assert {done.status for done in run(cells).values()} == {Status.FINISHED}
    assert [calls(cell) for cell in cells] == [["fit", "attack"]] * 4
    assert "$ erasure fit --config" in cells[0].log.read_text()


def test_what_is_finished_is_not_run_again(made):
    cells = made(uce={})
    run(cells[:1])
    before = cells[0].run.metrics.stat().st_mtime_ns
    assert [cell.status for cell in cells] == [Status.FINISHED, Status.MISSING]
    run(cells)
    assert cells[0].run.metrics.stat().st_mtime_ns == before
    assert [calls(cell) for cell in cells] == [["fit"], ["fit"]]


def test_cells_run_side_by_side(made):
    cells = made(("a", "b", "c", "d"), uce={"company": "4"})  # each waits until all four are there
    run(cells, jobs=4)
    assert all(cell.status is Status.FINISHED for cell in cells)


def test_a_failing_cell_is_told_and_the_others_go_on(made):
    cells = made(
        ("cat",), uce={"fail": "no such thing"}, spm={"die": "1"}, esd={"nothing": "1"}, sage={}
    )
    done = run(cells)
    assert done["uce cat seed 0"][1:3] == (Status.FAILED, "no such thing")
    assert done["spm cat seed 0"][1:3] == (Status.FAILED, "killed by SIGSEGV")
    assert done["esd cat seed 0"][1:3] == (Status.FAILED, "erasure fit left nothing behind")
    assert done["sage cat seed 0"].status is Status.FINISHED


def test_a_failed_cell_is_tried_again_and_forgotten_once_it_works(made):
    (cell,) = made(("cat",), uce={"fail": "disk full"})
    run([cell])
    (mended,) = made(("cat",), uce={})
    assert mended.status is Status.FAILED
    run([mended])
    assert mended.status is Status.FINISHED
    assert not mended.failure.exists()


def test_an_edit_that_was_not_measured_is_measured_and_not_fitted_again(made):
    (cell,) = made(("cat",), uce={"unmeasured": "1"})
    run([cell])
    assert calls(cell) == ["fit"]
    assert cell.status is Status.FINISHED
    assert not (cell.run.root / "test").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupted_fit_goes_on_from_its_checkpoint(made, jobs):
    cells = made(("cat", "dog", "fox"), uce={"sleep": "60"})
    cell = cells[0]

    def interrupt():
        while sum(calls(cell) == ["fit"] for cell in cells) < jobs:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(cells, jobs)
    assert [cell.run.last.exists() for cell in cells] == [i < jobs for i in range(3)]
    assert (
        cell.run.last.exists()
    )  # the child was told, and had saved before the interruption came through
    assert cell.status is Status.PARTIAL
    assert cell.command()[:2] == ["fit", "--ckpt_path"]
    run([cell])
    assert cell.status is Status.FINISHED


def test_two_at_once_share_the_cells_and_both_see_them_finished(made):
    cells = made(("a", "b", "c", "d"), uce={"sleep": "0.3"})
    found = []
    threads = [threading.Thread(target=lambda: found.append(run(cells))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [{done.status for done in each.values()} for each in found] == [{Status.FINISHED}] * 2
    assert [calls(cell) for cell in cells] == [["fit"]] * 4


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ("a\nerasure: error: wrong\nTraceback\n", 2, "wrong"),
        ("a\nValueError: odd\n\n", 1, "ValueError: odd"),
        ("", 3, "exit code 3"),
        ("erasure: error: wrong", -9, "killed by SIGKILL"),
    ],
)
def test_last_words(said, code, words):
    assert last_words(said, code) == words
