"""Errors of predictions on frozen weights of fewer bits: ``python benchmarks/eight_bit.py``.

For each world, the root of the mean squared difference of predictions from those of float32
weights, over the root of their mean square, for eight prompts at a quarter, half and three quarters
of the process: of weights in bfloat16, of `store_in_eight_bits`, and of floats of 8 bits without a
scale (e4m3, as diffusers' layerwise casting stores them) in the same layers.
"""

import argparse

import torch
from rows import head, line

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.eight_bit import EightBitLinear, store_in_eight_bits
from erasure_lightning.backbones.loading import load_backbone

PROMPTS = [f"a {thing}" for thing in ("cat", "dog", "heart", "guitar", "car", "tree", "key", "bus")]


def models(name: str) -> dict[str, Backbone]:
    """A world's model with weights of each kind."""
    read = {"float32": load_backbone(name)}
    for kind in ("bfloat16", "int8", "e4m3"):
        read[kind] = load_backbone(name, torch.bfloat16)
    store_in_eight_bits(read["int8"], [])
    for key, layer in read["int8"].denoiser.named_modules():
        if isinstance(layer, EightBitLinear):
            weight = read["e4m3"].denoiser.get_submodule(key).weight
            weight.data = weight.to(torch.float8_e4m3fn).to(weight.dtype)
    return read


@torch.no_grad()
def errors(name: str) -> list[float]:
    """Relative errors of bfloat16, int8 and e4m3."""
    predictions = {}
    for kind, model in models(name).items():
        x = model.noise(range(len(PROMPTS)))
        times = model.process.at(torch.tensor([0.25, 0.5, 0.75]))
        conditioning = model.encode(PROMPTS)
        each = [model.denoise(x, t.expand(len(x)), conditioning) for t in times]
        predictions[kind] = torch.stack(each).double()
    exact = predictions.pop("float32")
    return [float((each - exact).norm() / exact.norm()) for each in predictions.values()]


def main() -> None:
    """Print a row for each world."""
    parser = argparse.ArgumentParser(description=__doc__)
    worlds = ["emoji-world", "emoji-world-xl", "emoji-world-flux"]
    parser.add_argument("--worlds", nargs="+", default=worlds)
    print(head(["world", "bfloat16", "int8", "e4m3"]))
    for name in parser.parse_args().worlds:
        print(line([name, *(f"{error:.4f}" for error in errors(name))]))


if __name__ == "__main__":
    main()
