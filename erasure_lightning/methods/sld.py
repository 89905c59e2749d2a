"""SLD: safe latent diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105).

A rule at inference on the guided prediction: guidance away from a concept, where a prompt comes
near it. With the predictions ``e_u`` (unconditional), ``e_p`` (prompt) and ``e_s`` (concept), each
step predicts

    ``e_u + g (e_p - e_u - gamma)``,  ``gamma = mu (e_s - e_u) + s_m nu``,
    ``mu = min(1, s_S |e_p - e_s|)`` where ``e_p - e_s < lambda``, else 0, element by element,
    ``nu' = beta_m nu + (1 - beta_m) gamma``,

without ``gamma`` in the first ``delta`` steps, which feed the momentum ``nu`` alone.

Official code: ml-research/safe-latent-diffusion @ a42923c, ``src/sld/sld_pipeline.py``, as in
diffusers' ``StableDiffusionPipelineSafe``. Verified there: all of the above (the paper prints a
maximum of 1 and ``|phi|``; the code has the minimum); one prompt of all concepts, joined by commas
(in diffusers in the sentence of ``template``); the defaults, which are the paper's *medium*. ``s_S,
delta, lambda, s_m, beta_m`` of its others: weak 200, 15, 0, 0, 0; strong 2000, 7, 0.025, 0.5, 0.7;
max 5000, 0, 1, 0.5, 0.7.

Where ours differs: the rule is one of the denoiser, in which ``e_p - gamma`` takes the place of
``e_p``. That is the same guided prediction (a test compares images with diffusers'), in any sampler
and stock pipeline, and acts where the code's does not: without guidance. ``delta`` counts steps of
50 there and is a share of the times here, which any number of steps has. The momentum's steps are
evaluations of the denoiser in both: a sampler with two of them a step (Heun) feeds it twice. The
states of concept and empty prompt are encoded once.

``mu`` grows with the distance from the concept's prediction, up to 1: by the paper's equation a
single prediction for something else moves no less than one for the concept. What spares other
things is the sign of ``e_p - e_s`` and, over a rollout, what ``e_s - e_u`` takes out of them. A
prompt that *is* the concept's is not guided at all, since there ``e_p = e_s``: with a template of
``{}`` that is the bare name.

Under attack: the rule acts on every prediction, for whatever states and latents the denoiser reads,
by any words, embeddings or soft states. Gradients pass through the rule, except the momentum, which
acts in rollouts alone. Fine-tuning of weights changes ``e_p`` and ``e_s`` together.

Cost: no denoiser evaluation; two text encodings. At inference a third evaluation beside the two of
guidance, and two more for a prediction without it.
"""

from typing import Any

import torch
from torch import Tensor

from erasure_lightning.adapters.base import AdapterPlan
from erasure_lightning.backbones.conditioning import MISSING, PADDING, Conditioning
from erasure_lightning.checks import require
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.inference_rule import InferenceRule


class SLD(InferenceRule):
    """Guides predictions away from the concepts where they come near them.

    Args:
        template: Sentence with ``{}`` for the concepts, whose prediction is ``e_s``.
        scale: ``s_S``, at least 0.
        warmup: ``delta`` as a share of the times, from noise on, 0..1.
        threshold: ``lambda``, in units of the prediction.
        momentum: ``s_m``, at least 0.
        beta: ``beta_m``, at least 0 and below 1.
        kwargs: Arguments of `ErasureModule`.

    Raises:
        ErasureError: If a number is out of range, the template has no place for the concepts, or
            their names are too long for a prompt.
    """

    needs = frozenset({"classifier-free guidance"})

    def __init__(
        self,
        *,
        template: str = "an image showing {}",
        scale: float = 1000.0,
        warmup: float = 0.2,
        threshold: float = 0.01,
        momentum: float = 0.3,
        beta: float = 0.4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require("SLD", at_least=0, scale=scale, momentum=momentum)
        require("SLD", at_least=0, at_most=1, warmup=warmup)
        require("SLD", at_least=0, below=1, beta=beta)
        require("SLD", threshold=threshold)
        if "{}" not in template:
            raise ErasureError(
                f"SLD needs {{}} in its template for the concepts; found {template!r}."
            )
        self.template = template
        self.scale = scale
        self.warmup = warmup
        self.threshold = threshold
        self.momentum = momentum
        self.beta = beta

    def plans(self) -> dict[str, AdapterPlan]:
        """The rule of the denoiser as a whole.

        Raises:
            ErasureError: If the concepts' names are too long for a prompt.
        """
        if self.backbone.too_long([self._prompt()]):
            raise ErasureError(
                f"SLD needs all concepts in one prompt; found {len(self.concepts)}, whose names are"
                f" too long for {self.backbone.name}. Erase fewer of them."
            )
        text = self.texts()
        settings = {
            "length": text.tokens.shape[1],
            "width": text.tokens.shape[2],
            "pooled": 0 if text.pooled is None else text.pooled.shape[1],
            "masked": self._is_masked(),
            "scale": self.scale,
            "threshold": self.threshold,
            "momentum": self.momentum,
            "beta": self.beta,
            "until": self.backbone.process.at(torch.tensor(1 - self.warmup)).item(),
        }
        return {"denoiser": AdapterPlan("safety-guidance", [""], settings)}

    def solve(self) -> dict[str, Tensor]:
        """What the denoiser reads of the concepts, and for unconditional predictions."""
        text = self.texts()
        values = {"tokens": text.tokens, "read": ~text.positions(PADDING, MISSING)}
        if text.pooled is not None:
            values["pooled"] = text.pooled
        return {name: values[name.rpartition(".")[2]] for name in self.editable()}

    @torch.no_grad()
    def texts(self) -> Conditioning:
        """The concepts' prompt, and that of unconditional predictions, tokens ``(2, L, D)``."""
        concept = self.backbone.encode([self._prompt()])
        return Conditioning.cat([concept, self.backbone.unconditional()])

    def _prompt(self) -> str:
        """The prompt of all concepts."""
        return self.template.replace("{}", ", ".join(each.name for each in self.concepts))

    def _is_masked(self) -> bool:
        """Whether the denoiser reads which states are padding."""
        return any(source.masked for source in self.backbone.text_inputs())
