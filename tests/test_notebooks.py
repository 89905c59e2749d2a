import json
import os
from pathlib import Path

import nbformat
import pytest
from forks import forking
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))

#: Numbers of the notebooks, and what the tests take in their place: that they run is seen of less.
SMALLER = {
    "data.others: 8": "data.others: 2",
    "data.steps: 10": "data.steps: 5",  # with fewer the cigarette's neighbours are not drawn
    "--data.others 8": "--data.others 2",
    "--data.steps 10": "--data.steps 2",
    "--data.images 2": "--data.images 1 --attack.steps 2",
    "num_inference_steps=20": "num_inference_steps=2",
    "PromptData(seeds=2, others=8, steps=10)": "PromptData(seeds=2, others=2, steps=2)",
    "TrajectoryBank(trajectories=16, steps=20)": "TrajectoryBank(trajectories=2, steps=2)",
    "make_redirect(), 40": "make_redirect(), 2",
    '"steps": 10': '"steps": 2',
    "methods: [uce, speed]": "methods: [uce]",
    ", tobacco, cigar, smoker], neighbours: [pill, syringe]": "], neighbours: [pill]",
    "\n  - {name: skull, anchor: jack-o-lantern, domain: [death, dead, skeleton],"
    " neighbours: [ghost, alien]}": "",
    ', "smoking", "a lollipop", "a guitar", "a fox"]': "]",
    "PromptData(batch_size=8)": "PromptData(batch_size=2)",
    "LocalNoisePreservation(weight=1.0, batch_size=12)": (
        "LocalNoisePreservation(weight=1.0, batch_size=2)"
    ),
}


def outputs(notebook):
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def _run_kernel(argv):
    from ipykernel.kernelapp import launch_new_instance  # reads its environment when imported

    launch_new_instance(argv=argv)


@pytest.fixture
def forked_kernel(tmp_path_factory, monkeypatch):
    """Kernels are forks, which have imported everything already."""
    folder = tmp_path_factory.mktemp("jupyter")
    specification = folder / "kernels" / "python3" / "kernel.json"
    specification.parent.mkdir(parents=True)
    with forking(_run_kernel, folder / "kernel") as program:
        argv = [str(program), "-f", "{connection_file}"]
        content = {"argv": argv, "display_name": "Python 3", "language": "python"}
        specification.write_text(json.dumps(content))
        monkeypatch.setenv("JUPYTER_PATH", str(folder))
        yield


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_readers_see_what_it_printed(path):
    notebook = nbformat.read(path, as_version=4)
    assert pictures(notebook)
    text = "".join(output.get("text", "") for output in outputs(notebook))
    assert "Traceback" not in text
    assert "/tmp" not in text
    assert "/home" not in text


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("forked_kernel")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_as_many_pictures(path, tmp_path, monkeypatch, erasure):
    monkeypatch.setenv("PATH", str(erasure.parent), prepend=os.pathsep)
    notebook = nbformat.read(path, as_version=4)
    shown = pictures(notebook)
    for cell in notebook.cells:
        for number, smaller in SMALLER.items():
            cell.source = cell.source.replace(number, smaller)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert pictures(notebook) == shown
    assert not [
        o for o in outputs(notebook) if o.output_type == "stream" and "erasure: error" in o.text
    ]


def test_every_number_that_is_made_smaller_is_in_a_notebook():
    sources = [cell.source for path in NOTEBOOKS for cell in nbformat.read(path, 4).cells]
    assert all(any(number in source for source in sources) for number in SMALLER)
