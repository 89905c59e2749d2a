import os
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from erasure_lightning.benchmark.engine import Engine, failure_message
from erasure_lightning.benchmark.jobs import Status
from erasure_lightning.benchmark.suite import MethodEntry

pytestmark = pytest.mark.usefixtures("stand_in")


def calls(job):
    """The commands that a job ran."""
    path = job.run.root / "calls"
    return path.read_text().split() if path.exists() else []


def run(jobs, parallel=1):
    return {str(result.job): result for result in Engine(parallel, 1).run(jobs)}


def test_every_job_is_fitted_and_attacked(make_jobs):
    jobs = make_jobs(("cat", "dog"), ["P4D"], uce={}, esd={})
    assert {result.status for result in run(jobs).values()} == {Status.FINISHED}
    assert [calls(job) for job in jobs] == [["fit", "attack"]] * 4
    assert "$ erasure fit --config" in jobs[0].log.read_text()


def test_a_finished_job_is_not_run_again(make_jobs):
    jobs = make_jobs(uce={})
    run(jobs[:1])
    before = jobs[0].run.metrics.stat().st_mtime_ns
    assert [job.status for job in jobs] == [Status.FINISHED, Status.MISSING]
    run(jobs)
    assert jobs[0].run.metrics.stat().st_mtime_ns == before
    assert [calls(job) for job in jobs] == [["fit"], ["fit"]]


def test_jobs_run_in_parallel(make_jobs):
    jobs = make_jobs(("a", "b", "c", "d"), uce={"parallel": "4"})  # each waits for four to run
    run(jobs, parallel=4)
    assert all(job.status is Status.FINISHED for job in jobs)


def test_a_failing_job_is_reported_and_the_others_run(make_jobs):
    jobs = make_jobs(
        ("cat",), uce={"fail": "no such thing"}, spm={"die": "1"}, esd={"no_edit": "1"}, sage={}
    )
    results = run(jobs)
    assert results["uce cat seed 0"][1:3] == (Status.FAILED, "no such thing")
    assert results["spm cat seed 0"][1:3] == (Status.FAILED, "killed by SIGSEGV")
    assert results["esd cat seed 0"][1:3] == (Status.FAILED, "erasure fit wrote no result")
    assert results["sage cat seed 0"].status is Status.FINISHED


def test_a_job_whose_folder_cannot_be_used_has_failed_and_the_others_run(make_jobs):
    file, folder, whole = make_jobs(("cat", "dog", "fox"), uce={})
    file.run.root.parent.mkdir(parents=True)
    file.run.root.touch()
    folder.log.mkdir(parents=True)
    results = {each.job.concept.name: each for each in Engine(1, 1).run([file, folder, whole])}
    assert results["cat"].status is results["dog"].status is folder.status is Status.FAILED
    assert "uce/cat/0 (File exists)" in results["cat"].message
    assert "Is a directory" in results["dog"].message
    assert results["dog"].message == folder.failure.read_text().strip()
    assert results["fox"].status is Status.FINISHED


def test_a_full_disk_stops_all_jobs(make_jobs):
    full, other = make_jobs(("cat", "dog"), uce={})
    full.run.root.mkdir(parents=True)
    full.log.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        run([full, other])
    assert not full.failure.exists()


def test_a_job_whose_folder_cannot_be_read_has_failed(make_jobs):
    (job,) = make_jobs(("cat",), uce={})
    job.out.mkdir()
    unreadable = replace(job, out=job.out / ("x" * 300))
    with pytest.raises(OSError, match="too long"):
        unreadable.next_command()
    assert unreadable.status is Status.FAILED


def test_a_failed_job_is_run_again(make_jobs):
    (job,) = make_jobs(("cat",), uce={"fail": "disk full"})
    run([job])
    (repaired,) = make_jobs(("cat",), uce={})
    assert repaired.status is Status.FAILED
    run([repaired])
    assert repaired.status is Status.FINISHED
    assert not repaired.failure.exists()


def test_an_edit_that_was_not_measured_is_measured_and_not_fitted_again(make_jobs):
    (job,) = make_jobs(("cat",), uce={"unmeasured": "1"})
    run([job])
    assert calls(job) == ["fit"]
    assert job.status is Status.FINISHED
    assert not (job.run.root / "test").exists()


def test_a_fitted_cell_is_a_part_of_another(make_jobs):
    """The control is a part with other options than the cell of its name."""
    uce, esd = make_jobs(("cat",), uce={}, esd={})
    other = asdict(esd.method) | {"options": {"model.lr": 1}}
    method = MethodEntry("both", {"parts": [asdict(uce.method), other]}, {})
    both = replace(uce, method=method)
    both.link_parts()
    assert not both.run.root.exists()
    for job in (uce, esd):
        job.run.root.mkdir(parents=True)
        job.run.edit.touch()
    both.link_parts()
    both.link_parts()
    (part,) = (both.run.root / "parts").iterdir()
    assert part.resolve() == uce.run.root.resolve()
    assert not Path(part.readlink()).is_absolute()


@pytest.mark.parametrize("parallel", [1, 2])
def test_an_interrupted_fit_resumes_from_its_checkpoint(make_jobs, parallel):
    jobs = make_jobs(("cat", "dog", "fox"), uce={"sleep": "60"})
    job = jobs[0]

    def interrupt():
        while sum(calls(job) == ["fit"] for job in jobs) < parallel:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(jobs, parallel)
    # Children were terminated, and saved their state before the interruption was raised.
    assert [job.run.last.exists() for job in jobs] == [i < parallel for i in range(3)]
    assert job.status is Status.PARTIAL
    assert job.next_command()[:2] == ["fit", "--ckpt_path"]
    run([job])
    assert job.status is Status.FINISHED


def test_two_engines_share_the_jobs_and_both_report_them(make_jobs):
    jobs = make_jobs(("a", "b", "c", "d"), uce={"sleep": "0.3"})
    runs = []
    threads = [threading.Thread(target=lambda: runs.append(run(jobs))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [{result.status for result in results.values()} for results in runs]
    assert statuses == [{Status.FINISHED}] * 2
    assert [calls(job) for job in jobs] == [["fit"]] * 4


@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        ("a\nerasure: error: wrong\nTraceback\n", 2, "wrong"),
        ("a\nValueError: odd\n\n", 1, "ValueError: odd"),
        ("", 3, "exit code 3"),
        ("erasure: error: wrong", -9, "killed by SIGKILL"),
        ("", -35, "killed by signal 35"),  # a real-time signal
    ],
)
def test_failure_message(output, code, message):
    assert failure_message(output, code) == message
