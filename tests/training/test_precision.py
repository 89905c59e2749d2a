import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from trivial import Distillation, Redirection, method_options, quiet_trainer

from erasure_lightning.api.load import load_edited
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.measure import Measure
from erasure_lightning.cli.main import main
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.diffusion.fine_tuning import FineTuning
from erasure_lightning.diffusion.latent_dataset import LatentDataset
from erasure_lightning.edits.applied import apply_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.ant import ANT
from erasure_lightning.methods.fmn import FMN
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.methods.salun import SalUn
from erasure_lightning.methods.uce import UCE
from erasure_lightning.testing import edit_of, quick_fit
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CAT = [Concept("cat", "dog")]
X, T = (
    torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
    torch.tensor([100.0, 800.0]),
)


def build(method=Distillation, base_dtype="bfloat16", **arguments):
    return method(concepts=CAT, backbone=TinyBackbone(), base_dtype=base_dtype, **arguments)


def test_weights_are_bfloat16_and_all_that_is_edited_or_said_is_float32():
    module = quick_fit(build(latents=TrajectoryBank(trajectories=2, steps=3)), 2)
    edited = module.editable()
    for name, parameter in module.backbone.named_parameters():
        assert parameter.dtype == (torch.float32 if name in edited else torch.bfloat16), name
    assert {p.dtype for p in module.original.parameters()} == {torch.bfloat16}
    state = module.trainer.optimizers[0].state.values()
    assert (
        {s["exp_avg"].dtype for s in state}
        == {s["exp_avg_sq"].dtype for s in state}
        == {torch.float32}
    )
    states = module.backbone.encode(["a cat", "a dog"])
    drawn = module.backbone.noise([0, 1])
    pictures = module.backbone.decode(drawn)
    drawn_for_cat = module.noisy_batch(PromptBatch(["a {}"], ["cat"], ["dog"], [0])).x
    for tensor in (
        states.tokens,
        drawn,
        pictures,
        module.backbone.denoise(X, T, states),
        drawn_for_cat,
    ):
        assert tensor.dtype == torch.float32
    assert module.backbone.compress(pictures).dtype == torch.float32


def test_small_steps_are_not_swallowed():
    """The reason for it: the same rate moves nothing where the edit itself is bfloat16."""

    def moved(module):
        before = dict(module.original.named_parameters())
        flat = [(p != before[name].to(p)).flatten() for name, p in module.editable().items()]
        return torch.cat(flat).float().mean()

    assert moved(quick_fit(build(lr=1e-7), 2)) > 0.9
    assert moved(quick_fit(build(base_dtype="float32", lr=1e-7), 2, precision="bf16-true")) < 0.1


def test_a_solution_is_not_rounded():
    module = quick_fit(build(Redirection), 1)
    assert any(not torch.equal(p, p.bfloat16().float()) for p in module.editable().values())


def test_gradients_are_those_of_float32_but_for_rounding():
    class Gradients(Callback):
        def on_after_backward(self, trainer, module):
            self.values = torch.cat([p.grad.flatten() for p in module.trainable().values()])

    one, other = Gradients(), Gradients()
    quick_fit(build(), 1, one)
    quick_fit(build(base_dtype="float32"), 1, other)
    assert one.values.dtype == torch.float32
    assert torch.cosine_similarity(one.values, other.values, dim=0) > 0.99
    assert not torch.equal(one.values, other.values)


@pytest.fixture
def run(tmp_path, request):
    """A run of the command line on a folder of weights, fitted and measured."""
    TinyBackbone().to_pipeline().save_pretrained(tmp_path / "tiny")
    argv = method_options("ESD", tmp_path / "tiny", "[{name: cat}]")
    small = [
        *("--data.others", "2", "--data.seeds", "2", "--data.steps", "2"),
        *("--trainer.accelerator", "cpu"),
    ]
    steps = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false", *request.param]
    assert main(["fit", *argv, *small, *steps, "--run_dir", str(tmp_path / "run")]) == 0
    measured = ["--ckpt_path", str(tmp_path / "run"), "--run_dir", str(tmp_path / "test")]
    assert main(["test", *measured, *small]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("run", [["--model.base_dtype", "bfloat16"]], indirect=True)
def test_a_run_of_it_is_measured_loaded_and_applied(run):
    from diffusers import StableDiffusionPipeline

    edit = load_file(run / "edit.safetensors")
    assert {value.dtype for value in edit.values()} == {torch.float32}
    assert load_edited(run / "edit.safetensors").backbone.base_dtype == torch.bfloat16
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = StableDiffusionPipeline.from_pretrained(
            run.parent / "tiny", safety_checker=None, dtype=dtype
        )
        apply_edit(run, pipeline)
        name, value = next(iter(edit.items()))
        assert torch.equal(pipeline.unet.get_parameter(name.removeprefix("unet.")), value.to(dtype))


@pytest.mark.parametrize("run", [["--trainer.precision", "bf16-mixed"]], indirect=True)
def test_mixed_precision_of_lightning_fits_and_measures_too(run):
    assert {value.dtype for value in load_file(run / "edit.safetensors").values()} == {
        torch.float32
    }
    assert load_edited(run / "edit.safetensors").backbone.base_dtype == torch.float32


def test_the_same_model_is_known_in_either_precision(tmp_path):
    for there in ("float32", "bfloat16"):
        saved = tmp_path / f"{there}.ckpt"
        quick_fit(build(base_dtype=there), 1, save=saved)
        checkpoint = torch.load(saved, weights_only=True)
        for here in ("float32", "bfloat16"):
            module = build(base_dtype=here)
            module.configure_model()
            module.on_load_checkpoint(checkpoint)
            other = Distillation(concepts=CAT, backbone=TinyBackbone(seed=1), base_dtype=here)
            other.configure_model()
            with pytest.raises(ErasureError, match="edits a model with fingerprint"):
                other.on_load_checkpoint(checkpoint)


def test_two_float32_models_that_round_alike_are_two():
    module, near = build(base_dtype="float32"), TinyBackbone()
    with torch.no_grad():
        next(near.denoiser.parameters()).mul_(1 + 1e-6)
    module.configure_model()
    checkpoint = {"state_dict": {f"backbone.{n}": p for n, p in module.editable().items()}}
    other = Distillation(concepts=CAT, backbone=near)
    other.configure_model()
    assert other.rounded == module.rounded
    with pytest.raises(ErasureError, match="edits a model with fingerprint"):
        other.on_load_checkpoint(checkpoint | {"erasure": module.description()})


def test_a_precision_that_would_round_the_edit_is_refused():
    with pytest.raises(ErasureError, match="Leave the trainer's precision at 32-true"):
        quick_fit(build(), 1, precision="bf16-true")


def test_weights_are_loaded_in_the_precision_asked_for(tmp_path):
    TinyBackbone().to_pipeline().save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path), torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert (
        loaded.fingerprint()
        == TinyBackbone().rounded_fingerprints([torch.bfloat16])[0]
        != TinyBackbone().fingerprint()
    )


def test_who_learns_it_back_is_not_held_up_by_rounding():
    """An attack that fine-tunes in bfloat16 would make every edit look safe."""
    model = TinyBackbone().to(torch.bfloat16)
    dataset = LatentDataset(model, ["a cat"] * 2, seed=0, steps=2, guidance=1.0)
    before = dict(model.denoiser.named_parameters())
    after = FineTuning(model, dataset, ["a cat"] * 2, lr=1e-7).advance(1)
    moved = [
        n for n, p in after.denoiser.named_parameters() if not torch.equal(p, before[n].float())
    ]
    assert len(moved) > 0.9 * len(before)


def test_edits_of_both_bases_are_much_alike():
    one, other = (
        edit_of(quick_fit(build(base_dtype=dtype, lr=1e-2), 4)) for dtype in ("float32", "bfloat16")
    )
    before = dict(TinyBackbone().named_parameters())
    for name in one:
        moves = [edit[name] - before[name].detach().to(dtype).float() for edit, dtype in
                 ((one, torch.float32), (other, torch.bfloat16))]  # fmt: skip
        assert torch.cosine_similarity(moves[0].flatten(), moves[1].flatten(), dim=0) > 0.8


def test_a_solution_is_the_same_under_mixed_precision():
    """A closed form is solved in float32; one under autocast is another."""

    class Rounded(UCE):
        def solve(self):
            with torch.autocast("cpu", torch.bfloat16):
                return super().solve()

    def solved(method=UCE, precision="bf16-mixed"):
        return edit_of(quick_fit(build(method, "float32"), 1, precision=precision))

    exact, mixed, rounded = solved(precision="32-true"), solved(), solved(Rounded)
    assert all(torch.equal(exact[name], mixed[name]) for name in exact)
    assert any(not torch.equal(exact[name], rounded[name]) for name in exact)  # the control


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_a_loss_compares_with_is_computed_in_its_precision(precision):
    """What is prepared before the first step equals what a step would compute, to the bit."""
    seen = {}

    class Comparing(Distillation):
        def prepare(self):
            super().prepare()
            seen["prepared"] = self.original.denoise(X, T, self.original.encode(["a cat"] * 2))

        def erasure_loss(self, batch):
            seen["step"] = self.original.denoise(X, T, self.original.encode(["a cat"] * 2))
            return super().erasure_loss(batch)

    quick_fit(build(Comparing, "float32"), 1, precision=precision)
    assert torch.equal(seen["prepared"], seen["step"])
    is_rounded = torch.equal(seen["step"], seen["step"].bfloat16().float())
    assert is_rounded == (precision == "bf16-mixed")


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (ANT, {"share": 0.5, "maps": 1}),
        (FMN, {"inversion_steps": 1, "latents": GeneratedImages(images=1, steps=2)}),
        (SAGE, {"domain_similarity": 0.5, "domain_candidates": 2, "vocabulary": None}),
        (SalUn, {"remaining": 2, "latents": GeneratedImages(images=1, steps=2)}),
    ],
    ids=["ANT", "FMN", "SAGE", "SalUn"],
)
def test_what_a_method_predicts_before_its_steps_is_under_the_autocast_of_its_loss(
    method, arguments, monkeypatch
):
    module = build(method, "float32", **arguments)
    prepare, denoise, autocasts = module.prepare, TinyBackbone.denoise, []

    def recorded(*args):
        autocasts.append(torch.is_autocast_enabled("cpu"))
        return denoise(*args)

    def prepare_and_record():
        with monkeypatch.context() as patched:
            patched.setattr(TinyBackbone, "denoise", recorded)
            prepare()

    module.prepare = prepare_and_record
    quick_fit(module, 1, precision="bf16-mixed")
    assert set(autocasts) == {True}


def test_cached_originals_are_those_of_the_run_s_precision(tmp_path):
    cached = {"steps": 3, "seeds": 2, "others": 3, "originals": str(tmp_path / "cache")}
    for number, precision in enumerate(("32-true", "bf16-mixed", "bf16-mixed"), start=1):
        measure = Measure(show=False)
        trainer = quiet_trainer(default_root_dir=tmp_path, precision=precision, callbacks=[measure])
        trainer.test(build(base_dtype="float32"), PromptData(**cached), verbose=False)
        distance = measure.result.estimates["structure"]["distance"]["after"]
        assert distance.mean == 0, precision
        assert len([*(tmp_path / "cache").iterdir()]) == min(number, 2)
