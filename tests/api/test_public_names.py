"""The front door: public names are loaded when they are first used."""

import subprocess
import sys

import pytest

import erasure_lightning
from erasure_lightning import attacks, methods, retention
from erasure_lightning.attacks import ATTACKS
from erasure_lightning.methods import METHODS
from erasure_lightning.retention import RETENTION_CALLBACKS


def test_every_public_name_can_be_imported_and_is_listed():
    for name in erasure_lightning.__all__:
        assert getattr(erasure_lightning, name).__name__ == name
    assert set(erasure_lightning.__all__) <= set(dir(erasure_lightning))
    assert list(erasure_lightning.__all__) == sorted(erasure_lightning.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'erise'"):
        _ = erasure_lightning.erise


@pytest.mark.parametrize(
    ("package", "table"),
    [(methods, METHODS), (attacks, ATTACKS), (retention, RETENTION_CALLBACKS)],
)
def test_classes_can_be_imported_by_name(package, table):
    for name in table:
        assert getattr(package, name).__name__ == name
    assert {*table} < {*dir(package)}
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'Sage'"):
        _ = package.Sage


def test_importing_the_package_imports_no_torch():
    code = (
        "import erasure_lightning, sys; print('torch' in sys.modules, 'lightning' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.split() == ["False", "False"]
