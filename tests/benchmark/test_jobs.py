"""Commands of a cell: whose options they have, and which come first."""

from dataclasses import replace

import pytest
from small_suites import suite

from erasure_lightning.benchmark.jobs import Job, list_jobs
from erasure_lightning.benchmark.suite import AttackEntry


@pytest.fixture
def job(tmp_path):
    plain = suite(["cat"], esd={"lr": 0.5})
    concept = replace(plain.concepts[0], neighbours=("lion", "dog"))
    attack = AttackEntry("P4D", {"attack.steps": 3})
    options = {"data.seeds": 2, "model.lr": 0.1}
    whole = replace(plain, concepts=(concept,), attacks=(attack,), options=options)
    return Job(whole, tmp_path, whole.methods[0], concept, 7)


def options_of(command):
    """Values of a command's options, by name."""
    return dict(zip(command[1::2], command[2::2], strict=True))


def test_a_fit_has_the_cell_s_seed_concepts_and_neighbours_and_the_method_s_options_last(job):
    command = job.next_command()
    assert command[0] == "fit"
    options = options_of(command)
    assert options["--model.seed"] == "7"
    assert '"name": "cat"' in options["--model.concepts"]
    assert options["--data.neighbours"] == '["lion", "dog"]'
    assert options["--data.seeds"] == "2"  # of the suite
    assert options["--model.lr"] == "0.5"  # of the method, in the place of the suite's


def test_an_attack_has_options_of_its_own(job):
    job.run.root.mkdir(parents=True)
    for path in (job.run.edit, job.run.metrics):
        path.touch()
    command = job.next_command()
    assert command[0] == "attack"
    options = options_of(command)
    assert (options["--attack"], options["--attack.steps"]) == ("P4D", "3")


def test_there_is_a_job_for_every_seed_method_and_concept(tmp_path):
    whole = replace(suite(["cat", "dog"], esd={}, uce={}), seeds=(3, 4))
    jobs = list_jobs(whole, tmp_path)
    assert len({str(job) for job in jobs}) == len(jobs) == 8
    assert [job.seed for job in jobs] == [3] * 4 + [4] * 4
