"""`RetentionMonitor`: how much is forgotten and how much is kept, seen while training."""

from typing import Any, Literal, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.checks import require
from erasure_lightning.concepts.vocabulary import Vocabulary, evenly_spaced
from erasure_lightning.diffusion.finite_images import require_finite_images
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.distributed.collectives import broadcast
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.text_files import read_prompts_file
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.metrics.zero_shot import ZeroShotClassifier
from erasure_lightning.training.base import ErasureModule


class RetentionMonitor(Callback):
    """Draws fixed prompts from fixed seeds every few steps; stops on a budget, keeps the best
    trade-off.

    ``monitor/forgotten``: share of the concept prompts no longer recognised as the concept (without
    a scorer: how far their pictures went, ``1 - cos``). ``monitor/kept``: cosine of the retained
    prompts' pictures with the original's. ``monitor/tradeoff``: their harmonic mean.
    ``monitor/kept/GROUP``: the same as ``cached_images`` of each group of retained prompts, where they have
    groups. Of methods that make their edit when training ends (MACE fuses adapters, SDD takes an
    average) it sees the model that is trained, and goes back to nothing.

    Args:
        every: Steps between two looks, at least 1.
        prompts: Retained prompts to watch: a list, lists by the name of a group, or a text file of
            one a line; by default ``count`` labels.
        count: How many of the concept prompts, and of the vocabulary, are watched.
        steps: Sampling steps; few will do.
        guidance: Scale of classifier-free guidance; the world's by default, else 7.5.
        budget: Stop once ``cached_images`` falls below, 0..1.
        goal: Stop once ``forgotten`` reaches it, 0..1.
        keep_best: At the end, go back to the look with the best trade-off.
        scorer: Folder or Hub id of the model that looks; the world's by default, bare pixels where
            there is none.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        every: int = 20,
        prompts: list[str] | dict[str, list[str]] | str | None = None,
        count: int = 6,
        steps: int = 10,
        guidance: float | None = None,
        budget: float | None = None,
        goal: float | None = None,
        keep_best: bool = True,
        scorer: str | None = None,
    ) -> None:
        self.every = every
        given = (
            read_prompts_file(prompts, "RetentionMonitor") if isinstance(prompts, str) else prompts
        )
        self.groups = given if isinstance(given, dict) else {}
        self.given = (
            [prompt for texts in given.values() for prompt in texts]
            if isinstance(given, dict)
            else given
        )
        self.count = count
        self.steps = steps
        self.guidance = guidance
        self.budget = budget
        self.goal = goal
        self.keep_best = keep_best
        self.scorer = scorer
        self.best: dict[str, Any] = {"tradeoff": -1.0, "step": 0, "edit": {}}
        self._seen: dict[str, float] = {}
        self._check()

    def _check(self) -> None:
        owner = type(self).__name__
        require(owner, at_least=1, every=self.every, count=self.count, steps=self.steps)
        require(owner, at_least=0, guidance=self.guidance)
        require(owner, at_least=0, at_most=1, budget=self.budget, goal=self.goal)
        if empty := [group for group, texts in self.groups.items() if not texts]:
            raise ErasureError(
                "RetentionMonitor needs a prompt at least in each group; found none in"
                f" {empty[0]!r}."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the original draws."""
        module = cast(ErasureModule, pl_module)
        world = module.backbone.world
        vocabulary = Vocabulary(world, module.concepts)
        usual = world.guidance if world else 7.5
        self._scale = usual if self.guidance is None else self.guidance
        source = self.scorer or (world.scorer if world else None)
        self._eyes = Scorer.load(source).to(module.device) if source else None
        self._asked = evenly_spaced(vocabulary.concept_prompts(), self.count)
        kept = [
            vocabulary.captions[1].format(label)
            for label in evenly_spaced(vocabulary.others, self.count)
        ]
        self._kept = list(self.given) if self.given else kept
        self._judge = ZeroShotClassifier(self._eyes, vocabulary, []) if self._eyes else None
        self._before = self._look("original", module.original)

    @torch.no_grad()
    def _look(self, model: Literal["original", "edited"], backbone: Backbone) -> Tensor:
        """What the scorer sees, unit vectors ``(N, D)``: the concept prompts first, then the
        retained.
        """
        prompts = [prompt for prompt, _ in self._asked] + self._kept
        pictures = sample_images(
            backbone, prompts, range(len(prompts)), steps=self.steps, guidance=self._scale
        )
        require_finite_images(pictures, model, backbone, prompts)
        seen = self._eyes.images(pictures) if self._eyes else normalize(pictures.flatten(1), dim=1)
        broadcast([seen])  # ranks decide alike, however their devices round
        return seen

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look, log, remember the best, stop if it is time."""
        module = cast(ErasureModule, pl_module)
        if trainer.global_step % self.every:
            module.log_dict(
                self._seen
            )  # as Lightning does by itself, but in a run that was resumed too
            return
        after = self._look("edited", module.backbone)
        forgotten, kept = self._score(after)
        tradeoff = 2 * forgotten * kept / (forgotten + kept) if forgotten + kept > 0 else 0.0
        self._seen = {
            "monitor/forgotten": forgotten,
            "monitor/kept": kept,
            "monitor/tradeoff": tradeoff,
        }
        self._seen |= self._by_group(after)
        module.log_dict(self._seen)
        within = self.budget is None or kept >= self.budget
        if within and tradeoff > self.best["tradeoff"]:
            edit = {name: value.clone() for name, value in module.edit_values().items()}
            self.best = {"tradeoff": tradeoff, "step": trainer.global_step, "edit": edit}
        if not within or (self.goal is not None and forgotten >= self.goal):
            trainer.should_stop = True

    def _same(self, after: Tensor) -> Tensor:
        """How much each picture is what the original draws, ``(N,)`` in 0..1."""
        return cosine_similarity(after, self._before).clamp(0, 1)

    def _by_group(self, after: Tensor) -> dict[str, float]:
        """``cached_images`` of each group, by its name in the log."""
        kept, found = iter(self._same(after)[len(self._asked) :].tolist()), {}
        for group, texts in self.groups.items():
            found[f"monitor/kept/{group}"] = sum(next(kept) for _ in texts) / len(texts)
        return found

    def _score(self, after: Tensor) -> tuple[float, float]:
        """Forgotten and kept, each 0..1."""
        same = self._same(after)
        asked = len(self._asked)
        if self._judge is None:
            return 1 - same[:asked].mean().item(), same[asked:].mean().item()
        questions = [self._judge.candidates("efficacy", thing) for _, thing in self._asked]
        called = [
            bool(q.right[(q.labels @ image).argmax()])
            for image, q in zip(after, questions, strict=False)
        ]
        return 1 - sum(called) / asked, same[asked:].mean().item()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the best look."""
        module = cast(ErasureModule, pl_module)
        if self.keep_best and not module.finalizes_edit:
            module.write(self.best["edit"])

    def state_dict(self) -> dict[str, Any]:
        """The best look, so that a resumed run can go back to it, and what the last one saw."""
        return {**self.best, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up."""
        self.best = {name: value for name, value in state_dict.items() if name != "seen"}
        self._seen = state_dict.get("seen", {})
