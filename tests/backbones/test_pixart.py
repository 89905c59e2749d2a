"""PixArt through the seam: equal to stock, masked, and erased in closed form as a whole."""

import json

import diffusers
import pytest
import torch

from erasure_lightning import Concept, erase
from erasure_lightning.backbones.conditioning import CONCEPT, END, PADDING, TEMPLATE
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.pixart import PixArt, PixArtAlpha
from erasure_lightning.backbones.tiny import TinyPixArt
from erasure_lightning.concepts.concept import PromptBatch, fill_template
from erasure_lightning.diffusion.sampling import sample_images, sample_latents
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import METHODS
from erasure_lightning.methods.ant import ANT
from erasure_lightning.methods.rece import RECE
from erasure_lightning.methods.uce import UCE
from erasure_lightning.registry import METHOD, find_offer, load_offer
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training import text_regressions
from erasure_lightning.training.input_grams import mean_input_gram
from erasure_lightning.training.prompt_states import last_token_states
from erasure_lightning.training.regression import Regression
from erasure_lightning.training.trajectory_bank import TrajectoryBank

PROMPTS = ["a cat", "  A photo of a DOG "]
SEEDS = [3, 4]
#: As here: the 20 tokens of a tiny model, sizes as they are, prompts in lower case alone.
STOCK = {"max_sequence_length": 20, "use_resolution_binning": False, "clean_caption": False}


@pytest.fixture(scope="module")
def pixart():
    return TinyPixArt()


def pipeline_of(model, kind="PixArtSigmaPipeline", scheduler=None):
    parts = model.to_pipeline().components
    if scheduler:
        parts["scheduler"] = getattr(diffusers, scheduler).from_config(parts["scheduler"].config)
    pipeline = getattr(diffusers, kind)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock(pipeline, prompts=PROMPTS, steps=3, guidance=4.5, size=(16, 16)):
    height, width = size
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS[: len(prompts)]]
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generators}
    return pipeline(
        prompts, height=height, width=width, **settings, **STOCK, output_type="latent"
    ).images


class TestLatentsEqualStock:
    @pytest.mark.parametrize(
        "name",
        [
            "DPMSolverMultistepScheduler",
            "DDIMScheduler",
            "EulerDiscreteScheduler",
            "EulerAncestralDiscreteScheduler",
        ],
    )
    @pytest.mark.parametrize("kind", [PixArt, PixArtAlpha])
    def test_at_every_sampler_size_number_of_steps_and_guidance(self, pixart, name, kind):
        pipeline = pipeline_of(pixart, kind.pipeline_class, name)
        model = kind.from_pipeline("pixart", pipeline)
        for steps, size, guidance in [(2, (16, 16), 1.0), (4, (16, 32), 4.5), (7, (16, 16), 4.5)]:
            settings = {"steps": steps, "guidance": guidance, "size": size}
            ours = sample_latents(model, PROMPTS, SEEDS, **settings)
            assert torch.equal(ours, stock(pipeline, **settings))

    def test_with_the_size_as_an_input_as_alpha_of_1024_pixels(self):
        pipeline = pipeline_of(TinyPixArt(), "PixArtAlphaPipeline")
        config = {k: v for k, v in pipeline.transformer.config.items() if k[0] != "_"}
        torch.manual_seed(0)
        pipeline.transformer = diffusers.PixArtTransformer2DModel(
            **config | {"sample_size": 128, "use_additional_conditions": True, "num_layers": 1}
            | {"num_attention_heads": 3, "cross_attention_dim": 48}
        ).eval()  # fmt: skip
        model = PixArtAlpha.from_pipeline("alpha", pipeline)
        settings = {"steps": 2, "guidance": 4.5}
        wide, tall = (
            sample_latents(model, PROMPTS, SEEDS, size=size, **settings)
            for size in ((16, 32), (32, 16))
        )
        assert torch.equal(wide, stock(pipeline, size=(16, 32), **settings))
        assert torch.equal(tall, stock(pipeline, size=(32, 16), **settings))
        assert model.latent_shape() == (4, 128, 128)

    @pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "DDPMWuerstchenScheduler"])
    def test_what_is_no_noise_schedule_is_refused(self, pixart, name):
        pipeline = pipeline_of(pixart)
        pipeline.scheduler = getattr(diffusers, name)()
        with pytest.raises(ErasureError, match="needs a noise schedule") as error:
            PixArt.from_pipeline("pixart", pipeline)
        assert "\n" not in str(error.value)

    def test_sizes_are_whole_patches(self, pixart):
        with pytest.raises(ErasureError, match="multiple of 4 pixels; found 18"):
            pixart.latent_shape(18)


class TestText:
    def test_roles_of_words_end_and_padding_without_a_start(self, pixart):
        sentence = fill_template("a photo of a {}", "Zoo Cat")
        roles = pixart.encode([sentence]).roles[0].tolist()
        words = [TEMPLATE] * 4 + [CONCEPT] * 5 + [END]
        assert roles == words + [PADDING] * (20 - len(words))

    def test_prompts_are_read_in_lower_case_as_by_stock(self, pixart):
        """Also where that changes their length: a capital dotted I has two characters below."""
        pipeline = pipeline_of(pixart)
        texts = ["  A Photo OF a Cat ", "\u0130\u0130 dog"]
        states, mask, *_ = pipeline.encode_prompt(texts, False, max_sequence_length=20)
        ours = pixart.encode(texts)
        assert torch.equal(ours.tokens, states)
        assert torch.equal(ours.roles != PADDING, mask.bool())
        plain, dotted = pixart.encode(
            [fill_template("{}", "dog"), fill_template("\u0130\u0130 {}", "dog")]
        )
        (word,) = plain.ids[plain.positions(CONCEPT)]
        assert dotted.ids[dotted.positions(CONCEPT)].tolist() == [word]

    def test_padding_is_read_by_no_layer(self, pixart):
        conditioning = pixart.encode(["a cat"])
        padding = conditioning.positions(PADDING).unsqueeze(2)
        x = pixart.noise([0])
        t = torch.tensor(500.0)
        before = pixart.denoise(x, t, conditioning)
        for where, same in ((padding, True), (~padding, False)):
            other = conditioning.with_tokens(conditioning.tokens + where)
            assert torch.equal(pixart.denoise(x, t, other), before) is same

    def test_attention_maps_are_those_of_the_prediction(self, pixart):
        conditioning = pixart.encode(PROMPTS)
        x = pixart.noise(SEEDS)
        t = torch.tensor([300.0, 900.0])
        with pixart.attention() as maps:
            recorded = pixart.denoise(x, t, conditioning)
        assert torch.allclose(recorded, pixart.denoise(x, t, conditioning), atol=1e-5)
        assert [m.shape for m in maps.values()] == [(2, 2, 16, 20)] * 2
        outside = conditioning.positions(PADDING)[:, None, None].expand(2, 2, 16, 20)
        assert all(m[outside].eq(0).all() for m in maps.values())


def test_parts_of_the_denoiser(pixart):
    parts = {part: set(pixart.denoiser_parameters(part)) for part in ("x", "x-strict", "u", "all")}
    blocks = [f"denoiser.transformer_blocks.{i}.attn2" for i in (0, 1)]
    layers = {f"{block}.{name}" for block in blocks for name in ("to_k", "to_v")}
    both = ("weight", "bias")
    assert set(pixart.text_layers()) == layers
    assert set(pixart.value_layers()) == {name for name in layers if name.endswith("to_v")}
    assert parts["x-strict"] == {f"{layer}.{name}" for layer in layers for name in both}
    assert set(pixart.denoiser_parameters("entry")) == parts["x-strict"]
    queries = {f"{b}.{n}.{p}" for b in blocks for n in ("to_q", "to_out.0") for p in both}
    assert parts["x"] == parts["x-strict"] | queries
    assert parts["x"].isdisjoint(parts["u"])
    assert parts["x"] | parts["u"] == parts["all"]
    assert set(pixart.adaptable("text attention")) == set(blocks)
    assert len(pixart.adaptable("transformer layers")) == 2 * (4 + 4 + 2)


class TestFolder:
    @pytest.mark.parametrize("kind", [PixArt, PixArtAlpha])
    def test_it_is_read_back(self, pixart, kind, tmp_path):
        pipeline_of(pixart, kind.pipeline_class).save_pretrained(tmp_path)
        loaded = load_backbone(str(tmp_path))
        assert type(loaded) is kind
        assert loaded.fingerprint() == pixart.fingerprint() != TinyPixArt(seed=1).fingerprint()
        ours, theirs = (
            sample_images(m, PROMPTS, SEEDS, steps=2, guidance=3.0) for m in (loaded, pixart)
        )
        assert torch.allclose(ours, theirs, atol=1e-5)

    def test_under_the_transformer_s_former_name(self, pixart, tmp_path):
        """As published: diffusers has renamed the class, and the files have not."""
        pixart.save(tmp_path)
        for file in (tmp_path / "model_index.json", tmp_path / "transformer" / "config.json"):
            text = file.read_text()
            assert "PixArtTransformer2DModel" in text
            file.write_text(text.replace("PixArtTransformer2DModel", "Transformer2DModel"))
        assert load_backbone(str(tmp_path)).fingerprint() == pixart.fingerprint()

    @pytest.mark.parametrize(
        ("part", "key", "value", "words"),
        [
            ("transformer", "in_channels", 9, "needs as many in_channels as the vae"),
            ("transformer", "out_channels", 12, "needs as many out_channels as the vae"),
            ("transformer", "caption_channels", 99, r"width 99 \(caption_channels\); found"),
            ("scheduler", "prediction_type", "sample", "predicts epsilon or v_prediction"),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(self, pixart, tmp_path, part, key, value, words):
        pixart.save(tmp_path)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        file = tmp_path / part / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        with pytest.raises(ErasureError, match=words):
            load_backbone(str(tmp_path))


class BiasedTargets(Regression):
    """The fault of UCE for FLUX (unified-concept-editing@28c81ed): targets with the bias.

    It minimises ``sum_i w_i |W k_i - (W* a_i + b)|^2 + sum_j w_j |W p_j - (W* p_j + b)|^2``.
    """

    biases: list = []  # noqa: RUF012

    def __init__(self, gram):
        super().__init__(gram)
        self.total = self.gram[0] * 0

    def redirect(self, sources, images, weight=1.0):
        super().redirect(sources, images, weight)
        self.total += weight * sources.double().sum(dim=0)

    def keep(self, rows, weight=1.0):
        super().keep(rows, weight)
        self.total += weight * rows.double().sum(dim=0)

    def solve(self, weights, ridge):
        shift = self._times_inverse(self.total[None], ridge)[0].float()
        solved = super().solve(weights, ridge)
        return [w + b[:, None] * shift for w, b in zip(solved, self.biases, strict=True)]


class TestClosedForms:
    def erased(self, method=UCE, **arguments):
        """A method's edit of keys and values that have biases far from zero."""
        model = TinyPixArt()
        for layer in model.text_layers().values():
            layer.bias.data.add_(torch.linspace(3, 5, len(layer.bias)))
        concepts = [Concept("cat", "dog")]
        return quick_fit(method(concepts=concepts, backbone=model, **arguments), 1)

    def errors(self, module):
        """How far keys and values are: the concept's from its anchor's, and a retained word's."""
        original = module.original
        (source,) = original.text_inputs()
        batch = PromptBatch(["{}", "{}"], ["cat", "tree"], ["dog", "tree"])
        words, targets = last_token_states(original, batch, source)
        (edited,) = module.backbone.text_inputs()
        off = [
            (new(words) - old(targets)).abs().amax(dim=1)
            for new, old in zip(edited.layers.values(), source.layers.values(), strict=True)
        ]
        return torch.stack(off).amax(dim=0).tolist()

    def test_the_concept_s_keys_and_values_become_the_anchor_s_and_a_retained_word_s_stay(self):
        module = self.erased(preserve=["tree"], ridge=1e-6)
        assert max(self.errors(module)) < 1e-3
        layers = module.backbone.text_layers()
        for name, layer in module.original.text_layers().items():
            assert torch.equal(layers[name].bias, layer.bias)
            assert not torch.equal(layers[name].weight, layer.weight)

    def test_the_comparison_fails_with_targets_that_have_the_bias_twice(self, monkeypatch):
        layers = self.erased().original.text_layers().values()
        monkeypatch.setattr(BiasedTargets, "biases", [layer.bias for layer in layers])
        monkeypatch.setattr(text_regressions, "Regression", BiasedTargets)
        concept, retained = self.errors(self.erased(preserve=["tree"], ridge=1e-6))
        assert concept > 2
        assert retained > 2

    def test_inputs_are_captions_as_the_blocks_read_them(self, pixart):
        (source,) = pixart.text_inputs()
        conditioning = pixart.encode(PROMPTS)
        seen = []
        hook = pixart.denoiser.transformer_blocks[1].attn2.to_k.register_forward_hook(
            lambda _, inputs, __: seen.append(inputs[0])
        )
        pixart.denoise(pixart.noise(SEEDS), torch.tensor(500.0), conditioning)
        hook.remove()
        read = source.read(conditioning)
        rows = source.rows(conditioning)
        assert torch.allclose(rows[read], seen[0][read], atol=1e-6)
        assert not rows[~read].any()
        assert torch.equal(read, conditioning.roles != PADDING)
        assert not rows.requires_grad

    def test_a_retained_prompt_s_weight_is_shared_by_the_tokens_that_are_read(self, pixart):
        (source,) = pixart.text_inputs()
        conditioning = pixart.encode(["a tree"])
        rows = source.rows(conditioning)[source.read(conditioning)].double()
        assert len(rows) == 3  # two words and the end
        gram = mean_input_gram(pixart, ["a tree"], source)
        assert torch.allclose(gram, rows.mT @ rows / 3)

    def test_no_state_is_redirected_to_padding(self):
        """Where a name has more tokens than its anchor, the rest of it has no counterpart."""
        module = RECE(concepts=[Concept("zebra", "dog")], backbone=TinyPixArt())
        module.configure_model()
        (source,) = module.original.text_inputs()
        batch = PromptBatch(["{}"], ["zebra"], ["dog"])
        words, targets = last_token_states(module.original, batch, source, tail=True)
        assert len(words) == 2  # the last token and the end
        assert words.any(dim=1).all()
        assert targets.any(dim=1).all()


def test_every_method_suits_it_but_the_one_of_clips_states():
    needs = {name: load_offer(find_offer(METHOD, name)).needs for name in METHODS}
    unsuited = [name for name in METHODS if not needs[name] <= TinyPixArt.capabilities]
    assert unsuited == ["SAFREE"]


def test_a_bank_s_early_and_late_steps_keep_the_promises():
    """The rest of every method's contract is checked by its own tests."""
    latents = TrajectoryBank(trajectories=2, steps=3)
    settings = {"thorough": False, "world": None, "maps": 1, "latents": latents}
    check_method(ANT, families=[TinyPixArt], lr=1e-2, **settings)


def predictions(pipeline):
    """Of a prompt with the concept, and of one that is retained."""
    model = PixArt.from_pipeline("pixart", pipeline)
    x = model.noise(range(4))
    t = torch.tensor([100.0, 300.0, 600.0, 900.0])
    with torch.no_grad():
        return [model.denoise(x, t, model.encode([w] * 4)) for w in ("a cat", "a tree")]


def test_a_pipeline_forgets_a_word_and_has_it_back():
    pipeline = pipeline_of(TinyPixArt())
    before = predictions(pipeline)
    settings = {"ridge": 0.01, "retain": ["a tree"]}
    edit = erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False, **settings)
    pairs = zip(predictions(pipeline), before, strict=True)
    concept, retained = ((after - earlier).norm().item() for after, earlier in pairs)
    assert concept > 0.3
    assert retained < 0.2 * concept
    edit.remove()
    again = zip(predictions(pipeline), before, strict=True)
    assert all(torch.equal(after, earlier) for after, earlier in again)
