"""AdvUnlearn: erases a concept from the text encoder by adversarial training.

Zhang et al., Defensive Unlearning with Adversarial Training, arXiv 2405.15234. Official code
OPTML-Group/AdvUnlearn @ 9d23124, `train-scripts/AdvUnlearn.py`, verified in code. With ``E`` the
text encoder in training and ``d ++ c_e`` the concept's sentence with the attack's word embeddings
``d`` before it, at latents of the original's trajectories:

* attack: ``min over d of mse( eps(E(d ++ c_e)), eps*(c_e) )``, from random words of the vocabulary,
  by Adam on the word embeddings (``fast_at``: on the signs of the gradients), unbounded, each step
  at latents of its own;
* erasure: ``mse( eps(E(d ++ c_e)), eps*(0) - eta (eps*(c_e) - eps*(0)) )`` with ``eta`` 1. During
  warm-up there is no ``d``; afterwards the plain sentence is never trained again;
* retention: 0.3 times ``mse( eps(E(r)), eps*(r) )`` on five retained prompts, which is
  `LocalNoisePreservation` on a bank, set in the config. (Its latents have times of their own, there
  they have the erasure's.)

Where the official code has a bug and ours differs: it never clears the attack's gradients, so that
Adam receives their running sum (and ``fast_at`` adds gradients to signs); it trains on the words
before the last attack step, so that a single step has no effect; it makes room by dropping tokens
after the concept's first ones, as many as it counts words, which cuts a concept of more tokens than
words. Ours clears the gradients, trains on the words after the last step, and drops padding. Its
attacks inside and after the concept, from the last attack's words (``latest``), and on a UNet in
training are left out.

Its numbers for SD 1.4: 1000 steps of 1 sentence, 200 of them warm-up, Adam 1e-5 (constant), all
blocks and the final norm; 1 word, 30 attack steps of 1e-3. Those are the defaults. An attack's
steps use other sentences of the concept than the loss: its result is an average over templates.

Cost of a step on a bank: ``attack_steps + 1`` forwards and backwards of denoiser and text encoder;
there also a rollout of up to 50 steps for each of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam

from erasure_lightning.backbones.conditioning import END, TEMPLATE
from erasure_lightning.backbones.towers import EmbeddedPrompts
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import NoisyBatch


class AdvUnlearn(GradientErasure):
    """Adversarial unlearning: trains the text encoder against words that restore the concept.

    Args:
        blocks: Number of the text encoder's last blocks that are trained; all if ``None``.
        eta: How far past the unconditional prediction the target lies, away from the concept; at
            least 0.
        attack_from: First step with an attack: the length of the warm-up on plain sentences, at
            least 0.
        attack_steps: Steps of each attack, at least 0; each costs as much as the erasure. 0 for
            none.
        attack_lr: Adam's rate in an attack, in units of word embeddings; above 0.
        attack: Gradient that Adam receives: as it is (``gradient``), or its ``sign`` (the official
            ``fast_at``).
        words: Number of words before the sentence, at least 1.
        lr: Highest learning rate.
        kwargs: Arguments of every gradient method.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        blocks: int | None = None,
        eta: float = 1.0,
        attack_from: int = 200,
        attack_steps: int = 30,
        attack_lr: float = 1e-3,
        attack: Literal["gradient", "sign"] = "gradient",
        words: int = 1,
        lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, **kwargs)
        least = {"blocks": (blocks or 0, 0), "eta": (eta, 0), "words": (words, 1)}
        least |= {"attack_from": (attack_from, 0), "attack_steps": (attack_steps, 0)}
        for name, (value, bound) in least.items():
            if value < bound:
                raise ErasureError(f"AdvUnlearn needs {name} of at least {bound}; found {value}.")
        if attack_lr <= 0:
            raise ErasureError(f"AdvUnlearn needs attack_lr above 0; found {attack_lr}.")
        self.blocks = blocks
        self.eta = eta
        self.attack_from = attack_from
        self.attack_steps = attack_steps
        self.attack_lr = attack_lr
        self.attack = attack
        self.words = words

    def editable(self) -> dict[str, nn.Parameter]:
        """Blocks and final norm of the text encoder, without the word embeddings of attacks."""
        return self.backbone.text_parameters(self.blocks)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(E(d ++ c_e)), eps*(0) - eta (eps*(c_e) - eps*(0)))``; no ``d`` in warm-up."""
        teacher = batch.teacher
        target = teacher.unconditional - self.eta * (teacher.concept - teacher.unconditional)
        attacked = self.attack_steps and self.global_step >= self.attack_from
        prefix = self.attack_prefix(batch.sentences) if attacked else ()
        return self.prediction_error(self.prediction(batch, prefix), target, batch.t)

    def prediction(self, batch: NoisyBatch, prefix: Sequence[Tensor] = ()) -> Tensor:
        """The edited model's predictions for the concepts' sentences, ``(B, C, h, w)``.

        Args:
            batch: Noisy latents and sentences.
            prefix: Embeddings ``(B, k, E)`` of words before them, for each text encoder; none for
                plain sentences.
        """
        prompts = self.backbone.embed(batch.prompts)
        if prefix:
            prompts = tuple(
                prepend_words(plain, words) for plain, words in zip(prompts, prefix, strict=True)
            )
        return self.student(batch, self.backbone.contextualize(prompts))

    def attack_prefix(self, sentences: PromptBatch) -> list[Tensor]:
        """Words ``d`` for which the edited model predicts as the original for the concept.

        Returns:
            Embeddings ``(B, k, E)`` for each text encoder, as `prediction` takes them.
        """
        shape = (len(sentences.concepts), self.words)
        words = []
        for table in self.backbone.word_tables():
            ids = torch.randint(len(table), shape).to(table.device)
            words.append(table[ids].float().requires_grad_(True))
        optimizer = Adam(words, lr=self.attack_lr)
        for _ in range(self.attack_steps):
            batch = self.noisy_batch(sentences)
            prediction = self.prediction(batch, words)
            loss = self.prediction_error(prediction, batch.teacher.concept, batch.t)
            gradients = torch.autograd.grad(loss, words)
            for word, gradient in zip(words, gradients, strict=True):
                word.grad = gradient.sign() if self.attack == "sign" else gradient
            optimizer.step()
        return [word.detach() for word in words]


def prepend_words(prompts: EmbeddedPrompts, words: Tensor) -> EmbeddedPrompts:
    """Prompts with words before them, and as much less padding at their end.

    Args:
        prompts: Prompts of ``L`` positions, of which only padding is dropped.
        words: Embeddings ``(B, k, E)``, inserted after the start token.

    Raises:
        ErasureError: If there is too little padding.
    """

    def insert(values: Tensor, new: Tensor) -> Tensor:
        rest = values[:, 1 : values.shape[1] - words.shape[1]]
        return torch.cat((values[:, :1], new.to(values), rest), dim=1)

    # The words have no ids; that of the start token at least is no end of text.
    ids = prompts.ids[:, :1].expand(words.shape[:2])
    roles = insert(prompts.roles, torch.full_like(ids, TEMPLATE))
    if not (roles == END).any(dim=1).all():
        raise ErasureError(
            f"AdvUnlearn needs room for {words.shape[1]} words before a sentence; found one too"
            " long."
        )
    return replace(
        prompts,
        embeddings=insert(prompts.embeddings, words),
        ids=insert(prompts.ids, ids),
        roles=roles,
    )
