"""The structure of the package: rooms, layers, files that must exist together, and language."""

import ast
import re
import tomllib
from inspect import isfunction
from pathlib import Path
from pkgutil import resolve_name

import erasure_lightning
from erasure_lightning.attacks import ATTACKS
from erasure_lightning.methods import METHODS
from erasure_lightning.retention import RETENTION_CALLBACKS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "erasure_lightning"

#: Modules beside the attacks that are none.
SHARED_BY_ATTACKS = {
    *("base", "curve", "dashboards", "fine_tuning_attack"),
    *("outcome", "probe", "prompt_slots", "prompt_variants", "retained_prompts"),
    *("runner", "target"),
}

ROOMS = {path.parent.name for path in PACKAGE.glob("*/*.py")}


def stems(folder, pattern):
    return {path.stem for path in (ROOT / folder).glob(pattern)} - {"__init__"}


def test_every_method_has_its_file_its_config_its_test_and_its_line():
    methods = stems("erasure_lightning/methods", "*.py")
    lines = {entry.target.partition(":")[0].rpartition(".")[2] for entry in METHODS.values()}
    assert methods == lines
    assert methods == {stem.removeprefix("test_") for stem in stems("tests/methods", "test_*.py")}
    assert methods <= {stem.replace("-", "_") for stem in stems("configs", "*.yaml")}


def test_the_contract_of_every_method_is_checked_on_every_family():
    """Families' own tests need not do it again."""
    tests = "".join(path.read_text() for path in (ROOT / "tests/methods").glob("test_*.py"))
    for name in METHODS:
        calls = re.findall(rf"check_method\(\s*{name}\b([^)]*)", tests)
        assert any("families" not in call and "**VARIANT" not in call for call in calls), name


def test_every_attack_has_its_file_its_config_its_test_and_its_line():
    attacks = {entry.target.partition(":")[0].rpartition(".")[2] for entry in ATTACKS.values()}
    assert attacks == stems("erasure_lightning/attacks", "*.py") - SHARED_BY_ATTACKS
    assert attacks == {stem.replace("-", "_") for stem in stems("configs/attacks", "*.yaml")}
    assert attacks <= {stem.removeprefix("test_") for stem in stems("tests/attacks", "test_*.py")}


def test_every_retention_callback_has_its_file_and_its_line():
    lines = {line.target.partition(":")[0] for line in RETENTION_CALLBACKS.values()}
    modules = {module.rpartition(".")[2] for module in lines}
    assert modules == stems("erasure_lightning/retention", "*.py") - {"base"}


def test_there_are_few_rooms_few_loose_modules_and_few_layers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    named = {part.strip() for layer in layers for part in layer.split("|")}
    assert len(ROOMS) <= 20
    assert len(stems("erasure_lightning", "*.py") | {"__init__"}) <= 8
    assert len(layers) <= 12
    modules = ROOMS | stems("erasure_lightning", "*.py")
    assert named == {f"erasure_lightning.{name}" for name in modules}


def test_tests_lie_in_the_rooms_of_what_they_test():
    assert {path.parent.name for path in ROOT.glob("tests/*/test_*.py")} <= ROOMS


def test_files_are_short():
    """Those of methods are as long as their papers need."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "methods"]
    lengths = {path.relative_to(PACKAGE): len(path.read_text().splitlines()) for path in paths}
    assert not {str(path): length for path, length in lengths.items() if length > 300}


def test_no_module_is_a_bag_of_odds_and_ends():
    bags = {"utils", "helpers", "common", "misc", "functional"}
    assert not {path.stem for path in PACKAGE.rglob("*.py")} & bags


#: What depends on a model family: towers, module paths, whole-numbered times, schedulers. It lives
#: in `backbones/`.
FAMILY = re.compile(
    r"text_encoder|text_model|attn\d|to_[kqv]\b|attentions|encoder_hidden_states|add_embedding|unet"
    r"|scheduler|scale_model_input|set_timesteps|timesteps?|alphas_cumprod|init_noise_sigma"
    r"|prediction_type"
)

#: Where one of them is meant all the same, and why.
MEANT = {
    # Weights of towers are split over ranks, and counted, apart from the denoiser's.
    "training/sharded_module.py": {"text_encoders"},
    "planning/memory_footprint.py": {"text_encoders", "text encoders"},
    # Of learning rates, as Lightning calls it.
    "training/gradient.py": {"lr_scheduler", "scheduler"},
    # The user's word for what is edited, not a module.
    "methods/sage.py": {"text_encoder", "text_encoder+joint_attention"},
}


def spoken(path):
    """Names, attributes, keywords and strings of a module's code, docstrings left out."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    documented = [n for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(n.body[0].value) for n in documented if ast.get_docstring(n) is not None}
    for node in nodes:
        match node:
            case ast.Attribute():
                yield node.attr
            case ast.Name():
                yield node.id
            case ast.keyword() | ast.arg():
                yield node.arg or ""
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield "" if " " in text else text  # what has spaces is a message


#: Whatever trains, holds or attacks a model by way of the seam.
ABOVE_THE_SEAM = [
    *(
        path
        for room in ("methods", "retention", "attacks", "training", "diffusion")
        for path in (PACKAGE / room).glob("*.py")
    ),
    *(ROOT / "plugins").glob("[as]*/erasure_lightning_*/*.py"),
    PACKAGE / "planning/memory_footprint.py",
    PACKAGE / "testing.py",
]


def test_no_module_above_the_seam_names_a_family():
    """No tower, module path, whole-numbered time or scheduler's method."""
    indexed = re.compile(r"word_tables\(\)\[|embed\([^\n]*\)\[0\]|\bt\.long\(\)|times\.long\(\)")
    named = {}
    for path in ABOVE_THE_SEAM:
        meant = next((words for name, words in MEANT.items() if str(path).endswith(name)), set())
        words = {word for word in spoken(path) if FAMILY.search(word)} - meant
        named[path.name] = words | set(indexed.findall(path.read_text()))
    assert not {name: words for name, words in named.items() if words}


def test_the_family_s_own_file_names_it():
    """The control."""
    words = set(spoken(PACKAGE / "backbones/cross_attention_diffusion.py"))
    assert {"attn2", "attn2.to_k", "scheduler"} <= {word for word in words if FAMILY.search(word)}


#: Words for which the field, or Python, has a plainer one (CONTRIBUTING's glossary).
PERSONAL = {
    *("said", "told", "asked", "wanted", "found", "given", "made", "nothing", "instead"),
    *("walk", "kept", "album", "ledger", "twin", "judge"),
}


def test_names_are_the_field_s_words():
    named = {}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "plugins").glob("*/erasure_*/*.py")]:
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                    names.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
        words = {word: set(word.strip("_").removesuffix("s").split("_")) for word in names}
        named[path.name] = {name for name in words if words[name] & PERSONAL}
    assert not {name: words for name, words in named.items() if words}


def test_a_line_assigns_one_value():
    """Two stand in a line only where values change places."""
    packed = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                    read = {ast.unparse(part) for value in values for part in ast.walk(value)}
                    if not read & set(map(ast.unparse, targets)):
                        packed.append(f"{path.name}:{node.lineno}")
    assert not packed


#: `from erasure_lightning.X import a, b` in programs, in text and in strings of programs.
IMPORT = re.compile(r"from (erasure_lightning[\w.]*) import (?:\(([^)]*)\)|([\w, ]+))")


def test_imports_in_scripts_and_documents_exist():
    """Also those in strings, which mypy does not see."""
    patterns = "README.md", "CONTRIBUTING.md", "docs/*.md", "benchmarks/*.py", "notebooks/*.ipynb"
    texts = [path for pattern in patterns for path in ROOT.glob(pattern)]
    imported = {
        f"{module}.{name}"
        for path in texts
        for module, *names in IMPORT.findall(path.read_text())
        for name in re.findall(r"\w+", "".join(names))
    }
    assert len(imported) > 50 or not texts  # a copy without them, of another test
    for name in sorted(imported):
        resolve_name(name)


def test_public_names_are_unique():
    """No two classes, functions or constants of the package share a name."""
    defined = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    names = [name]
                case ast.Assign(targets=targets):
                    names = [target.id for target in targets if isinstance(target, ast.Name)]
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names = [name]
                case _:
                    names = []
            for name in names:
                if not name.startswith("_"):
                    defined.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    assert not {name: paths for name, paths in defined.items() if len(paths) > 1}


def test_every_public_function_has_an_example():
    """Doctests run it."""
    functions = {name: getattr(erasure_lightning, name) for name in erasure_lightning.__all__}
    functions = {name: each for name, each in functions.items() if isfunction(each)}
    assert {"attack", "load_backbone"} <= functions.keys()
    assert not {name for name, function in functions.items() if ">>> " not in function.__doc__}
