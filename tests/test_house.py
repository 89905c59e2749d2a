"""What is kept in step by hand stays in step."""

import ast
import re
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


#: What depends on a model family: towers, module paths, whole-numbered times, schedulers. It lives in `backbones/`.
FAMILY = re.compile(
    r"text_encoder|text_model|attn\d|to_[kqv]\b|attentions|encoder_hidden_states|add_embedding|unet|"
    r"scheduler|scale_model_input|set_timesteps|timesteps?|alphas_cumprod|init_noise_sigma|prediction_type"
)

#: Where one of them is meant all the same, and why.
MEANT = {
    # Weights of towers are split over ranks, and counted, apart from the denoiser's.
    "erasure.py": {"text_encoders"},
    "footprint.py": {"text_encoders", "text encoders"},
    # Of learning rates, as Lightning calls it.
    "module.py": {"lr_scheduler", "scheduler"},
    # The user's word for what is edited, not a module.
    "methods/sage.py": {"text_encoder"},
}


def spoken(path):
    """Names, attributes, keywords and strings of a module's code, docstrings left out."""
    tree = ast.parse(path.read_text())
    documented = (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
    docstrings = {id(n.body[0].value) for n in documented if ast.get_docstring(n) is not None}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.keyword | ast.arg) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value if " " not in node.value else ""  # what has spaces is a message


#: Whatever trains, holds or attacks a model by way of the seam.
ROOMS = ("methods", "retention", "attacks")
MODULES = ("module", "erasure", "latents", "bank", "image_sources", "gallery", "sampling", "inversion", "prompts")
MODULES += ("adapting", "saliency", "neighbours", "calibration", "fine_tuning", "footprint", "testing")
ABOVE_THE_SEAM = [
    *(path for room in ROOMS for path in (ROOT / "erasure_lightning" / room).glob("*.py")),
    *(ROOT / "plugins").glob("[as]*/erasure_lightning_*/*.py"),
    *(ROOT / "erasure_lightning" / f"{name}.py" for name in MODULES),
]


def test_nothing_above_the_seam_speaks_of_a_family():
    """No tower, module path, whole-numbered time or scheduler's method."""
    indexed = re.compile(r"word_tables\(\)\[|embed\([^\n]*\)\[0\]|\bt\.long\(\)|times\.long\(\)")
    found = {}
    for path in ABOVE_THE_SEAM:
        meant = next((words for name, words in MEANT.items() if str(path).endswith(name)), set())
        found[path.name] = {word for word in spoken(path) if FAMILY.search(word)} - meant
        found[path.name] |= set(indexed.findall(path.read_text()))
    assert not {name: words for name, words in found.items() if words}


def test_the_family_s_own_file_speaks_of_it():
    """The control."""
    words = set(spoken(ROOT / "erasure_lightning/backbones/stable_diffusion.py"))
    assert {"attn2", "attn2.to_k", "scheduler"} <= {word for word in words if FAMILY.search(word)}
