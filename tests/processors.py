"""How MKL rounds on the processor that runs the tests."""

from pathlib import Path

_DESCRIPTION = Path("/proc/cpuinfo")
_INTEL = _DESCRIPTION.exists() and "GenuineIntel" in _DESCRIPTION.read_text()

#: MKL's branch, for its variable ``MKL_CBWR``. Tests compare bits with stock pipelines, whose
#: batches have other sizes than ours: a row of a product is rounded alike in all of them on Intel's
#: processors, on others only in the slower branch.
MKL_BRANCH = "AUTO" if _INTEL else "COMPATIBLE"
