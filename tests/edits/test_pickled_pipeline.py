"""The order of edits in a pipeline that another process has pickled."""

import multiprocessing
import pickle

from erasure_lightning import erase
from erasure_lightning.backbones.tiny import TinyBackbone

_FORK = multiprocessing.get_context("fork")


def _erase(pipeline, concept):
    return erase(pipeline, concept, "UCE", anchor="dog", progress_bar=False)


def _pickle_edited(path):
    """Erase from a pipeline and pickle it, after edits that were removed."""
    pipeline = TinyBackbone().to_pipeline()
    for _ in range(3):
        _erase(pipeline, "cat").remove()
    _erase(pipeline, "cat")
    path.write_bytes(pickle.dumps(pipeline))


def test_edits_of_a_pickled_pipeline_are_beneath_those_of_the_process_that_reads_it(tmp_path):
    path = tmp_path / "pipeline"
    # A fork: a count of the edits in a process would be higher there than here.
    other = _FORK.Process(target=_pickle_edited, args=[path])
    other.start()
    other.join()
    pipeline = pickle.loads(path.read_bytes())
    _erase(pipeline, "star")
    edit = _erase(pipeline, "tree")
    assert [entry["edit"] for entry in edit.metadata["base_edits"]] == ["UCE of cat", "UCE of star"]
