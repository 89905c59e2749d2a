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

The attack is `PrefixAdversary`, which any gradient method takes.

Its numbers for SD 1.4: 1000 steps of 1 sentence, 200 of them warm-up, Adam 1e-5 (constant), all
blocks and the final norm; 1 word, 30 attack steps of 1e-3. Those are the defaults. An attack's
steps use other sentences of the concept than the loss: its result is an average over templates.

Cost of a step on a bank: ``attack_steps + 1`` forwards and backwards of denoiser and text encoder;
there also a rollout of up to 50 steps for each of them.
"""

from typing import Any, Literal

from torch import Tensor, nn

from erasure_lightning.checks import require
from erasure_lightning.training.adversary import Adversary
from erasure_lightning.training.adversary_kinds import PrefixAdversary
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
        adversary: Another search, in the place of that for words before the sentence.
        lr: Highest learning rate.
        kwargs: Arguments of `GradientErasure`.

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
        adversary: Adversary | None = None,
        lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        require("AdvUnlearn", at_least=0, blocks=blocks, eta=eta)
        require("AdvUnlearn", at_least=0, attack_from=attack_from, attack_steps=attack_steps)
        require("AdvUnlearn", at_least=1, words=words)
        require("AdvUnlearn", above=0, attack_lr=attack_lr)
        prefix = PrefixAdversary(
            begin=attack_from,
            steps=attack_steps,
            lr=attack_lr,
            words=words,
            sign=attack == "sign",
        )
        super().__init__(lr=lr, adversary=adversary or prefix, **kwargs)
        self.blocks = blocks
        self.eta = eta

    def editable(self) -> dict[str, nn.Parameter]:
        """Blocks and final norm of the text encoder, without the word embeddings of attacks."""
        return self.backbone.text_parameters(self.blocks)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(E(d ++ c_e)), eps*(0) - eta (eps*(c_e) - eps*(0)))``; no ``d`` in warm-up."""
        teacher = batch.teacher
        target = teacher.unconditional - self.eta * (teacher.concept - teacher.unconditional)
        return self.prediction_error(self.student(batch), target, batch.t)
