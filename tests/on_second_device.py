"""What every method, adversary and attack does on a device that is not the CPU."""

import inspect
import json
import sys
import traceback
import warnings
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from distributed import fits
from lightning.pytorch.callbacks import Callback
from second_device import DEVICE, register, train_there
from tiny_scorers import KnownScorer
from trivial import Distillation

from erasure_lightning.attacks.target import AttackSettings, AttackTarget
from erasure_lightning.backbones.tiny import TINY_BACKBONES, TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.methods import METHODS
from erasure_lightning.registry import ATTACK, known_offers, load_offer
from erasure_lightning.testing import quick_fit
from erasure_lightning.training import adversary_kinds

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
KINDS = ("WordAdversary", "PrefixAdversary", "StateAdversary", "InversionAdversary")
#: Arguments of attacks, as few as there can be.
FEW = {
    "steps": 1, "epochs": 1, "examples": 2, "others": 4, "points": 1, "population": 4,
    "generations": 2, "times": 2, "every": 1, "variants": 2, "refinements": 1, "tokens": 2,
    "etas": [1.0, 1.5], "scales": [1.0], "words_of": {"cat": "chat"},
}  # fmt: skip


class Where(Callback):
    """Checks that the whole model is on the device while it is trained."""

    def on_train_start(self, trainer, module):
        models = (module.backbone, module.original)
        devices = {p.device for model in models for p in model.state_dict().values()}
        assert devices == {DEVICE}, devices


class Mixed(Distillation):
    """The control: a weight of the loss is on the CPU."""

    def erasure_loss(self, batch):
        return (self.student(batch).square() * torch.ones(8)).mean()


def fit(method, **arguments):
    quick_fit(method(concepts=CONCEPTS, seed=1, **arguments), 1, Where())


def fit_method(name):
    method = fits.method(name)
    suitable = [family for family in TINY_BACKBONES if method.needs <= family.capabilities]
    fit(method, backbone=suitable[0](), **deepcopy(fits.CHEAP.get(name, {})))


def sample(family):
    model = family().to(DEVICE)
    assert sample_images(model, ["a cat"], [0], steps=2, guidance=2.0).device == DEVICE


def fit_adversary(kind):
    adversary = getattr(adversary_kinds, kind)(steps=1, begin=0)
    fit(fits.method("ESD"), backbone=TinyBackbone(), adversary=adversary)


class Scorer(KnownScorer):
    """A scorer on the device."""

    def texts(self, prompts):
        return super().texts(prompts).to(DEVICE)


class Places(Callback):
    """Checks that text towers and denoiser are on the device in turn, and where they end."""

    def on_train_batch_start(self, trainer, module, batch, index):
        model = module.backbone
        places = []
        tower = model.towers[0]
        encode = tower.encode

        def recorded(words):
            frozen = [p for p in model.denoiser.parameters() if not p.requires_grad]
            places.append(self.of(frozen))
            return encode(words)

        tower.encode = recorded
        for _ in range(2):
            model.encode([f"a new prompt {index}"])
        del tower.encode
        assert places == [{"cpu"}], places
        assert self.of(model.denoiser.parameters()) == {DEVICE.type}
        assert self.of(model.text_encoders.parameters()) == {"cpu"}

    @staticmethod
    def of(tensors):
        return {tensor.device.type for tensor in tensors}


def offload_text():
    module = fits.method("ESD")(
        concepts=CONCEPTS, backbone=TinyBackbone(), rank=2, merge=False, offload_text=True
    )
    quick_fit(module, 2, Places())


def attack(offer):
    cls = load_offer(offer)
    settings = AttackSettings(seeds=2, images=1, steps=2)
    models = [TinyBackbone().to(DEVICE).requires_grad_(False) for _ in range(2)]
    target = AttackTarget(*models, CONCEPTS[:1], settings, Scorer())
    few = {name: FEW[name] for name in FEW.keys() & inspect.signature(cls).parameters.keys()}
    if offer.name == "RelearningCurve":
        few["examples"] = [0, 1]
    cls(**few).run(target, 0)


def main(path: Path):
    """Write the traceback of everything that is run, empty where it ran to its end, by name."""
    warnings.simplefilter("ignore")
    register()
    train_there()
    calls = {name: partial(fit_method, name) for name in METHODS}
    calls |= {f"{family.__name__}, sampled": partial(sample, family) for family in TINY_BACKBONES}
    calls |= {kind: partial(fit_adversary, kind) for kind in KINDS}
    calls["offload_text"] = offload_text
    calls |= {offer.name: partial(attack, offer) for offer in known_offers(ATTACK)}
    calls["control"] = partial(fit, Mixed, backbone=TinyBackbone())
    errors = {}
    for name, call in calls.items():
        try:
            call()
        except Exception:
            errors[name] = traceback.format_exc()
    path.write_text(json.dumps({name: errors.get(name, "") for name in calls}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
