import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from small_suites import result

from erasure_lightning.__main__ import main
from erasure_lightning.benchmark import engine
from erasure_lightning.cli import benchmark
from erasure_lightning.cli.benchmark import _threads

pytestmark = pytest.mark.usefixtures("folder")

TINY = {
    "name": "pets",
    "backbone": "TinyBackbone",
    "methods": ["uce"],
    "concepts": [
        {"name": "cat", "anchor": "dog", "domain": ["star"]},
        {"name": "bird", "anchor": "boat"},
    ],
    "options": {"data.seeds": 2, "data.others": 2, "data.steps": 2, "trainer.accelerator": "cpu"},
}


@pytest.fixture
def write_suite(folder):
    """Writes the suite, with changes."""

    def write(**changes):
        (folder / "pets.yaml").write_text(yaml.safe_dump(TINY | changes))

    write()
    return write


@pytest.fixture
def error(capsys):
    """Runs the command, expects one line of error and exit code 2, and returns the line."""

    def run(*argv):
        assert main(["benchmark", *argv]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("erasure: error: ")

    return run


def finish(folder, concept):
    """Write the files of a finished job."""
    run = folder / "runs" / "pets" / "cells" / "uce" / concept / "0"
    result().save(run / "metrics.json")
    (run / "edit.safetensors").touch()
    return run


class TestList:
    def test_it_prints_number_cell_and_status_without_torch(self, write_suite, folder):
        finish(folder, "cat")
        code = "import sys; from erasure_lightning.__main__ import main;"
        code += " main(['benchmark', 'pets.yaml', '--list']); print(*sys.modules)"
        command = [sys.executable, "-c", code]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        *lines, modules = output.splitlines()
        assert lines == ["0\tuce cat seed 0\tfinished", "1\tuce bird seed 0\tmissing"]
        assert not {"torch", "lightning", "numpy"} & set(modules.split())

    def test_shipped_suites_are_found_by_name(self, capsys):
        assert main(["benchmark", "emoji-bench", "--list"]) == 0
        assert "0\tuce cigarette seed 0\tmissing" in capsys.readouterr().out


class TestMistakes:
    def test_unknown_suite(self, error):
        message = error("emoji-bensh.yaml")
        assert message.startswith("unknown suite 'emoji-bensh.yaml': no such file.")
        assert message.endswith(
            "Did you mean 'emoji-bench' or 'emoji-bench-robust'?"
            " Shipped: emoji-bench, emoji-bench-robust, held-out, held-out-2, held-out-robust."
        )

    def test_unknown_config_and_unknown_concepts(self, error, write_suite):
        write_suite(methods=["ucee"])
        message = "pets.yaml: unknown config 'ucee': no such file. Did you mean 'uce'?"
        assert message in error("pets.yaml")
        write_suite(concepts=[{"name": "c", "erase": "weapn.yaml"}])
        assert "found no file 'weapn.yaml'. Did you mean 'weapon'?" in error("pets.yaml")

    def test_an_unknown_option_of_fit_is_reported_before_anything_runs(
        self, error, write_suite, folder
    ):
        write_suite(options=TINY["options"] | {"data.sedes": 3})
        message = "The method uce cannot run: unknown argument '--data.sedes'. Did you mean"
        assert f"{message} '--data.seeds'" in error("pets.yaml")
        assert not (folder / "runs").exists()

    def test_a_value_out_of_range_is_reported_before_anything_runs(
        self, error, write_suite, folder
    ):
        write_suite(options=TINY["options"] | {"data.seeds": 1})
        message = "The method uce cannot run: PromptData needs seeds of at least 2; found 1."
        assert message in error("pets.yaml")
        assert not (folder / "runs").exists()

    def test_parts_of_a_method_are_checked_too(self, error, write_suite, folder):
        parts = ["uce", {"config": "esd", "options": {"model.lrr": 1}}]
        write_suite(methods=[{"name": "both", "config": {"parts": parts}}])
        message = "The method both cannot run: The part esd cannot run: model has no option 'lrr'"
        assert message in error("pets.yaml")
        assert not (folder / "runs").exists()

    def test_an_unknown_attack_is_reported_before_anything_runs(self, error, write_suite, folder):
        write_suite(attacks=["SoftEmbeding"])
        assert "unknown attack 'SoftEmbeding'. Did you mean 'SoftEmbedding'?" in error("pets.yaml")
        assert not (folder / "runs").exists()

    @pytest.mark.parametrize(
        ("attack", "message"),
        [
            ("soft-embedding", "unknown attack 'soft-embedding'. Did you mean 'SoftEmbedding'?"),
            (
                {"attack": "SoftEmbedding", "options": {"attack.stepz": 3}},
                "The attack SoftEmbedding cannot run: attack has no option 'stepz'",
            ),
            (
                {"attack": "P4D", "options": {"config": "p4dd.yaml"}},
                "The attack P4D cannot run: unknown config 'p4dd.yaml'",
            ),
            (
                {"attack": "SoftEmbedding", "options": {"attack.steps": -3}},
                "The attack SoftEmbedding cannot run: SoftEmbedding needs steps of at least 0",
            ),
            (
                {"attack": "SoftEmbedding", "options": {"data.seeds": 1}},
                "The attack SoftEmbedding cannot run: AttackSettings needs seeds of at least 2",
            ),
            (
                {"attack": "SoftEmbedding", "options": {"data.scorer": "./nosuch"}},
                "The attack SoftEmbedding cannot run: The scorer './nosuch' was not found",
            ),
            (
                "SoftEmbedding",
                "The attack SoftEmbedding cannot run: An attack needs a scorer that recognises the"
                " concept; TinyBackbone brings none.",
            ),
        ],
        ids=["name", "option", "config", "budget", "seeds", "scorer", "no scorer"],
    )
    def test_what_an_attack_lacks_is_reported_before_anything_runs(
        self, error, write_suite, folder, attack, message
    ):
        write_suite(attacks=[attack])
        assert message in error("pets.yaml")
        assert not (folder / "runs").exists()

    def test_a_concept_that_the_world_lacks_is_reported_before_anything_runs(
        self, error, write_suite, folder
    ):
        pytest.importorskip("erasure_lightning_emoji_world")
        concepts = [{"name": "pets", "erase": ["cat", "cigarete"]}]
        write_suite(backbone="emoji-world", concepts=concepts)
        assert "The world emoji-world does not know 'cigarete'. Nearest: cigarette" in error(
            "pets.yaml"
        )
        assert not (folder / "runs").exists()

    def test_no_such_cell(self, error, write_suite):
        assert (
            error("pets.yaml", "--cell", "2")
            == "--cell needs a number from 0 to 1 (see --list); found 2."
        )
        assert "--list is not allowed with --cell" in error("pets.yaml", "--cell", "1", "--list")
        assert "erasure benchmark needs --jobs of at least 1; found 0." in error(
            "pets.yaml", "--jobs", "0"
        )

    def test_a_folder_with_other_files(self, error, write_suite, folder):
        (folder / "photos").mkdir()
        (folder / "photos" / "me.png").touch()
        assert "photos is not empty and holds no benchmark" in error(
            "pets.yaml", "--run_dir", "photos"
        )

    def test_a_summary_needs_a_started_benchmark(self, error, write_suite, folder):
        message = "--summary needs a benchmark that was begun; found none in runs/pets."
        assert error("pets.yaml", "--summary") == message
        assert not (folder / "runs").exists()

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("seeds", "two", "a whole number; found 'two'"),
            ("steps", 2.5, "a whole number; found 2.5"),
            ("image_size", "64px", "a whole number; found '64px'"),
            ("guidance", "high", "a number; found 'high'"),
        ],
    )
    def test_what_images_are_drawn_with_must_be_numbers(
        self, error, write_suite, option, value, words
    ):
        write_suite(options={f"data.{option}": value})
        assert f"pets: options.data.{option} needs {words}." in error("pets.yaml", "--check")

    def test_a_check_needs_a_world(self, error, write_suite):
        assert "The backbone 'TinyBackbone' was not found" in error("pets.yaml", "--check")


class TestSummary:
    @pytest.fixture(autouse=True)
    def one_of_two(self, write_suite, folder):
        out = folder / "runs" / "pets"
        assert main(["benchmark", "pets.yaml", "--list"]) == 0
        finish(folder, "cat")
        suite = TINY | {"methods": [{"name": "uce", "config": "uce"}]}
        (out / "suite.yaml").write_text(yaml.safe_dump(suite))
        return out

    def test_it_summarizes_the_finished_cells(self, one_of_two, capsys):
        assert main(["benchmark", "pets.yaml", "--summary"]) == 0
        assert "| uce | 1/2 |" in capsys.readouterr().out
        names = {path.name for path in one_of_two.iterdir()}
        assert {"table.csv", "table.parquet", "protocols.json"} <= names
        assert {"summary.md", "summary.tex", "pareto.png"} <= names
        assert "| bird | thing | - |" in (one_of_two / "summary.md").read_text()

    def test_failed_cells_are_reported(self, one_of_two, error):
        failure = one_of_two / "cells" / "uce" / "bird" / "0" / "failure.txt"
        failure.parent.mkdir(parents=True)
        failure.write_text("disk full\n")
        message = error("pets.yaml", "--summary")
        assert message.startswith("1 of 2 cells failed; run again to retry them.")
        assert message.endswith("The first, uce bird seed 0: disk full")
        assert "failed,disk full" in (one_of_two / "table.csv").read_text()

    def test_a_cell_whose_figures_cannot_be_read_has_failed(self, one_of_two, error, folder):
        """The other cell is summarized."""
        metrics = finish(folder, "bird") / "metrics.json"
        metrics.write_bytes(metrics.read_bytes()[:100])
        message = error("pets.yaml", "--summary")
        assert "1 of 2 cells failed; run again to retry them. The first, uce bird" in message
        assert f"{metrics.relative_to(folder)} needs figures" in message
        assert message.endswith("Delete this file before you run it again.")
        assert "| uce | 1/2 |" in (one_of_two / "summary.md").read_text()
        assert "| bird | thing | failed |" in (one_of_two / "summary.md").read_text()

    def test_a_cell_without_a_folder_to_write_into_has_failed(
        self, one_of_two, error, monkeypatch, capsys
    ):
        (one_of_two / "cells" / "uce" / "bird").touch()
        monkeypatch.setattr(benchmark, "_check_options", lambda *_: None)
        message = error("pets.yaml")
        assert message.startswith("1 of 2 cells failed")
        assert "The first, uce bird seed 0: A run needs a folder" in message
        assert "| bird | thing | failed |" in (one_of_two / "summary.md").read_text()
        assert "uce bird seed 0 failed: A run needs a folder" in error("pets.yaml", "--cell", "1")
        assert "log.txt" not in capsys.readouterr().out  # which was not written

    def test_another_suite_in_that_folder_is_refused(self, write_suite, error):
        write_suite(options=TINY["options"] | {"data.seeds": 3})
        message = "They differ in options.data.seeds: 2 and 3 (there and here)."
        assert message in error("pets.yaml", "--summary")

    def test_an_entry_that_was_removed_may_not_return_with_another_content(
        self, write_suite, error, folder, monkeypatch
    ):
        """The folder keeps it, since its cells are still there."""
        finish(folder, "bird")
        write_suite(concepts=[TINY["concepts"][0], {"name": "boat"}])
        monkeypatch.setattr(benchmark, "_check_options", lambda *_: None)
        monkeypatch.setattr(benchmark, "_summarize", lambda *_: None)
        monkeypatch.setattr(engine.Engine, "run", lambda *_: (job for job in ()))
        assert main(["benchmark", "pets.yaml"]) == 0
        write_suite(concepts=[TINY["concepts"][0], {"name": "bird", "anchor": "tree"}])
        assert "They differ in concepts.bird.erase.0.anchor: boat and tree" in error("pets.yaml")
        assert "They differ in concepts.bird" in error("pets.yaml", "--list")
        write_suite()
        assert main(["benchmark", "pets.yaml", "--list"]) == 0

    def test_another_suite_may_replace_one_without_edits(self, one_of_two, write_suite):
        (one_of_two / "cells" / "uce" / "cat" / "0" / "edit.safetensors").unlink()
        write_suite(options=TINY["options"] | {"data.seeds": 3})
        assert main(["benchmark", "pets.yaml", "--summary"]) == 0


def test_threads_are_from_the_environment_or_a_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert _threads(4) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [_threads(jobs) for jobs in (1, 4, 16)] == [8, 2, 1]


#: In the place of `erasure`: jobs of the second concept end with the benchmark that is killed.
JOB = """#!/bin/sh
case "$*" in *bird*)
  [ -e killed ] || {{ until [ -e killed ]; do sleep 0.05; done; exit 1; }}
esac
exec {erasure} "$@"
"""


@pytest.mark.slow
def test_a_killed_benchmark_resumes_and_runs_only_missing_cells(
    write_suite, folder, capsys, erasure, monkeypatch
):
    (folder / "job").write_text(JOB.format(erasure=erasure))
    monkeypatch.setattr(engine, "_PROGRAM", ("sh", str(folder / "job")))
    out = folder / "runs" / "pets"
    first, second = (out / "cells" / "uce" / name / "0" for name in ("cat", "bird"))
    running = os.fork()
    if running == 0:
        os._exit(main(["benchmark", "pets.yaml"]))
    deadline = time.monotonic() + 120
    while not (second / "log.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(running, signal.SIGKILL)
    os.waitpid(running, 0)
    (folder / "killed").touch()
    files = [first / "metrics.json", first / "edit.safetensors"]
    times = [file.stat().st_mtime_ns for file in files]
    assert not (out / "table.csv").exists()
    assert main(["benchmark", "pets.yaml", "--jobs", "2"]) == 0
    assert [file.stat().st_mtime_ns for file in files] == times
    assert (first / "log.txt").read_text().count("$ erasure fit") == 1
    output = capsys.readouterr().out
    assert "pets: 1 of 2 cells to run" in output
    assert "| uce | 2/2 |" in output
    assert (out / "table.csv").read_text().count(",finished,") == 2
    assert main(["benchmark", "pets.yaml"]) == 0
    assert "to run" not in capsys.readouterr().out
