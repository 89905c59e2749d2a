"""Plugins, through the metadata that pip leaves: at the command line, and in an edit."""

import sys
from dataclasses import asdict

import pytest
import torch
import yaml
from edit_files import write_content
from packages import install
from trivial import TINY

from erasure_lightning import registry
from erasure_lightning.__main__ import main
from erasure_lightning.adapters.base import AdapterPlan
from erasure_lightning.api.configs import SHIPPED, find_config
from erasure_lightning.cli import slow_import
from erasure_lightning.cli.list_commands import _print_worlds
from erasure_lightning.concepts.worlds import WORLDS_GROUP
from erasure_lightning.edits.applied import apply_edit
from erasure_lightning.errors import ErasureError

#: A module that may be imported only where it is named.
UNTOUCHABLE = "raise AssertionError('imported')\n"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path, where packages go; nothing in it outlives the test."""
    before = set(sys.modules)
    monkeypatch.setattr(registry, "failures", {})
    monkeypatch.chdir(tmp_path)
    packages = tmp_path / "site"
    packages.mkdir()
    monkeypatch.syspath_prepend(packages)
    yield packages
    for name in [
        n
        for n in set(sys.modules) - before
        if str(packages) in str(getattr(sys.modules[n], "__file__", ""))
    ]:
        del sys.modules[name]


def install_broken(site):
    """One package of every broken kind."""
    install(site, "gone", {"Gone": "gone_away:Gone"})
    install(site, "empty", {"Empty": "empty_module:Empty"}, {"empty_module.py": ""})
    install(site, "wrong", {"Wrong": "wrong_type:Wrong"}, {"wrong_type.py": "class Wrong: pass\n"})
    install(
        site,
        "quitter",
        {"Quitter": "quitting:Quitter"},
        {"quitting.py": "import sys\nsys.exit('no licence')\n"},
    )
    install(
        site,
        "renamed",
        {"Renamed": "other_name:Idle"},
        {"other_name.py": "from trivial import Idle\n"},
    )
    install(site, "nameless", {"Nameless": "gone_away:Nameless"}, metadata="")
    for name in ("one", "two"):
        install(site, name, {"Twice": f"{name}:Twice"})


BROKEN = {
    "Gone": "from gone 1.0 (gone_away:Gone): ModuleNotFoundError: No module named 'gone_away'.",
    "Empty": (
        "from empty 1.0 (empty_module:Empty): AttributeError: module 'empty_module' has no"
        " attribute 'Empty'."
    ),
    "Wrong": (
        "from wrong 1.0 (wrong_type:Wrong): TypeError: expected a subclass of ErasureModule, found "
    ),
    "Quitter": (
        "from quitter 1.0 (quitting:Quitter): it ended the program when imported (SystemExit: no"
        " licence)."
    ),
    "Renamed": "the entry point is named 'Renamed', but its class is named 'Idle'.",
    "Nameless": "from gone_away (gone_away:Nameless): ModuleNotFoundError: ",
}


def test_every_broken_package_is_shown_and_none_of_them_ends_the_listing(site, capfd):
    install_broken(site)
    assert main(["methods", "--verbose"]) == 0
    done = capfd.readouterr()
    assert "Traceback" not in done.out + done.err
    for name, why in BROKEN.items():
        (line,) = [
            line
            for line in done.out.splitlines()
            if line.startswith(f"    BROKEN: The method {name} ")
        ]
        assert why in line
    assert done.out.count("(another package claims this name too)") == 2
    assert "SAGE  " in done.out.split("    loads\n")[0]


def test_a_world_that_cannot_be_loaded_is_shown(site, capsys):
    files = {"quitting.py": "import sys\nsys.exit('no licence')\n"}
    install(site, "quitter", {"park": "quitting:ROOT"}, files, group=WORLDS_GROUP)
    _print_worlds(verbose=True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "'park'" in line]
    assert line.startswith("    BROKEN: The world 'park' could not be loaded from quitter 1.0")
    assert "it ended the program when imported (SystemExit: no licence)" in line


def test_a_broken_package_is_an_error_only_where_it_is_named(site, capsys):
    install_broken(site)
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", "sage.yaml", "--print_config"])
    assert not caught.value.code
    assert "erasure_lightning.methods.sage.SAGE" in capsys.readouterr().out
    for name in BROKEN:
        assert main(["fit", "--model", name]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"erasure: error: The method {name} could not be loaded")
    assert main(["fit", "--model", "twice"]) == 2
    assert "claimed by one 1.0 (one.Twice) and two 1.0 (two.Twice)" in capsys.readouterr().err


# imports that take long


def test_a_package_that_nobody_names_is_not_imported(site, capsys):
    install(
        site, "slow", {"Slow": "slow_package.slow:Slow"}, {"slow_package/__init__.py": UNTOUCHABLE}
    )
    assert main(["methods"]) == 0
    assert "Slow\n" in capsys.readouterr().out
    assert registry.load_offer(registry.find_offer(registry.METHOD, "sage")).__name__ == "SAGE"
    assert find_config("sage").parent == SHIPPED
    with pytest.raises(ErasureError, match="unknown config"):
        find_config("slow")
    assert "slow_package" not in sys.modules
    with pytest.raises(ErasureError, match="AssertionError: imported"):
        registry.load_offer(registry.find_offer(registry.METHOD, "slow"))


@pytest.mark.parametrize(("patience", "lines"), [(0.05, 2), (60, 1)])
def test_a_long_import_is_named_and_can_be_stopped(site, capsys, monkeypatch, patience, lines):
    monkeypatch.setattr(slow_import, "NOTICE_SECONDS", patience)
    slow = (
        "import signal, time\ntime.sleep(0.5)\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(60)\n"
    )
    install(site, "slow", {"Slow": "slow_plugin:Slow"}, {"slow_plugin.py": slow})
    assert main(["fit", "--model", "Slow"]) == 130
    *waiting, stopped = capsys.readouterr().err.splitlines()
    assert stopped == "erasure: Interrupted at once; what was written before is untouched."
    assert (
        waiting
        == [
            "erasure: still importing Slow from slow 1.0 (slow_plugin) after 0.05 s; Ctrl-C"
            " stops it."
        ][: lines - 1]
    )


# retention callbacks

RETENTION = """
from erasure_lightning.retention.base import RetentionCallback

class MyRetention(RetentionCallback):
    name = "mine"

    def term(self, module):
        return 1 + 0 * next(iter(module.editable().values())).sum()
"""


@pytest.fixture
def callbacks(site):
    """A package with a retention callback, and one whose callback cannot be imported."""
    group = registry.RETENTION.group
    install(site, "mine", {"MyRetention": "mine:MyRetention"}, {"mine.py": RETENTION}, group=group)
    install(site, "gone", {"GoneRetention": "gone_away:GoneRetention"}, group=group)


def chosen(capsys, *argv):
    """The callbacks of ``--print_config``, their weights by their class paths."""
    with pytest.raises(SystemExit) as caught:
        main(["fit", *TINY, *argv, "--print_config"])
    assert not caught.value.code
    listed = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    return {callback["class_path"]: callback["init_args"]["weight"] for callback in listed}


@pytest.mark.usefixtures("callbacks")
def test_a_retention_callback_of_a_package_has_a_short_name(site, capsys):
    short = ["--trainer.callbacks+=MyRetention", "--trainer.callbacks.weight=3"]
    assert chosen(capsys, *short) == {"mine.MyRetention": 3}
    assert chosen(capsys, "--trainer.callbacks+={class_path: myretention}") == {
        "mine.MyRetention": 1
    }
    (site / "c.yaml").write_text("trainer: {callbacks: [MyRetention, LocalNoisePreservation]}\n")
    assert chosen(capsys, "--config", str(site / "c.yaml")) == {
        "mine.MyRetention": 1,
        "erasure_lightning.retention.local_noise.LocalNoisePreservation": 0.3,
    }
    assert main(["fit", *TINY, *short, "--measure", "false", "--run_dir", "r"]) == 0
    with open("r/metrics.csv") as table:
        assert "loss/mine" in table.readline()


@pytest.mark.usefixtures("callbacks")
def test_a_broken_retention_callback_is_an_error_only_where_it_is_named(capsys):
    for name, words in {
        "GoneRetention": (
            "The retention callback GoneRetention could not be loaded from gone 1.0"
            " (gone_away:GoneRetention): ModuleNotFoundError: No module named 'gone_away'."
        ),
        "MyRetentoin": "unknown trainer.callbacks 'MyRetentoin'. Did you mean 'MyRetention'",
    }.items():
        assert main(["fit", *TINY, f"--trainer.callbacks+={name}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"erasure: error: {words}")
    assert list(chosen(capsys, "--trainer.callbacks+=UnconditionalDrift")) == [
        "erasure_lightning.retention.unconditional_drift.UnconditionalDrift"
    ]


# adapters

ADAPTER = """
import torch
from erasure_lightning.adapters.base import Adapter

class Shift(Adapter):
    def __init__(self, layer, *, scale):
        super().__init__(layer)
        self.scale = scale
        self.vector = torch.nn.Parameter(torch.zeros(layer.out_features))

    def forward(self, x, output):
        return output + self.scale * self.vector
"""


def install_adapter(site, name, target="shifts:Shift"):
    group = "erasure_lightning.adapters"
    install(site, name, {"shift": target}, {"shifts.py": ADAPTER}, group=group)


@pytest.fixture
def shifted(tmp_path, tiny):
    """An edit with adapters of kind ``shift``, and the layer beside which one stands."""
    layer = next(iter(tiny.text_layers())).removeprefix("denoiser.")
    vector = torch.ones(tiny.denoiser.get_submodule(layer).out_features)
    plan = asdict(AdapterPlan("shift", [layer], {"scale": 2.0}))
    edit = tmp_path / "edit.safetensors"
    write_content(edit, {f"unet.{layer}.adapter.vector": vector}, {"adapters": {"unet": plan}})
    return edit, layer


def test_an_edit_installs_the_adapters_of_a_package(site, tiny, shifted):
    edit, layer = shifted
    pipeline = tiny.to_pipeline()
    with pytest.raises(ErasureError, match="of kind 'shift'; known are eraser, gloce, lora, .*spm"):
        apply_edit(edit, pipeline, transfer=True)  # the control
    install_adapter(site, "shifts")
    module = pipeline.unet.get_submodule(layer)
    x = torch.randn(2, 3, module.in_features)
    before = module(x)
    apply_edit(edit, pipeline, transfer=True)
    assert torch.equal(module(x), before + 2)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("gone_away:Shift", "ModuleNotFoundError: No module named 'gone_away'. Mend or"),
        ("shifts:torch", "TypeError: expected a subclass of Rule, found <module 'torch'"),
        ("shifts:Gone", "AttributeError: module 'shifts' has no attribute 'Gone'. Mend or"),
        ("", ": "),
    ],
)
def test_a_broken_adapter_is_an_error_where_its_edit_is_applied(site, tiny, shifted, target, words):
    install_adapter(site, "broken", target)
    with pytest.raises(ErasureError) as caught:
        apply_edit(shifted[0], tiny.to_pipeline(), transfer=True)
    start = f"The adapter shift could not be loaded from broken 1.0 ({target}): "
    assert str(caught.value).startswith(start)
    assert words in str(caught.value)


def test_adapters_that_two_packages_claim_are_refused(site, tiny, shifted):
    install_adapter(site, "one")
    install_adapter(site, "two")
    with pytest.raises(
        ErasureError,
        match=r"'shift' is claimed by one 1\.0 \(shifts:Shift\) and two 1\.0 \(shifts:Shift\)",
    ):
        apply_edit(shifted[0], tiny.to_pipeline(), transfer=True)


# configs


def test_configs_of_packages_are_found_by_name(site):
    configs = {f"plug/configs/{name}.yaml": "model: Plug\n" for name in ("plug", "sage")}
    install(site, "plug", {"Plug": "plug.method:Plug"}, {"plug/__init__.py": UNTOUCHABLE} | configs)
    assert find_config("plug") == find_config("plug.yaml") == site / "plug/configs/plug.yaml"
    assert find_config("sage") == SHIPPED / "sage.yaml"
    with pytest.raises(ErasureError, match=r"Did you mean 'plug'\? Recipes"):
        find_config("plugg")
    with pytest.raises(ErasureError, match=r"no such file. Shipped: .*plug.yaml, .*sage.yaml, "):
        find_config("zzz.yaml")


@pytest.mark.parametrize(
    "target", ["", ":Odd", ".odd:Odd", "not a module!", "gone_away.inner:Odd", "odd\0:Odd"]
)
def test_a_target_that_is_no_module_has_no_configs_and_does_no_harm(site, target):
    install(site, "odd", {"Odd": target})
    assert find_config("sage") == SHIPPED / "sage.yaml"
