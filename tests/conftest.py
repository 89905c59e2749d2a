import gc
import importlib
import inspect
import os
import signal
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

# Workers of pytest-xdist, and what they start, share the cores; torch's threads would fight for
# them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests compare bits, which otherwise depend on the alignment of tensors in memory.
os.environ.setdefault("MKL_CBWR", "AUTO")
# What starts after this one (workers of pytest-xdist) keeps memory that tensors leave for the next
# ones: without, glibc returns and requests it again for most operations.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**26))
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**26))
os.environ.setdefault("MALLOC_TOP_PAD_", str(2**26))

import pytest
from forks import forking

# Fixtures import torch, Lightning and the package themselves: the process that hands tests to the
# workers of pytest-xdist reads this file too, and they wait for it.

# Models are webs of many small objects: no search for garbage for every few hundred.
gc.set_threshold(20_000, 20, 20)

WORLDS = ("emoji-world", "emoji-world-xl", "emoji-world-flux")

# A shell that runs the tests in the background lets them ignore Ctrl-C, which some of them press.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Slow tests first: one at the end would leave the other worker of pytest-xdist idle.

    They are also those of our trained worlds, of which one worker then reads and draws what all
    of them need.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """What is imported stays: the garbage collector need not look through it again."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def working_folder(tmp_path_factory):
    """What a test writes by a relative path is not written into the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        yield


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def erasure(tmp_path_factory, worlds_read_once):
    """The program `erasure`, whose processes are forks; a benchmark's jobs are too."""
    import torch

    from erasure_lightning.__main__ import main
    from erasure_lightning.benchmark import engine
    from erasure_lightning.concepts.worlds import find_world
    from erasure_lightning.training import base

    path = tmp_path_factory.mktemp("bin") / "erasure"

    def run(argv):
        engine._PROGRAM = (str(path),)
        return main(argv)

    importlib.import_module("erasure_lightning.cli.run")  # once for all of them
    if find_world("emoji-world"):
        base.load_backbone("emoji-world", torch.float32, "all")  # and what that imports
    with forking(run, path):
        yield path


@pytest.fixture(autouse=True, scope="session")
def few_words_of_english():
    """SAGE encodes each word of its vocabulary once, and 20,840 show no more than some."""
    from erasure_lightning.concepts.prompt_lists import read_prompt_list
    from erasure_lightning.methods import sage

    def read(name, owner):
        return read_prompt_list(name, owner)[:: 100 if name == "english" else 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sage, "read_prompt_list", read)
        yield


@pytest.fixture(autouse=True, scope="session")
def few_pairs_in_saliency_maps():
    """ANT's maps are sums over batches of pairs: two show it as well as five."""
    from erasure_lightning.methods import ant

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ant, "_PAIRS", 4)
        yield


@pytest.fixture(autouse=True, scope="session")
def worlds_read_once():
    """What fits edit are copies of our trained worlds; all else may be another model next time."""
    from loaded_once import copies_of_one

    from erasure_lightning.concepts.worlds import find_world
    from erasure_lightning.training import base

    read = base.load_backbone
    copied = copies_of_one(read)

    def load(name, *options):
        known = name in WORLDS and find_world(name)  # raises where a test hides the package
        return (copied if known else read)(name, *options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "load_backbone", load)
        yield


@pytest.fixture(autouse=True, scope="session")
def prompts_encoded_once():
    """Models with the same text towers share what these encoded."""
    from loaded_once import encoded_once

    from erasure_lightning.backbones.base import Backbone

    with pytest.MonkeyPatch.context() as patch:
        encode = Backbone.encode
        patch.setattr(Backbone, "encode", encoded_once(encode))
        yield encode


@pytest.fixture(autouse=True, scope="session")
def trainers_search_once():
    """Every trainer asks all packages installed for entry points of Lightning; none has one."""
    from lightning.fabric.utilities import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", cache(registry.entry_points))
        yield


@pytest.fixture(autouse=True, scope="session")
def signatures_read_once():
    """Attention of diffusers reads the signature of its processor at every call."""
    read = cache(inspect.signature)

    def signature(call):
        return read(call.__func__ if inspect.ismethod(call) else call)

    reads = SimpleNamespace(signature=signature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.models.attention_processor.inspect", reads)
        yield


@pytest.fixture(autouse=True, scope="session")
def moved_if_elsewhere():
    """Trainers on the CPU move modules there, parameter by parameter, where all are already."""
    import torch
    from lightning import LightningModule

    kind = LightningModule
    move, leave = kind.to, kind.cpu

    def to(self, *arguments, **options):
        is_there = (arguments, options) == ((self.device,), {}) and self.device.type == "cpu"
        if is_there and not torch.cuda.is_available():
            return self
        return move(self, *arguments, **options)

    def cpu(self):
        return leave(self) if torch.cuda.is_available() else self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "to", to)
        patch.setattr(kind, "cpu", cpu)
        yield


@pytest.fixture(autouse=True, scope="session")
def built_without_modes():
    """Strategies build models in modes that choose the device of all, and see every call of torch.

    On the CPU there is nothing to choose.
    """
    import torch
    from lightning.pytorch.strategies import Strategy

    @contextmanager
    def tensor_init_context(self, empty_init=None):
        with self.precision_plugin.tensor_init_context():
            yield

    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr(Strategy, "tensor_init_context", tensor_init_context)
        yield


@pytest.fixture(autouse=True, scope="session")
def seeds_of_devices_that_are_there():
    """For GPUs that are not there, torch notes each seed with the stack of calls that set it."""
    import torch

    def leave(seed):
        pass

    with pytest.MonkeyPatch.context() as patch:
        for devices in (torch.cuda, torch.xpu):
            if not devices.is_available():
                patch.setattr(devices, "manual_seed_all", leave)
        yield


@pytest.fixture
def models_encode_alone(prompts_encoded_once, monkeypatch):
    """Of tests that count or measure what is encoded: models share no cache."""
    from erasure_lightning.backbones.base import Backbone

    monkeypatch.setattr(Backbone, "encode", prompts_encoded_once)


@pytest.fixture
def tiny():
    from erasure_lightning.backbones.tiny import TinyBackbone

    return TinyBackbone()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
