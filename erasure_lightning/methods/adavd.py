"""AdaVD: adaptive value decomposition (Wang et al., CVPR 2025, arXiv 2412.06143).

A rule at inference, without training. In every cross-attention the projection of the value ``v`` of
each token of the prompt onto the value ``v_c`` of the concept's last word is subtracted, more of it
the nearer the token is to the concept:

    ``v' = v - delta(cos(v_c, v)) <v_c, v> / <v_c, v_c> v_c``,
    ``delta(x) = c / (1 + exp(-a (x - b)))``,

and for several concepts its projection onto the span of their values, each share with a ``delta``
of its own. Queries, keys and the start token do not change. There is no anchor.

Official code: WYuan1001/AdaVD @ c2d2962, ``src/main.py``. Verified there: one vector a layer, the
value of the state before the end of text of the bare name, at every position but the first; cosine
and projection over all heads together; ``a, b, c`` of 100, 0.93, 2, with ``--token_sim``; from the
first step to the last. Where the official code has bugs and ours is what the paper means:

* it takes the 16 rows of a guided batch of 8 heads for 16 heads, and so compares and projects the
  empty prompt's value joined with the prompt's: with ``u`` the former and equal lengths its cosine
  is ``(1 + cos) / 2``, and unconditional predictions shrink too. Here each row is compared on its
  own, so that ``a, b`` of 50, 0.86 have the effect of its 100, 0.93, and these are the defaults;
* its Gram-Schmidt subtracts projections onto the values and not onto the orthogonalised ones, which
  is no orthogonal basis for three concepts or more. Ours is the projection onto the span.

The rule acts in the denoiser, on whatever states it reads, and so under every attack by words,
embeddings or latents. Fine-tuning of weights does not remove it, but changes the values that it
acts on.

Cost: no denoiser evaluation; one text encoding a concept. At inference two products of ``(L, E)``
and ``(E, C)`` in each cross-attention.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from erasure_lightning.adapters.base import AdapterPlan
from erasure_lightning.adapters.value_decomposition import dual_basis
from erasure_lightning.backbones.conditioning import CONCEPT, START
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import fill_template
from erasure_lightning.distributed.fsdp import full_tensor
from erasure_lightning.training.inference_rule import InferenceRule


class AdaVD(InferenceRule):
    """Takes the concept's share out of every value of cross-attention, in tokens that are like it.

    Args:
        steepness: ``a``, at least 0; at 0, with a scale of 2, every token loses its projection.
        threshold: ``b``, the cosine at which a token loses half of ``scale``, -1..1.
        scale: ``c``, the share of its projection that a token equal to the concept's loses, at
            least 0; above 1 it is turned round.
        kwargs: Arguments of `ErasureModule`.

    Raises:
        ErasureError: If a number is out of range.
    """

    needs = frozenset({"cross-attention"})

    def __init__(
        self,
        *,
        steepness: float = 50.0,
        threshold: float = 0.86,
        scale: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require("AdaVD", at_least=0, steepness=steepness, scale=scale)
        require("AdaVD", at_least=-1, at_most=1, threshold=threshold)
        self.steepness = steepness
        self.threshold = threshold
        self.scale = scale

    def plans(self) -> dict[str, AdapterPlan]:
        """One rule for each layer that computes values of the text."""
        layers = [name.removeprefix("denoiser.") for name in self.backbone.value_layers()]
        starts = self.backbone.encode([""]).roles[0, 0] == START
        settings = {
            "concepts": len(self.concepts),
            "first": int(starts),
            "steepness": self.steepness,
            "threshold": self.threshold,
            "scale": self.scale,
        }
        return {"denoiser": AdapterPlan("value-decomposition", layers, settings)}

    def solve(self) -> dict[str, Tensor]:
        """``v_c`` of every concept, and their dual basis, for each layer."""
        source = self.original.text_inputs()[0]
        states = self.original.encode([fill_template("{}", c.name) for c in self.concepts])
        position = torch.arange(states.roles.shape[1], device=states.roles.device)
        last = (position * states.positions(CONCEPT)).argmax(dim=1)
        words = source.rows(states)[torch.arange(len(last)), last].double()
        solution: dict[str, Tensor] = {}
        for name, layer in self.original.value_layers().items():
            weight = full_tensor(layer.weight).to(words)
            bias = None if layer.bias is None else full_tensor(layer.bias).to(words)
            values = linear(words, weight, bias)
            solution[f"{name}.adapter.values"] = values
            solution[f"{name}.adapter.duals"] = dual_basis(values)
        return solution
