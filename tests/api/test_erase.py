"""`erase`, `evaluate` and `attack` on pipeline objects, with controls."""

import re
from typing import ClassVar

import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close

from erasure_lightning import (
    AttackSettings,
    Concept,
    apply_edit,
    attack,
    erase,
    evaluate,
    find_world,
    fit,
    load_edit,
)
from erasure_lightning.attacks.soft_embedding import SoftEmbedding
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinySD3, TinyXL
from erasure_lightning.edits.applied import Edit
from erasure_lightning.edits.stack import applied_edits
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import ESD, METHODS, UCE
from erasure_lightning.registry import METHOD, find_offer, load_offer
from erasure_lightning.retention.global_alignment import GlobalSemanticAlignment
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.retention.monitor import RetentionMonitor
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.latent_sources import PureNoise
from erasure_lightning.training.stochastic_trajectories import StochasticTrajectories
from erasure_lightning.training.trajectory_bank import TrajectoryBank

QUICK = {"steps": 2, "batch_size": 2, "progress_bar": False, "accelerator": "cpu"}


def pipeline_of(family=TinyBackbone, dtype=torch.float32):
    pipeline = family().to_pipeline().to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline, prompt="a cat"):
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 1, "guidance_scale": 3.0, "output_type": "latent"}
    return pipeline(prompt, generator=generator, **settings).images


def small(name):
    """Arguments by which a method is quick on a tiny model, and moves."""
    cls = load_offer(find_offer(METHOD, name))
    if not issubclass(cls, GradientErasure):
        return {"images": 2, "rollout_steps": 2, "threshold": 0.1} if name == "GLoCE" else {}
    images = GeneratedImages(images=2, steps=2)
    bank = TrajectoryBank(trajectories=2, steps=3)
    source = images if name in ("CA", "SalUn", "MACE", "FMN") else bank
    if name == "EraseFlow":
        source = StochasticTrajectories(trajectories=2, steps=3, early=1, late=1)
    more = {
        "SalUn": {"remaining": 2},
        "SDD": {"ema": 0.5},
        "AdvUnlearn": {"attack_steps": 1},
        "Receler": {"attack_steps": 1},
        "ANT": {"maps": 1},
        "FMN": {"inversion_steps": 1},
    }
    return {"lr": 1e-2, "warmup": 0, "latents": source} | more.get(name, {})


@pytest.mark.parametrize("name", ["ESD", "SPM"])
def test_random_numbers_of_the_caller_are_as_without_it(name, tmp_path):
    torch.manual_seed(1)
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    pipeline = pipeline_of()
    edit = erase(pipeline, "cat", method=name, **small(name), **QUICK)
    edit.save(tmp_path / "edit.safetensors")
    edit.remove()
    apply_edit(tmp_path / "edit.safetensors", pipeline)
    assert torch.equal(torch.get_rng_state(), expected)
    module = load_offer(find_offer(METHOD, name))(
        concepts=[Concept("cat")], backbone=TinyBackbone(), **small(name)
    )
    fit(module, run_dir=tmp_path / "run", max_steps=1, measure=False, progress_bar=False)
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("family", [TinyBackbone, TinyXL])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_edits_a_pipeline_which_then_is_as_strong_as_asked_and_can_be_undone(
    name, family
):
    if not load_offer(find_offer(METHOD, name)).needs <= family.capabilities:
        pytest.skip("refused, as tests/testing demand")
    pipeline = pipeline_of(family)
    before = latents(pipeline)
    values = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    edit = erase(pipeline, "cat", method=name, anchor="dog", **small(name), **QUICK)
    after = latents(pipeline)
    assert not torch.equal(before, after)
    edit.strength = 0
    assert torch.allclose(latents(pipeline), before, atol=1e-6)
    edit.strength = 0.5
    half = latents(pipeline)
    assert not torch.allclose(half, before)
    assert not torch.allclose(half, after)
    edit.strength = 1
    assert torch.equal(latents(pipeline), after)
    edit.remove()
    assert torch.equal(latents(pipeline), before)
    here = pipeline.unet.state_dict()
    assert here.keys() == values.keys()
    assert all(torch.equal(here[name], values[name]) for name in values)


def test_an_edit_is_saved_loaded_and_applied_to_another_pipeline(tmp_path):
    pipeline, other = pipeline_of(), pipeline_of()
    edit = erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False)
    path = edit.save(tmp_path / "edits" / "no-cat.safetensors")
    assert load_edit(path).metadata["concepts"] == edit.metadata["concepts"]
    assert not torch.equal(latents(other), latents(pipeline))
    applied = apply_edit(path, other)
    assert torch.equal(latents(other), latents(pipeline))
    assert applied.metadata["transferred"] == []
    assert "UCE of cat" in applied.report()


def test_a_list_of_methods_may_have_one_and_needs_one():
    one = erase(pipeline_of(), "cat", ["UCE"], anchor="dog", progress_bar=False)
    assert repr(one) == "Edit(UCE of cat, 8 tensors)"
    with pytest.raises(ErasureError, match="erase needs at least one method; found none"):
        erase(pipeline_of(), "cat", [], progress_bar=False)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    edit = erase(pipeline_of(), "cat", method="UCE", anchor="dog", progress_bar=False)
    (tmp_path / "file").touch()
    with pytest.raises(ErasureError, match=r"Could not write .*edit.safetensors: "):
        edit.save(tmp_path / "file" / "edit.safetensors")


def test_loras_that_hide_weights_are_refused():
    pipeline = pipeline_of()
    edit = erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))
    for attempt in (
        lambda: erase(pipeline, "star", method="UCE", anchor="dog", progress_bar=False),
        lambda: evaluate(edit, pipeline, seeds=2, others=2, steps=2, progress_bar=False),
    ):
        with pytest.raises(ErasureError, match=r"a unet without LoRA layers.*Call pipeline.fuse_l"):
            attempt()


def test_all_components_with_loras_are_named():
    """By default diffusers fuses FLUX's transformer alone, and then unloads the others' LoRAs."""
    pipeline = TinyFlux().to_pipeline()
    for component, layer in (("transformer", "to_k"), ("text_encoder", "q_proj")):
        getattr(pipeline, component).add_adapter(LoraConfig(r=2, target_modules=[layer]))
    components = re.escape("fuse_lora(components=['text_encoder', 'transformer'])")
    with pytest.raises(ErasureError, match=components):
        erase(pipeline, "cat", method="UCE", progress_bar=False)


def test_by_default_each_concept_has_the_steps_of_the_paper(tmp_path):
    class Short(ESD):
        default_steps = 3
        steps: ClassVar[list[int]] = []

        def on_train_end(self):
            self.steps.append(self.global_step)

    concepts = [Concept("cat"), Concept("star")]
    erase(pipeline_of(), concepts, Short, latents=PureNoise(), progress_bar=False)
    module = Short(concepts=concepts, backbone=TinyBackbone(), latents=PureNoise())
    fit(module, run_dir=tmp_path, measure=False, progress_bar=False)
    assert Short.steps == [6, 6]


def test_several_concepts_and_arguments_of_the_constructor():
    pipeline = pipeline_of()
    concepts = ["cat", Concept("star", "heart")]
    edit = erase(pipeline, concepts, "UCE", anchor="dog", ridge=2.0, progress_bar=False)
    pairs = [(c["name"], c["anchor"]) for c in edit.metadata["concepts"]]
    assert pairs == [("cat", "dog"), ("star", "heart")]
    assert edit.metadata["arguments"]["ridge"] == 2.0


def test_retained_prompts_are_retained():
    """Held by closed forms; the control is the same edit without them."""
    moved = {}
    for retain in (None, ["tree"]):
        pipeline = pipeline_of()
        before = latents(pipeline, "tree")
        heavy = LocalNoisePreservation(weight=100.0)
        retention = [heavy] if retain else []
        erase(
            pipeline, "cat", "UCE", anchor="dog", retain=retain, retention=retention,
            progress_bar=False,
        )  # fmt: skip
        moved[bool(retain)] = (latents(pipeline, "tree") - before).norm().item()
    assert moved[True] < 0.5 * moved[False]


def test_a_monitor_beside_a_retention_callback_keeps_its_own_prompts():
    term, monitor = LocalNoisePreservation(), RetentionMonitor(count=1, steps=1, prompts=["a car"])
    erase(
        pipeline_of(), "cat", "ESD", steps=1, retain=["tree"], retention=[term, monitor],
        progress_bar=False,
    )  # fmt: skip
    assert (term.prompts, monitor.prompts) == (["tree"], ["a car"])


def test_a_method_is_trained_with_the_retention_of_its_paper():
    """The control is the same edit without any."""
    edits = {}
    for name, retention in {
        "default": None,
        "given": [GlobalSemanticAlignment(), LocalNoisePreservation()],
        "none": [],
    }.items():
        pipeline = pipeline_of()
        edit = erase(
            pipeline, "cat", "SAGE", retention=retention, lr=1e-2, warmup=0, check_steps=1, **QUICK
        )
        edits[name] = edit.tensors
    (key, *_) = edits["default"]
    assert torch.equal(edits["default"][key], edits["given"][key])
    assert not torch.equal(edits["default"][key], edits["none"][key])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_pipeline_keeps_its_precision(dtype):
    pipeline = pipeline_of(dtype=dtype)
    edit = erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False)
    assert {p.dtype for p in pipeline.unet.parameters()} == {dtype}
    assert edit.metadata["transferred"] == []
    edit.remove()
    with pytest.raises(ErasureError, match="needs to be applied"):
        edit.remove()


def test_an_error_leaves_the_pipeline_as_it_was():
    pipeline = pipeline_of()
    before = latents(pipeline)
    with pytest.raises(ErasureError, match="loss became nan|NaN"):
        erase(pipeline, "cat", "ESD", lr=1e30, latents=TrajectoryBank(2, 3), **QUICK)
    assert torch.equal(latents(pipeline), before)
    assert not applied_edits(pipeline.unet)
    assert all(p.grad is None for p in pipeline.unet.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_caller_s_context_without_gradients_makes_no_difference(context):
    """One seed gives one edit; another seed, the control, another."""
    arguments = {"method": "ESD", "latents": TrajectoryBank(2, 3), **QUICK}
    expected, other = (erase(pipeline_of(), "cat", **arguments, seed=seed) for seed in (0, 1))
    pipeline = pipeline_of()
    with context():
        edit = erase(pipeline, "cat", **arguments)
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    assert_close(edit.tensors, expected.tensors, rtol=0, atol=0)
    assert not all(torch.equal(edit.tensors[name], other.tensors[name]) for name in edit.tensors)


def test_a_pipeline_of_inference_tensors_is_refused():
    with torch.inference_mode():
        pipeline = TinyBackbone().to_pipeline()
        pipeline.unet.load_state_dict(
            {n: v.clone() for n, v in pipeline.unet.state_dict().items()}, assign=True
        )
    with pytest.raises(ErasureError, match=r"Load the pipeline outside torch.inference_mode\(\)"):
        erase(pipeline, "cat", "UCE", progress_bar=False)


class _CtrlC(LocalNoisePreservation):
    def term(self, module):
        raise KeyboardInterrupt


def test_an_interruption_leaves_the_pipeline_as_it_was():
    pipeline = pipeline_of()
    before = latents(pipeline)
    with pytest.raises(KeyboardInterrupt):
        erase(pipeline, "cat", "ESD", latents=TrajectoryBank(2, 3), retention=[_CtrlC()], **QUICK)
    assert torch.equal(latents(pipeline), before)
    assert not applied_edits(pipeline.unet)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "UCEE"}, "unknown method 'UCEE'. Did you mean 'UCE'"),
        ({"method": "UCE", "concepts": []}, "at least one concept"),
        (
            {"method": "UCE", "concepts": [Concept("star")], "anchor": "heart"},
            "the anchor and the kind of a Concept inside it; found anchor 'heart' beside 'star'",
        ),
        (
            {"method": "UCE", "concepts": Concept("star"), "kind": "style"},
            "found kind 'style' beside 'star'",
        ),
        (
            {"method": "UCE", "rigde": 1.0},
            "Neither erase nor UCE has an argument 'rigde'. Did you mean 'ridge'",
        ),
        (
            {"method": "UCE", "domain": ["kitten"]},
            r"Neither .* 'domain'. Write Concept\('cat', domain=\['kitten'\]\) for 'cat'",
        ),
        (
            {"method": "UCE", "domain": ["kitten"], "anchor": "dog", "kind": "style"},
            r"Concept\('cat', anchor='dog', domain=\['kitten'\], kind='style'\)",
        ),
        ({"method": "UCE", "progress": 1}, "Did you mean 'progress_bar'"),
        ({"method": "ESD", "steps": 0}, "steps of at least 1, a whole number; found 0"),
        ({"method": "ESD", "steps": 1.5}, "steps of at least 1, a whole number; found 1.5"),
        ({"method": "UCE", "concepts": 5}, "each concept as text .*; found 5"),
        ({"method": "UCE", "concepts": [{"name": "cat"}]}, "found {'name': 'cat'}"),
        ({"method": "UCE", "concepts": {"name": "cat"}}, "found {'name': 'cat'}"),
        ({"method": "UCE", "concepts": "cats.csv"}, "found no file 'cats.csv'"),
        ({"method": "UCE", "anchor": None}, "text as anchor; found None"),
        ({"method": "UCE", "backbone": "x"}, "erase sets backbone of UCE; leave it out"),
        ({"method": "STEREO", "adversary": None}, "STEREO sets adversary itself; leave it"),
        (
            {"method": "ESD", "retention": "LocalNoisePreservation"},
            "retention callbacks in a list, .*; found 'LocalNoisePreservation'",
        ),
        ({"method": "ESD", "retention": LocalNoisePreservation()}, "callbacks in a list"),
        (
            {"method": "ESD", "retention": [LocalNoisePreservation(), LocalNoisePreservation()]},
            "each LocalNoisePreservation with other arguments, .*; found two with equal ones",
        ),
        (
            {"method": "UCE", "pipeline": object()},
            "known family, or one with its components; found object",
        ),
        ({"method": None}, "a method by its name, its class or its config, .*; found None"),
        ({"method": ["UCE", Concept]}, "a method by its name, .*; found <class"),
        (
            {"method": "UCE", "templates": "a {}"},
            "templates in a list, .*; found 'a {}",
        ),
        ({"method": "UCE", "base_edit": None}, "its file or its run folder as a path; found None"),
        ({"method": "UCE", "accelerator": "gpuu"}, "invalid accelerator name: .*'gpuu'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    defaults = {"pipeline": pipeline_of(), "concepts": "cat", "progress_bar": False}
    with pytest.raises(ErasureError, match=message):
        erase(**defaults | arguments)


def test_the_edits_beneath_are_removed_again_where_the_new_one_cannot_be_applied(monkeypatch):
    pipeline = pipeline_of()
    base = erase(pipeline, "cat", "UCE", anchor="dog", progress_bar=False)
    base.remove()
    apply = Edit.apply

    def apply_base(edit, pipeline):
        if edit is not base:
            raise ErasureError("no change")
        return apply(edit, pipeline)

    monkeypatch.setattr(Edit, "apply", apply_base)
    with pytest.raises(ErasureError, match="no change"):
        erase(pipeline, "star", "UCE", anchor="dog", base_edit=base, progress_bar=False)
    assert not applied_edits(pipeline.unet)


def test_mistakes_of_measuring_attacking_and_fitting_are_named(tmp_path):
    pipeline = pipeline_of()
    edit = erase(pipeline, "cat", "UCE", anchor="dog", progress_bar=False)
    with pytest.raises(
        ErasureError, match="Neither evaluate nor PromptData .*'sedds'. Did.*'seeds'"
    ):
        evaluate(edit, pipeline, sedds=2)
    with pytest.raises(ErasureError, match="found prompts. Generate .* `erasure predict"):
        evaluate(edit, pipeline, prompts="prompts.csv")
    with pytest.raises(ErasureError, match="found batch_size, which is of training.*image_batch_s"):
        evaluate(edit, pipeline, batch_size=8)
    with pytest.raises(ErasureError, match="invalid accelerator name: .*'gpuu'"):
        evaluate(edit, pipeline, accelerator="gpuu", progress_bar=False)
    with pytest.raises(
        ErasureError, match="Neither attack nor SoftEmbedding .*'stesp'. Did.*'steps'"
    ):
        attack(edit, pipeline, "SoftEmbedding", stesp=1)
    module = UCE(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    with pytest.raises(
        ErasureError, match="Neither fit nor Trainer .*'max_step'. Did.*'max_steps'"
    ):
        fit(module, run_dir=tmp_path, max_step=3, progress_bar=False)
    with pytest.raises(ErasureError, match="invalid accelerator name: .*'gpuu'"):
        fit(module, run_dir=tmp_path, accelerator="gpuu", progress_bar=False)
    with pytest.raises(ErasureError, match="Neither export nor ExportRequest .*Did.*'rank'"):
        edit.export(tmp_path / "no-cat.safetensors", rnak=4)
    with pytest.raises(ErasureError, match="its file or its run folder as a path; found None"):
        load_edit(None)
    with pytest.raises(ErasureError, match=r"brings none\. Pass scorer=FOLDER"):
        attack(edit, pipeline)
    with pytest.raises(ErasureError, match="'no-such-clip'|no-such-clip"):
        attack(edit, pipeline, scorer="no-such-clip")
    with pytest.raises(ErasureError, match=r"budget in SoftEmbedding\(...\); found steps beside"):
        attack(edit, pipeline, SoftEmbedding(), steps=1)


def test_a_file_of_concepts_is_named_by_a_path_or_as_text(tmp_path):
    file = tmp_path / "cats.yaml"
    file.write_text("[{name: cat, anchor: dog}]")
    for name in (file, str(file)):
        edit = erase(pipeline_of(), name, "UCE", progress_bar=False)
        assert (edit.method, edit.concepts) == ("UCE", ["cat"])


def test_strength_is_a_number_from_0_to_1000():
    edit = erase(pipeline_of(), "cat", "UCE", anchor="dog", progress_bar=False)
    for none in ("0.5", None):
        with pytest.raises(ErasureError, match=f"needs a number as strength; found {none!r}"):
            edit.strength = none
    for strength in (-1, 1001, 10**39):  # the last is no float32
        with pytest.raises(
            ErasureError, match=rf"strength of at least 0 and at most 1000; found {strength}"
        ):
            edit.strength = strength
    edit.strength = 1000
    edit.remove()


def test_a_concept_erased_twice_is_undone_step_by_step():
    pipeline = pipeline_of()
    before = latents(pipeline)
    first = erase(pipeline, "cat", "UCE", anchor="dog", progress_bar=False)
    between = latents(pipeline)
    second = erase(pipeline, "cat", "UCE", anchor="dog", erase_scale=9.0, progress_bar=False)
    second.remove()
    assert torch.equal(latents(pipeline), between)
    first.remove()
    assert torch.equal(latents(pipeline), before)


def test_an_edit_that_was_loaded_with_its_pipeline_has_no_former_weights(tmp_path):
    pipeline = pipeline_of()
    edit = erase(pipeline, "cat", "UCE", anchor="dog", progress_bar=False)
    pipeline.save_pretrained(tmp_path)
    loaded = type(pipeline).from_pretrained(tmp_path)
    applied = apply_edit(edit.save(tmp_path / "edit.safetensors"), loaded)
    with pytest.raises(ErasureError, match="loaded with the edit in it"):
        applied.remove()


def test_the_file_of_an_edit_that_the_pipeline_holds_is_measured(tmp_path):
    """As from a pipeline without it, and the pipeline's strength stays."""
    quick = {"seeds": 2, "others": 2, "steps": 2, "progress_bar": False, "accelerator": "cpu"}
    pipeline = pipeline_of()
    edit = erase(pipeline, "cat", "UCE", anchor="dog", progress_bar=False)
    file = edit.save(tmp_path / "edit.safetensors")
    edit.strength = 0.5
    before = latents(pipeline)
    result = evaluate(file, pipeline, **quick)
    held = result.estimates["structure"]["distance"]["after"]
    assert repr(result) == f"Result(UCE of cat: no scorer, distance of images {held.mean:.3f})"
    assert (
        held == evaluate(file, pipeline_of(), **quick).estimates["structure"]["distance"]["after"]
    )
    assert held.mean > 0
    assert edit.strength == 0.5
    assert torch.equal(latents(pipeline), before)


def test_evaluate_and_attack_on_the_emoji_world():
    """There before, gone after; an edit of strength 0 is the control."""
    world = find_world("emoji-world")
    pipeline = world.load_pipeline()
    edit = erase(pipeline, "guitar", method="UCE", anchor="drum", progress_bar=False)
    edit.strength = 0.5
    result = evaluate(edit, pipeline, seeds=2, others=3, steps=6, progress_bar=False)
    own = result.estimates["efficacy"]["recognized"]
    assert own["before"].mean > 0.9
    assert own["after"].mean < 0.3
    assert result.estimates["specificity"]["recognized"]["after"].mean > 0.8
    assert edit.strength == 0.5  # as before
    before, after = own["before"].mean, own["after"].mean
    assert repr(result).startswith(f"Result(UCE of guitar: efficacy {before:.3f} -> {after:.3f}, ")
    assert repr(result).endswith(f", overall {result.overall('after'):.3f})")
    settings = AttackSettings(seeds=2, images=1, steps=5)
    with torch.inference_mode():  # of the caller; the attack needs gradients
        outcome = attack(
            edit, pipeline, "SoftEmbedding", settings=settings, steps=1, progress_bar=False
        )
    assert (outcome.attack, outcome.method, outcome.edit) == ("SoftEmbedding", "UCE", "")
    shares = [f"{kind} {share.mean:.3f}" for kind, share in outcome.success.items()]
    assert repr(outcome) == f"Outcome(SoftEmbedding on guitar: {', '.join(shares)})"
    assert outcome.success["original"].mean > outcome.success["plain"].mean


def test_a_missing_component_is_named():
    pipeline = pipeline_of(TinyXL)
    pipeline.text_encoder_2 = None
    with pytest.raises(ErasureError, match="found no text_encoder_2. Load the pipeline with it"):
        erase(pipeline, "cat", method="UCE", anchor="dog", **QUICK)


def test_a_component_that_the_family_may_lack_is_not_missed():
    pipeline = pipeline_of(TinySD3)
    pipeline.text_encoder_3 = None
    pipeline.tokenizer_3 = None
    erase(pipeline, "cat", method="UCE", anchor="dog", **QUICK)
