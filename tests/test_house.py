"""What is kept in step by hand stays in step."""

from pathlib import Path

from erasure_lightning.attacks import ATTACKS
from erasure_lightning.cli.names import CLASSES
from erasure_lightning.methods import METHODS

#: What stands beside the attacks and is none.
SHARED_BY_ATTACKS = {"base", "curve", "exhibit", "outcome", "runner", "slots", "target", "tuned"}

ROOT = Path(__file__).parent.parent


def stems(folder, pattern):
    return {path.stem for path in (ROOT / folder).glob(pattern)} - {"__init__"}


def test_every_method_has_its_file_its_config_its_test_and_its_line():
    methods = stems("erasure_lightning/methods", "*.py")
    assert methods == {entry.target.partition(":")[0].rpartition(".")[2] for entry in METHODS.values()}
    assert methods == {stem.removeprefix("test_") for stem in stems("tests/methods", "test_*.py")}
    assert methods <= {stem.replace("-", "_") for stem in stems("configs", "*.yaml")}


def test_every_attack_has_its_file_its_config_its_test_and_its_line():
    attacks = {entry.target.partition(":")[0].rpartition(".")[2] for entry in ATTACKS.values()}
    assert attacks == stems("erasure_lightning/attacks", "*.py") - SHARED_BY_ATTACKS
    assert attacks == {stem.replace("-", "_") for stem in stems("configs/attacks", "*.yaml")}
    assert attacks <= {stem.removeprefix("test_") for stem in stems("tests/attacks", "test_*.py")}


def test_every_retention_callback_has_its_short_name():
    modules = {path.rpartition(".")[0].rpartition(".")[2] for path in CLASSES.values() if ".retention." in path}
    assert modules == stems("erasure_lightning/retention", "*.py") - {"base"}


def test_budgets_hold():
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / "erasure_lightning").rglob("*.py")}
    shared = {path for path in lengths if path.parent.name == "attacks" and path.stem in SHARED_BY_ATTACKS}
    most = {path: 150 if path.parent.name == "attacks" and path not in shared else 300 for path in lengths}
    assert not {path.name: n for path, n in lengths.items() if n > most[path]}
    assert not [path for path in lengths if path.stem in {"utils", "helpers", "common"}]
