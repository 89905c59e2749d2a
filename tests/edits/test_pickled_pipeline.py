"""The order of edits in a pipeline that another process has pickled."""

import pickle
import subprocess
import sys

from erasure_lightning import erase
from erasure_lightning.backbones.tiny import TinyBackbone

#: Erases twice from a pickled pipeline, and prints the edits beneath the second.
_ERASE_TWICE = """
import pickle, sys
from erasure_lightning import erase
pipeline = pickle.load(open(sys.argv[1], "rb"))
for concept in ("star", "tree"):
    edit = erase(pipeline, concept, "UCE", anchor="dog", progress_bar=False)
print(*(entry["edit"] for entry in edit.metadata["base_edits"]), sep=", ")
"""


def test_edits_of_a_pickled_pipeline_are_beneath_those_of_the_process_that_reads_it(tmp_path):
    pipeline = TinyBackbone().to_pipeline()
    for _ in range(3):
        erase(pipeline, "cat", "UCE", anchor="dog", progress_bar=False).remove()
    erase(pipeline, "cat", "UCE", anchor="dog", progress_bar=False)
    (tmp_path / "pipeline").write_bytes(pickle.dumps(pipeline))
    command = [sys.executable, "-c", _ERASE_TWICE, str(tmp_path / "pipeline")]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "UCE of cat, UCE of star"
