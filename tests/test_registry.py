from importlib.metadata import EntryPoint

import pytest
from trivial import Distillation, PlainPrompt

from erasure_lightning import registry
from erasure_lightning.attacks import ATTACKS
from erasure_lightning.callbacks.interrupt import Interrupted
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import METHODS
from erasure_lightning.registry import (
    ATTACK,
    METHOD,
    RETENTION,
    find_offer,
    known_offers,
    load_offer,
)
from erasure_lightning.retention import RETENTION_CALLBACKS


class Package:
    """As much of a distribution as the registry reads."""

    def __init__(self, name, urls=()):
        self.name, self.version = name, "1.0"
        self.metadata = self
        self.fields = {"Project-URL": list(urls), "Summary": [f"All of {name}"]}

    def get_all(self, field):
        return self.fields[field]

    def __getitem__(self, field):
        return self.name


def entry(name, value, package=None, kind=METHOD):
    point = EntryPoint(name, value, kind.group)
    return point._for(package) if package else point


@pytest.fixture
def installed(monkeypatch):
    """Pretends that entry points are installed."""
    monkeypatch.setattr(registry, "failures", {})
    return lambda *entries: monkeypatch.setattr(
        registry, "entry_points", lambda group: [e for e in entries if e.group == group]
    )


def load(name):
    return load_offer(find_offer(METHOD, name))


def test_ours_are_found_in_any_case_and_load():
    assert load("sage") is load("SAGE")
    assert find_offer(METHOD, "sage").class_path == "erasure_lightning.methods.sage.SAGE"


def test_the_table_names_classes():
    assert all(load(name).__name__ == name for name in METHODS)


def test_a_plugin_is_found_and_described(installed):
    installed(
        entry(
            "Distillation",
            "trivial:Distillation",
            Package("plug", ["Paper, https://arxiv.org/abs/1"]),
        )
    )
    offer = find_offer(METHOD, "distillation")
    assert offer[1:] == (
        "Distillation",
        "trivial:Distillation",
        "plug 1.0",
        "All of plug",
        "https://arxiv.org/abs/1",
    )
    assert load_offer(offer) is Distillation


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(ErasureError, match="A retention callback needs a name as text; found 3"):
        find_offer(RETENTION, 3)


def test_an_unknown_name_gets_suggestions():
    with pytest.raises(
        ErasureError,
        match=r"unknown method 'sgae'\. Did you mean 'SAGE' or 'SAFREE'\? Known: .*SAGE",
    ):
        find_offer(METHOD, "sgae")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("Gone", "not_installed_at_all:Gone", "No module named 'not_installed_at_all'"),
        ("Gone", "trivial:Gone", "has no attribute 'Gone'"),
        ("Gone", "trivial", "has no attribute ''"),
        ("Gone", "", "Empty module name"),
        ("mse_loss", "trivial:mse_loss", "expected a subclass of ErasureModule"),
        ("require", "erasure_lightning.checks:require", "expected a subclass of ErasureModule"),
        ("Other", "trivial:Distillation", "named 'Other', but its class is named 'Distillation'"),
    ],
)
def test_a_broken_plugin_says_why(installed, name, value, why):
    installed(entry(name, value, Package("plug")))
    with pytest.raises(
        ErasureError, match=rf"{name} could not be loaded from plug 1\.0 \({value}\).*{why}"
    ):
        load(name)
    with pytest.raises(
        ErasureError, match=rf"unknown method 'Nobody'.*{name} could not be loaded: .*{why}"
    ):
        find_offer(METHOD, "Nobody")


def test_a_plugin_that_exits_does_not_end_the_program(installed, tmp_path, monkeypatch):
    (tmp_path / "quitter.py").write_text("import sys\nsys.exit('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed(entry("Quitter", "quitter:Quitter"))
    with pytest.raises(ErasureError, match="it ended the program when imported .*no licence"):
        load("Quitter")


@pytest.mark.parametrize(
    "interruption", [KeyboardInterrupt(), Interrupted(2, "Interrupted at once.")], ids=repr
)
def test_an_interruption_is_none_of_the_plugin_s_failures(installed, monkeypatch, interruption):
    def interrupted(module):
        raise interruption

    monkeypatch.setattr(registry, "import_module", interrupted)
    installed(entry("Slow", "slow_plugin:Slow"))
    with pytest.raises(type(interruption)):
        load("Slow")
    assert registry.failures == {}


def test_a_broken_plugin_harms_nobody_else(installed):
    installed(entry("Broken", "not_installed_at_all:Broken"))
    assert load("SAGE").__name__ == "SAGE"
    assert registry.failures == {}


def test_a_name_that_two_packages_claim_is_refused(installed):
    one, two = (entry("Twice", f"{name}:Twice", Package(name)) for name in ("one", "two"))
    installed(one, two)
    with pytest.raises(
        ErasureError,
        match=r"'Twice' is claimed by one 1\.0 \(one\.Twice\) and two 1\.0 \(two\.Twice\)",
    ):
        find_offer(METHOD, "Twice")


def test_ours_win_over_a_plugin_of_the_same_name(installed):
    installed(entry("SAGE", "evil:SAGE", Package("evil")))
    assert find_offer(METHOD, "SAGE").target == METHODS["SAGE"].target
    assert [m.package for m in known_offers(METHOD) if m.name == "SAGE"][1] == "evil 1.0"


def test_ours_win_over_a_plugin_that_is_spelt_as_it_was_asked_for(installed):
    installed(entry("sage", "evil:sage", Package("evil")))
    assert find_offer(METHOD, "sage").target == METHODS["SAGE"].target


def test_retention_callbacks_are_found_in_any_case_and_load():
    offers = [find_offer(RETENTION, name.lower()) for name in RETENTION_CALLBACKS]
    assert [load_offer(offer).__name__ for offer in offers] == list(RETENTION_CALLBACKS)


class TestAttacks:
    """The same promises, in a group of their own."""

    def test_ours_are_found_in_any_case_and_load(self):
        offer = find_offer(ATTACK, "p4d")
        assert load_offer(offer).__name__ == "P4D"
        assert all(load_offer(find_offer(ATTACK, name)).__name__ == name for name in ATTACKS)

    def test_a_plugin_is_found_and_no_method(self, installed):
        installed(entry("PlainPrompt", "trivial:PlainPrompt", Package("plug"), ATTACK))
        assert load_offer(find_offer(ATTACK, "plainprompt")) is PlainPrompt
        with pytest.raises(ErasureError, match="unknown method 'plainprompt'"):
            find_offer(METHOD, "plainprompt")

    def test_an_unknown_name_gets_suggestions(self):
        with pytest.raises(
            ErasureError,
            match=r"unknown attack 'ringbell'\. Did you mean 'RingABell'\? Known: .*P4D",
        ):
            find_offer(ATTACK, "ringbell")

    @pytest.mark.parametrize(
        ("name", "value", "why"),
        [
            ("Gone", "not_installed_at_all:Gone", "No module named 'not_installed_at_all'"),
            ("Gone", "trivial:Gone", "has no attribute 'Gone'"),
            ("Distillation", "trivial:Distillation", "expected a subclass of Attack"),
            ("Other", "trivial:PlainPrompt", "named 'Other', but its class is named 'PlainPrompt'"),
        ],
    )
    def test_a_broken_plugin_says_why(self, installed, name, value, why):
        installed(entry(name, value, Package("plug"), ATTACK))
        with pytest.raises(
            ErasureError, match=rf"The attack {name} could not be loaded from plug 1\.0 .*{why}"
        ):
            load_offer(find_offer(ATTACK, name))

    def test_a_plugin_that_exits_does_not_end_the_program(self, installed, tmp_path, monkeypatch):
        (tmp_path / "quitting_attack.py").write_text("import sys\nsys.exit('no licence')\n")
        monkeypatch.syspath_prepend(tmp_path)
        installed(entry("Quitter", "quitting_attack:Quitter", kind=ATTACK))
        with pytest.raises(ErasureError, match="it ended the program when imported .*no licence"):
            load_offer(find_offer(ATTACK, "Quitter"))

    def test_a_broken_plugin_harms_nobody_else(self, installed):
        installed(entry("Broken", "not_installed_at_all:Broken", kind=ATTACK))
        assert load_offer(find_offer(ATTACK, "P4D")).__name__ == "P4D"
        assert registry.failures == {}

    def test_a_name_that_two_packages_claim_is_refused(self, installed):
        installed(*(entry("Twice", f"{n}:Twice", Package(n), ATTACK) for n in ("one", "two")))
        with pytest.raises(
            ErasureError, match=r"The attack name 'Twice' is claimed by one 1\.0 .* and two 1\.0"
        ):
            find_offer(ATTACK, "Twice")

    def test_ours_win_over_a_plugin_of_the_same_name(self, installed):
        installed(entry("P4D", "evil:P4D", Package("evil"), ATTACK))
        assert find_offer(ATTACK, "P4D").target == ATTACKS["P4D"].target
