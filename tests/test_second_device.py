"""Every method, adversary and attack on a device that is not the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices written in Python",
)
@pytest.mark.slow
def test_tensors_of_two_devices_are_not_mixed(tmp_path, subtests):
    """In a process that is started anew: autograd has threads for a device, which no fork has."""
    program = Path(__file__).with_name("on_second_device.py")
    path = tmp_path / "errors.json"
    subprocess.run([sys.executable, program, path], check=True, timeout=280)
    errors = json.loads(path.read_text())
    assert "found tensors on second:0 and on the CPU" in errors.pop("control")
    for name, error in errors.items():
        with subtests.test(name):
            assert not error
