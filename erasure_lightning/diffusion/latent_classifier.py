"""`LatentClassifier`: tells whether noisy latents show a concept, at any time of the noise process.

The classifier of When Are Concepts Erased (Lu et al. 2025, arXiv 2505.17013), verified in code
(kevinlu4588/WhenAreConceptsErased@9a03e07, ``classifier_guidance/create_latent_classifier.py``): a
small network of the flattened latents and of the scales ``(a_t, s_t)``; AdamW, rate 1e-4, decay
1e-3, gradients cut to norm 1; every image at seven times, ``share = u^(1/3)`` of the range so that
noisy ones prevail; concepts weighted by their share of the images; the epoch of the lowest loss on
a tenth of the images counts; batches of 8.
"""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from torch.optim import AdamW

from erasure_lightning.backbones.process import NoiseProcess, signal_and_noise

#: Width of the first layer.
_WIDTH = 1024

#: Times at which an image is noised in each step.
_TIMES = 7

#: Images a step.
_BATCH_SIZE = 8

#: One in so many images measures the loss of an epoch, and is not trained on.
_HELD_OUT = 10


class LatentClassifier(nn.Module):
    """The logit that noisy latents show a concept.

    Args:
        size: Number of values of an image's latents.
        process: The noise process of the latents.
    """

    def __init__(self, size: int, process: NoiseProcess) -> None:
        super().__init__()
        self.process = process
        self.of_latents = nn.Linear(size, _WIDTH)
        self.of_time = nn.Linear(2, _WIDTH)
        self.logit = nn.Sequential(
            nn.SiLU(),
            nn.Dropout(0.3),
            nn.Linear(_WIDTH, _WIDTH // 2),
            nn.SiLU(),
            nn.Dropout(0.3),
            nn.Linear(_WIDTH // 2, 1),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits ``(B,)`` of latents ``(B, C, h, w)`` at times ``(B,)`` or ``()``."""
        scales = signal_and_noise(self.process, t.to(x.device))
        time = self.of_time(torch.cat(scales, dim=1).flatten(1))
        logits: Tensor = self.logit(self.of_latents(x.float().flatten(1)) + time)
        return logits.squeeze(1)

    @torch.enable_grad()
    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient of ``log p(concept | x_t)`` by latents ``x_t``, ``(B, C, h, w)``."""
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(logsigmoid(self(x, t)).sum(), x)
        return gradient


def train_latent_classifier(
    process: NoiseProcess,
    concept: Tensor,
    others: Tensor,
    *,
    epochs: int,
) -> LatentClassifier:
    """A classifier of noisy latents; random draws use torch's global generator.

    Args:
        process: The noise process.
        concept: Clean latents that show the concept, ``(N, C, h, w)``.
        others: Clean latents that do not, ``(M, C, h, w)``.
        epochs: Passes over all images, at least 1.
    """
    latents = torch.cat((concept, others))
    labels = torch.cat((torch.ones(len(concept)), torch.zeros(len(others)))).to(latents.device)
    order = torch.randperm(len(latents))
    held_out, order = order.tensor_split([max(1, len(order) // _HELD_OUT)])
    classifier = LatentClassifier(latents[0].numel(), process).to(latents.device)
    adam = AdamW(classifier.parameters(), lr=1e-4, weight_decay=1e-3)
    lowest = math.inf
    best = classifier.state_dict()
    for _ in range(epochs):
        classifier.train()
        for rows in torch.split(order[torch.randperm(len(order))], _BATCH_SIZE):
            adam.zero_grad()
            _loss(classifier, latents, labels, rows).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
            adam.step()
        classifier.eval()
        with torch.no_grad():
            held_out_loss = _loss(classifier, latents, labels, held_out).item()
        if held_out_loss < lowest:
            lowest = held_out_loss
            best = deepcopy(classifier.state_dict())
    adam.zero_grad()
    classifier.load_state_dict(best)
    return classifier.eval().requires_grad_(False)


def _loss(classifier: LatentClassifier, latents: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy at new noise, in which both labels weigh the same, a scalar.

    Args:
        classifier: The classifier.
        latents: Clean latents of all images, ``(N, C, h, w)``.
        labels: 1 for those that show the concept, else 0, ``(N,)``.
        rows: Numbers of the images that are noised, ``_TIMES`` times each.
    """
    process = classifier.process
    rows = rows.repeat(_TIMES)
    t = process.at(torch.rand(len(rows)) ** (1 / 3)).to(latents.device)
    noise = torch.randn(len(rows), *latents.shape[1:]).to(latents)
    logits = classifier(process.noise(latents[rows], noise, t), t)
    weight = (labels == 0).sum() / labels.sum()
    return binary_cross_entropy_with_logits(logits, labels[rows], pos_weight=weight)
