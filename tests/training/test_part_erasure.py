"""Parts of a denoiser, trained as weights or as low-rank adapters of their layers."""

import pytest
import torch

from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.applied import apply_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.all_but_one import AllButOne
from erasure_lightning.methods.ant import ANT
from erasure_lightning.methods.ca import CA
from erasure_lightning.methods.eraseanything import EraseAnything
from erasure_lightning.methods.eraseflow import EraseFlow
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.realera import RealEra
from erasure_lightning.methods.salun import SalUn
from erasure_lightning.methods.sdd import SDD
from erasure_lightning.testing import check_method, edit_of, quick_fit
from erasure_lightning.training.image_sources import GeneratedImages

CAT = [Concept("cat", "dog")]
#: One image of the concepts and one of the rest, in one step.
IMAGES = {"latents": GeneratedImages(images=1, steps=1)}
#: The edit is the adapters alone.
APART = {"merge": False}
METHODS = [
    (AllButOne, APART),
    (ANT, {"maps": 1} | APART),
    (CA, IMAGES | {"train": "x"} | APART),
    (ESD, {}),
    (RealEra, {}),
    (RealEra, APART),
    (SalUn, IMAGES | {"remaining": 1} | APART),
    (SDD, {"ema": 0.5}),
    (SDD, {"ema": 0.5} | APART),
]


def make(method=ESD, family=TinyFlux, **arguments):
    return method(concepts=CAT, backbone=family(), seed=1, lr=1e-2, **arguments)


def predict(backbone):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return backbone.denoise(
            x, torch.tensor([100.0, 900.0]), backbone.encode(["a cat", "a tree"])
        )


@pytest.mark.parametrize(("method", "arguments"), METHODS, ids=lambda v: getattr(v, "__name__", ""))
def test_the_contract_with_adapters_on_a_flow(method, arguments):
    check_method(
        method,
        families=[TinyFlux],
        thorough=False,
        steps=2,
        world=None,
        lr=1e-2,
        rank=2,
        **arguments,
    )


class TestLayers:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({"train": "x-strict"}, {"0.attn.add_k_proj", "0.attn.add_v_proj"}),
            (
                {"lora_layers": r"^transformer_blocks.*(to|add)_[qkv]"},
                {f"0.attn.{name}" for name in ("to_q", "to_k", "to_v")}
                | {f"0.attn.add_{letter}_proj" for letter in "qkv"},
            ),
        ],
    )
    def test_of_double_blocks(self, arguments, expected):
        module = make(rank=1, **arguments)
        module.configure_model()
        layers = {name.removeprefix("transformer_blocks.") for name in module._plan.layers}
        assert layers == expected

    def test_of_a_part_are_all_its_linear_layers_in_single_blocks_too(self):
        module = make(rank=1)
        module.configure_model()
        assert "single_transformer_blocks.0.attn.to_q" in module._plan.layers
        assert "transformer_blocks.0.attn.to_add_out" in module._plan.layers
        assert len(module._plan.layers) == 11

    def test_without_a_match_are_refused(self):
        with pytest.raises(ErasureError, match=r"ESD needs a linear layer .* found 'attn9'"):
            make(rank=1, lora_layers="attn9").configure_model()

    def test_need_a_rank(self):
        with pytest.raises(ErasureError, match="ESD with lora_layers needs a rank"):
            make(lora_layers="attn")

    def test_need_a_regular_expression(self):
        with pytest.raises(ErasureError, match=r"regular expression as lora_layers; found '\('"):
            make(rank=1, lora_layers="(")

    def test_have_a_rank_of_at_least_one(self):
        with pytest.raises(ErasureError, match="ESD needs rank of at least 1; found 0"):
            make(rank=0)


class TestBeginning:
    """The product of both factors is 0; the first one scales all that training adds to it."""

    def first_factors(self, method, **arguments):
        module = make(method, **arguments)
        module.configure_model()
        assert torch.equal(predict(module.backbone), predict(TinyFlux()))
        return [p for name, p in module.trainable().items() if ".lora_A." in name]

    def test_uniform_within_the_inverse_root_of_the_inputs(self):
        for down in self.first_factors(ESD, rank=4):
            assert down.abs().max() <= down.shape[1] ** -0.5

    @pytest.mark.parametrize(
        ("method", "arguments", "rank"),
        [
            (ESD, {"rank": 4, "lora_init": "gaussian"}, 4),
            (EraseFlow, {}, 4),
            (EraseAnything, {}, 8),
            (RealEra, {}, 1),
        ],
        ids=lambda v: getattr(v, "__name__", ""),
    )
    def test_gaussian_with_a_deviation_of_one_over_the_rank(self, method, arguments, rank):
        """As in the official code of the methods whose rates are the defaults (of MACE's)."""
        together = torch.cat([p.flatten() for p in self.first_factors(method, **arguments)])
        assert together.std().item() == pytest.approx(1 / rank, rel=0.2)

    def test_needs_a_rank_and_one_of_both(self):
        with pytest.raises(ErasureError, match="ESD with lora_init needs a rank; found none"):
            make(lora_init="gaussian")
        with pytest.raises(ErasureError, match="needs one of uniform, gaussian as lora_init"):
            make(rank=1, lora_init="normal")


def test_the_teacher_of_adapters_is_the_frozen_base():
    module = quick_fit(make(rank=2), 2)
    assert torch.equal(predict(module.original), predict(TinyFlux()))
    assert not torch.equal(predict(module.backbone), predict(TinyFlux()))


@pytest.mark.parametrize("family", [TinyBackbone, TinyFlux])
@pytest.mark.parametrize("merge", [True, False])
def test_an_edit_applied_to_a_pipeline_predicts_the_same(tmp_path, family, merge):
    module = quick_fit(make(family=family, rank=2, merge=merge), 2)
    module.save_edit(tmp_path / "edit.safetensors")
    tiny = family()
    apply_edit(tmp_path, tiny.to_pipeline())
    assert torch.allclose(predict(tiny), predict(module.backbone), atol=1e-5)
    assert ("adapters" in module.description()) is not merge


def test_an_edit_with_merged_adapters_is_not_fitted_again():
    module = quick_fit(make(rank=2), 1)
    with pytest.raises(ErasureError, match="ESD needs adapters to train; found them merged"):
        quick_fit(module, 1)
    apart = quick_fit(make(rank=2, merge=False), 1)  # the control: those can be
    before = edit_of(apart)
    after = edit_of(quick_fit(apart, 1))
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_weights_have_no_adapters():
    module = quick_fit(make(), 1)
    assert module.editable().keys() == module.backbone.cross_attention_parameters().keys()
    assert "adapters" not in module.description()


def test_ca_detaches_no_word_of_a_tower_without_a_start_token():
    module = make(CA, train="x-strict", **IMAGES)
    module.configure_model()
    gradients = []
    for layer in module.backbone.text_attention().values():
        layer.register_forward_hook(lambda _, __, out: out.register_hook(gradients.append) and None)
    t = torch.tensor([500.0])
    conditioning = module.backbone.encode(["cat"])
    batch = type("Batch", (), {"x": torch.randn(1, 4, 8, 8), "t": t})
    module.student(batch, conditioning).sum().backward()
    assert all(gradient[:, 0].abs().max() > 0 for gradient in gradients)


def test_realera_has_its_adapters_on_the_attention_of_text_and_solves_the_entries():
    module = make(RealEra)
    module.configure_model()
    solved = {
        f"{name}.weight" for source in module.original.text_inputs() for name in source.layers
    }
    assert {f"denoiser.{layer}" for layer in module._plan.layers} == set(
        module.original.text_attention()
    )
    assert solved <= module.editable().keys()
    before = {name: module.backbone.get_parameter(name).clone() for name in solved}
    quick_fit(module, 1)
    assert all(not torch.equal(module.backbone.get_parameter(n), v) for n, v in before.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beneath_adapters_weights_are_shared_with_the_teacher_in_the_base_s_precision(dtype):
    module = make(rank=2, base_dtype=dtype)
    module.configure_model()
    size = {"float32": 4, "bfloat16": 2}[dtype]
    shared = {id(p) for p in module.original.parameters()}
    for name, parameter in module.editable().items():
        assert (id(parameter) in shared) == name.endswith("base_layer.weight")
        assert parameter.element_size() == (size if id(parameter) in shared else 4)
    own = [p for p in module.parameters() if id(p) not in shared]
    assert sum(p.nbytes for p in own) == 4 * sum(p.numel() for p in module.trainable().values())


def test_merging_adapters_on_a_bfloat16_base_leaves_the_teacher_and_loses_no_digits():
    module = make(rank=2, base_dtype="bfloat16")
    module.configure_model()
    before = {name: p.clone() for name, p in module.original.named_parameters()}
    quick_fit(module, 2)
    assert all(torch.equal(p, before[name]) for name, p in module.original.named_parameters())
    steps = [p - before[name].float() for name, p in module.editable().items()]
    assert all(p.dtype == torch.float32 for p in module.editable().values())
    assert max(int(torch.linalg.matrix_rank(step.double(), atol=1e-5)) for step in steps) == 2
