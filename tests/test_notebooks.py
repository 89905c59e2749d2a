from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))


def outputs(notebook):
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


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
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_as_many_pictures(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    shown = pictures(notebook)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert pictures(notebook) == shown
    assert not [
        o for o in outputs(notebook) if o.output_type == "stream" and "erasure: error" in o.text
    ]
