"""`RetentionMonitor`: measures erasure and retention during training."""

from typing import Any, Literal, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
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
from erasure_lightning.retention.base import require_prompts
from erasure_lightning.training.base import ErasureModule


class RetentionMonitor(Callback):
    """Scores images of fixed prompts every few steps; stops at limits, restores the best edit.

    Logs, each in 0..1:

    * ``monitor/erased``: share of the concept prompts whose images are no longer recognised as
      the concept (without a scorer: ``1 - cos`` of their images with the original's).
    * ``monitor/retained``: cosine of the retained prompts' images with the original's.
    * ``monitor/tradeoff``: harmonic mean of both.
    * ``monitor/retained/GROUP``: ``monitor/retained`` of each group of retained prompts, where
      there are groups.

    Of methods that finalise their edit when training ends (MACE fuses adapters, SDD takes an
    average) it measures the model that is trained, and restores no earlier edit.

    Args:
        every: Steps between two measurements, at least 1.
        prompts: Retained prompts: a list, lists by the name of a group, or a text file of one a
            line; by default ``count`` labels.
        count: Number of concept prompts, and of labels of the vocabulary, at least 1.
        steps: Sampling steps, at least 1; few suffice.
        guidance: Scale of classifier-free guidance; the world's or the stock pipeline's by default.
        min_retained: Stop once ``monitor/retained`` falls below it, 0..1.
        goal: Stop once ``monitor/erased`` reaches it, 0..1.
        keep_best: Restore the edit with the best trade-off at the end.
        scorer: Folder or Hub id of the scorer; the world's by default, bare pixels where there is
            none.

    Raises:
        ErasureError: If a number is out of range, or a list or a group has no prompts.
    """

    def __init__(
        self,
        every: int = 20,
        prompts: list[str] | dict[str, list[str]] | str | None = None,
        count: int = 6,
        steps: int = 10,
        guidance: float | None = None,
        min_retained: float | None = None,
        goal: float | None = None,
        keep_best: bool = True,
        scorer: str | None = None,
    ) -> None:
        self.every = every
        self.groups: dict[str, list[str]] = {}
        require_prompts(type(self).__name__, prompts)
        if isinstance(prompts, str):
            prompts = read_prompts_file(prompts, "RetentionMonitor")
        elif isinstance(prompts, dict):
            self.groups = prompts
            prompts = [prompt for group in prompts.values() for prompt in group]
        self.prompts = prompts
        self.count = count
        self.steps = steps
        self.guidance = guidance
        self.min_retained = min_retained
        self.goal = goal
        self.keep_best = keep_best
        self.scorer = scorer
        self._reset()
        self._check()

    def _reset(self) -> None:
        self.best: dict[str, Any] = {"tradeoff": -1.0, "step": 0, "edit": {}}
        self._logged: dict[str, float] = {}
        #: Step of the last measurement.
        self._measured = 0

    def _check(self) -> None:
        owner = type(self).__name__
        require(owner, at_least=1, every=self.every, count=self.count, steps=self.steps)
        require(owner, at_least=0, guidance=self.guidance)
        require(owner, at_least=0, at_most=1, min_retained=self.min_retained, goal=self.goal)
        if empty := [name for name, group in self.groups.items() if not group]:
            raise ErasureError(
                "RetentionMonitor needs a prompt at least in each group; found none in"
                f" {empty[0]!r}."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets an earlier fit; a checkpoint that is resumed is loaded after this."""
        if stage == "fit":
            self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generates the original's images."""
        module = cast(ErasureModule, pl_module)
        self.choose_prompts(module)
        world = module.backbone.world
        source = self.scorer or (world.scorer if world else None)
        self._scorer = Scorer.load(source).to(module.device) if source else None
        vocabulary = Vocabulary(world, module.concepts)
        self._classifier = (
            ZeroShotClassifier(self._scorer, vocabulary, []) if self._scorer else None
        )
        self._original_features = self._features("original", module.original)

    def choose_prompts(self, module: ErasureModule) -> None:
        """Chooses the prompts, and the guidance at which they are generated.

        Args:
            module: The method, with its model.

        Raises:
            ErasureError: If no prompt is retained.
        """
        world = module.backbone.world
        vocabulary = Vocabulary(world, module.concepts)
        _, default = module.backbone.default_sampling
        self._guidance = default if self.guidance is None else self.guidance
        self._concept_prompts = evenly_spaced(vocabulary.concept_prompts(), self.count)
        labels = evenly_spaced(vocabulary.others, self.count)
        captions = [vocabulary.captions[1].format(label) for label in labels]
        self._retained_prompts = list(self.prompts) if self.prompts else captions
        if not self._retained_prompts:
            raise ErasureError(
                "RetentionMonitor needs prompts; found no label beside concepts and domains. Give"
                " prompts."
            )

    @property
    def drawn_prompts(self) -> list[str]:
        """The prompts of each measurement, the concepts' first, then those that are retained."""
        return [prompt for prompt, _ in self._concept_prompts] + self._retained_prompts

    def images(self, backbone: Backbone) -> Tensor:
        """A model's images of `drawn_prompts`, side by side, ``(N, 3, H, W)`` in 0..1."""
        prompts = self.drawn_prompts
        return sample_images(
            backbone, prompts, range(len(prompts)), steps=self.steps, guidance=self._guidance
        )

    @torch.no_grad()
    def _features(self, model: Literal["original", "edited"], backbone: Backbone) -> Tensor:
        """Unit features ``(N, D)`` of the images, concept prompts first, then retained ones."""
        images = self.images(backbone)
        require_finite_images(images, model, backbone, self.drawn_prompts)
        if self._scorer:
            features = self._scorer.images(images)
        else:
            features = normalize(images.flatten(1), dim=1)
        broadcast([features])  # so that ranks decide alike, however their devices round
        return features

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measures, logs, stores the best edit, and stops the run at its limit or goal."""
        module = cast(ErasureModule, pl_module)
        step = trainer.global_step  # the same after each batch of an accumulated gradient
        if step % self.every or step == self._measured:
            # As Lightning does by itself, but also in a run that was resumed.
            module.log_dict(self._logged)
            return
        self._measured = step
        features = self._features("edited", module.backbone)
        erased, retained = self._score(features)
        total = erased + retained
        tradeoff = 2 * erased * retained / total if total > 0 else 0.0
        self._logged = {
            "monitor/erased": erased,
            "monitor/retained": retained,
            "monitor/tradeoff": tradeoff,
        }
        self._logged |= self._by_group(features)
        module.log_dict(self._logged)
        retains_enough = self.min_retained is None or retained >= self.min_retained
        if retains_enough and tradeoff > self.best["tradeoff"]:
            edit = {name: value.clone() for name, value in module.edit_values().items()}
            self.best = {"tradeoff": tradeoff, "step": step, "edit": edit}
        if not retains_enough or (self.goal is not None and erased >= self.goal):
            trainer.should_stop = True

    def _similarity(self, features: Tensor) -> Tensor:
        """Cosine of each image with the original's, ``(N,)`` in 0..1."""
        return cosine_similarity(features, self._original_features).clamp(0, 1)

    def _by_group(self, features: Tensor) -> dict[str, float]:
        """``monitor/retained`` of each group, by its name in the log."""
        similarities = iter(self._similarity(features)[len(self._concept_prompts) :].tolist())
        return {
            f"monitor/retained/{name}": sum(next(similarities) for _ in group) / len(group)
            for name, group in self.groups.items()
        }

    def _score(self, features: Tensor) -> tuple[float, float]:
        """``monitor/erased`` and ``monitor/retained``, each 0..1."""
        similarity = self._similarity(features)
        count = len(self._concept_prompts)
        retained = similarity[count:].mean().item()
        if self._classifier is None:
            return 1 - similarity[:count].mean().item(), retained
        recognised = 0
        for (_, thing), image in zip(self._concept_prompts, features, strict=False):
            candidates = self._classifier.candidates("efficacy", thing)
            recognised += bool(candidates.right[(candidates.labels @ image).argmax()])
        return 1 - recognised / count, retained

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the best edit, and frees the scorer."""
        del self._scorer, self._classifier, self._original_features
        module = cast(ErasureModule, pl_module)
        if not self.keep_best or module.finalizes_edit:
            return
        if self.min_retained is not None and self._measured and not self.best["edit"]:
            rank_zero_warn(
                f"RetentionMonitor measured no edit that retains {self.min_retained:g} or more, and"
                " restores none: the last one stays. Measure more often (every), or lower"
                " min_retained."
            )
        module.write(self.best["edit"])

    def state_dict(self) -> dict[str, Any]:
        """The best edit, which a resumed run can restore, and the last measurement."""
        return {**self.best, "seen": self._logged, "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best edit and the last measurement."""
        self.best = {name: state_dict[name] for name in self.best}
        self._logged = state_dict.get("seen", {})
        self._measured = state_dict.get("measured", 0)
