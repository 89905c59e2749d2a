"""Pages with figures of attacks: generated from the figures, and current."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def robustness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # for its import of rows
    spec = importlib.util.spec_from_file_location("robustness", BENCHMARKS / "robustness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["robustness.md", "choosing.md"])
def test_pages_have_the_figures_that_were_measured(robustness, name):
    """Other figures, the control, change the page."""
    cells = robustness.load()
    text = (robustness.DOCS / name).read_text()
    assert robustness.page(name, cells) == text
    for cell in cells:
        cell["attacks"]["ConceptInversion"]["mean"] = 0.123
    assert robustness.page(name, cells) != text


def test_names_in_the_plot_do_not_overlap(robustness):
    """Also of points in one place."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figure = Figure(figsize=(6, 4))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    points = [(0.5, 0.5, "SAGE"), (0.5, 0.5, "UCE"), (0.51, 0.5, "ESD"), (0.98, 0.97, "STEREO")]
    robustness.label(figure, axes, [(*point, "black") for point in points])
    assert [text.get_text() for text in axes.texts] == [name for *_, name in points]
    renderer = figure.canvas.get_renderer()
    figure.draw_without_rendering()
    boxes = [tuple(Text.get_window_extent(text, renderer).extents) for text in axes.texts]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(robustness.meet(a, b) for a, b in pairs)
    assert robustness.meet(boxes[0], boxes[0])  # the control


def test_new_figures_replace_those_of_the_same_cell_alone(robustness):
    old = robustness.load()
    again = {**old[-1], "own": 0.5}
    merged = robustness.merged(old, [again])
    assert merged == [again if cell == old[-1] else cell for cell in old]
    assert len(robustness.merged(old, [{**again, "concept": "guitar"}])) == len(old) + 1
