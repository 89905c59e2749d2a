import pytest
import torch

from erasure_lightning.backbones.tiny import TinyBackbone


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def tiny():
    return TinyBackbone()
