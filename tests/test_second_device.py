"""Every method, adversary and attack on a device that is not the CPU, in a process of its own."""

import json
import subprocess

import pytest
from forks import forking


def run(argv):
    from pathlib import Path

    from on_second_device import main

    main(Path(*argv))


@pytest.mark.slow
def test_tensors_of_two_devices_are_not_mixed(tmp_path, subtests):
    with forking(run, tmp_path / "run") as program:
        subprocess.run([program, tmp_path / "errors.json"], check=True, timeout=280)
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert "found tensors on second:0 and on the CPU" in errors.pop("control")
    for name, error in errors.items():
        with subtests.test(name):
            assert not error
