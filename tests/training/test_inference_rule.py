"""Rules at inference: saved, applied to stock pipelines at a strength, removed, not exported."""

import pytest
import torch

from erasure_lightning import erase
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.applied import load_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.adavd import AdaVD
from erasure_lightning.registry import METHOD, find_offer, load_offer
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import quick_fit

#: Each with arguments by which it acts on a random model.
RULES = {"AdaVD": {"steepness": 0.0}, "SAFREE": {"filter": False}, "SLD": {"threshold": 1.0}}

every_rule = pytest.mark.parametrize("name", RULES)


def drawn(pipeline, prompt="a cat"):
    """Latents of a stock pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    return pipeline(prompt, num_inference_steps=5, generator=generator, output_type="latent").images


@every_rule
def test_a_rule_acts_in_a_stock_pipeline_at_its_strength_until_it_is_removed(name, tmp_path):
    first = TinyBackbone().to_pipeline()
    edit = erase(first, "cat", method=name, progress_bar=False, **RULES[name])
    edit.save(tmp_path / "edit.safetensors")

    pipeline = TinyBackbone().to_pipeline()
    before = drawn(pipeline)
    edit = load_edit(tmp_path).apply(pipeline)
    after = drawn(pipeline)
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(drawn(first), after)
    assert torch.equal(drawn(pipeline), after)  # nothing is left of the rollout before
    edit.strength = 0.0
    assert torch.equal(drawn(pipeline), before)
    edit.strength = 0.5
    assert not torch.equal(drawn(pipeline), before)
    assert not torch.equal(drawn(pipeline), after)
    edit.remove()
    assert torch.equal(drawn(pipeline), before)


@every_rule
def test_formats_of_weights_refuse_a_rule_and_name_the_one_that_holds_it(name, tmp_path):
    edit = erase(TinyBackbone().to_pipeline(), "cat", method=name, progress_bar=False)
    with pytest.raises(ErasureError, match="are in no weights. Export it as `adapters`"):
        edit.export(tmp_path / "lora.safetensors", "lora")
    with pytest.raises(ErasureError, match="keep the edit file, and call apply_edit"):
        edit.pipeline.save_pretrained(tmp_path / "pipeline")
    assert edit.export(tmp_path / "rule.safetensors", "adapters").path.exists()


@every_rule
@torch.no_grad()
def test_states_before_the_denoiser_meet_a_rule_of_the_denoiser(name):
    """As docs/usage.md says of SoftEmbedding: SAFREE's is in the text encoder, and is passed by."""
    cls = load_offer(find_offer(METHOD, name))
    module = quick_fit(cls(concepts=[Concept("cat")], backbone=TinyBackbone(), **RULES[name]), 1)
    prompt = module.original.encode(["a cat"])
    soft = prompt.with_tokens(torch.randn_like(prompt.tokens))
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([300.0])
    edited, original = (m.denoise(x, t, soft) for m in (module.backbone, module.original))
    assert torch.equal(edited, original) == (name == "SAFREE")


def test_a_retention_callback_is_told_that_it_changes_nothing():
    module = AdaVD(concepts=[Concept("cat")], backbone=TinyBackbone())
    with pytest.warns(UserWarning, match="AdaVD is a rule .* found LocalNoise"):
        quick_fit(module, 1, LocalNoisePreservation(prompts=["a tree"]))
