"""Official code beside ours on tiny models: ``python benchmarks/official.py NAME --code FOLDER``.

FOLDER is a clone of the official repository, at the commit that ``--help`` lists. Its own functions
run on tiny random models, with equal weights and inputs; none of it is part of this repository.
Of methods that train, the loss and its gradient at one step are compared, of closed forms the
change of the weights. A difference is the norm of the difference over the norm of the official
gradient or change.
"""

import argparse
import contextlib
import importlib
import io
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from erasure_lightning_speed.null_space import centres
from erasure_lightning_speed.speed import SPEED
from rows import head, line
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import mse_loss

from erasure_lightning.api.quiet import silence
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.flux import _unpack
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinyXL
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.methods import ESD, MACE, RECE, SPM, TRCE, UCE
from erasure_lightning.training.latent_sources import NoisyBatch, Teacher

#: What is erased: a name and its anchor.
PAIRS = [("cat", "dog"), ("ship", "red car")]

#: What is retained.
RETAINED = ["tree", "a bird", "house"]


class Row(NamedTuple):
    """A comparison.

    Args:
        case: Model and options.
        quantity: What is compared.
        difference: Norm of the difference over the norm of the official.
    """

    case: str
    quantity: str
    difference: float


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm of ``theirs``, over all tensors that ``theirs`` has."""
    errors = sum(float((ours[n].double() - v.double()).square().sum()) for n, v in theirs.items())
    return (errors / sum(float(v.double().square().sum()) for v in theirs.values())) ** 0.5


def step_rows(
    case: str,
    losses: tuple[Tensor, Tensor],
    gradients: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> Iterator[Row]:
    """Compares the losses of a step, ours and the official, and their gradients."""
    ours, theirs = map(float, losses)
    yield Row(case, "loss", abs(ours - theirs) / theirs)
    yield Row(case, f"gradient of {len(expected)} tensors", difference(gradients, expected))


def named(words: list[tuple[str, str]] = PAIRS) -> list[Concept]:
    """The concepts."""
    return [Concept(name, anchor) for name, anchor in words]


def texts(unet: torch.nn.Module) -> dict[str, Tensor]:
    """Keys and values of a UNet's cross-attention, copied."""
    state = unet.state_dict().items()
    return {n: v.clone() for n, v in state if "attn2.to_k" in n or "attn2.to_v" in n}


def pipeline_of(backbone: Backbone, folder: Path) -> DiffusionPipeline:
    """A pipeline of its own, as official code loads it."""
    if not folder.exists():
        backbone.save(folder)
    return DiffusionPipeline.from_pretrained(folder)


# ------------------------------------------------------------------------------------------- ESD


def esd(code: Path, folder: Path) -> Iterator[Row]:
    """Loss and gradient of a training step (`utils/esd_trainer.py`)."""
    trainer = importlib.import_module("utils.esd_trainer")
    models = {"sd": TinyBackbone(), "sdxl": TinyXL(), "flux": TinyFlux()}
    methods = {"sd": ["esd-x", "esd-x-strict", "esd-u", "esd-all"], "flux": ["esd-x"]}
    for family, model in models.items():
        model.save(folder / family)
        for method in methods.get(family, ["esd-x", "esd-x-strict"]):
            for erase_from in (None, "dog"):
                yield from _esd_step(trainer, folder / family, family, method, erase_from)


class Step(NamedTuple):
    """A training step of the official ESD.

    Args:
        student: Weights of the student, by name in the denoiser.
        x: Latents, ``(B, C, h, w)``.
        t: Their time, ``(B,)``.
        loss: The loss, a scalar.
        gradients: Its gradients, by name in the denoiser.
    """

    student: dict[str, Tensor]
    x: Tensor
    t: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


def _esd_step(
    trainer: Any, place: Path, family: str, method: str, erase_from: str | None
) -> Iterator[Row]:
    step = _official_step(trainer, place, family, method, erase_from)
    ours = ESD(
        concepts=named([("cat", erase_from or "")]),
        backbone=str(place),
        train=method.removeprefix("esd-"),
        eta=1.5,
        erase_from="anchor" if erase_from else "concept",
    )
    ours.configure_model()
    ours.write({f"denoiser.{name}": value for name, value in step.student.items()})
    sentences = next(iter(PromptBatch.of_words("{}", ["cat"], [erase_from or ""])))
    if erase_from:  # the edited sentences are the anchor's
        sentences = sentences._replace(concepts=sentences.anchors, anchors=sentences.concepts)
    teacher = Teacher(ours.original, step.x, step.t, sentences)
    if family == "sdxl":  # ours reads zeros, as the pipeline does (docs/recipes.md)
        empty = ours.original.encode([""])
        vars(teacher)["unconditional"] = ours.original.denoise(step.x, step.t, empty)
    loss = ours.erasure_loss(NoisyBatch(step.x, step.t, sentences, teacher))
    loss.backward()
    case = f"{family}, {method}" + (f" from {erase_from}" if erase_from else "")
    gradients = {n.removeprefix("denoiser."): p.grad for n, p in ours.trainable().items()}
    yield from step_rows(case, (loss, step.loss), gradients, step.gradients)


def _official_step(
    trainer: Any, place: Path, family: str, method: str, erase_from: str | None
) -> Step:
    is_flux = family == "flux"
    config = trainer.ESDConfig(
        family=family,
        base_model_id=str(place),
        erase_concept="cat",
        erase_from=erase_from,
        train_method=method,
        iterations=1,
        lr=None,
        negative_guidance=2.5,
        num_inference_steps=4,
        guidance_scale=1.0 if is_flux else 3.0,
        inference_guidance_scale=3.5,
        batch_size=1,
        resolution=64 if is_flux else None,
        save_path="",
        device="cpu",
        torch_dtype=torch.float32,
        max_sequence_length=TinyFlux().encode(["cat"]).tokens.shape[1] if is_flux else 77,
    )
    adapter = trainer.get_adapter(family)
    pipeline = adapter.load_pipeline(config)
    prepared = adapter.create_prepared_component(pipeline, method, config)
    student = random_changes(prepared.student_params)  # unlike its teacher
    with torch.no_grad():
        for name, value in student.items():
            prepared.student_params[name].copy_(value)
    calls: list[tuple[Any, Any]] = []
    component = getattr(pipeline, adapter.component_attr)
    component.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    random.seed(3)
    context = adapter.prepare_context(pipeline, config)
    result = adapter.training_step(pipeline, prepared, context, config)
    loss = mse_loss(result.model_pred, result.target)
    loss.backward()
    arguments, options = calls[-1]
    if is_flux:
        packed = options["hidden_states"].detach()
        side = 2 * int(packed.shape[1] ** 0.5)
        x, t = _unpack(packed, side, side), 1000 * options["timestep"]
    else:
        x, t = arguments[0].detach(), arguments[1].reshape(1).float()
    gradients = {name: p.grad for name, p in prepared.student_params.items()}
    return Step(student, x, t, loss.detach(), gradients)


def random_changes(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values near a model's."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: (p + 0.05 * torch.randn(p.shape, generator=generator)).detach()
        for name, p in parameters.items()
    }


def spm(code: Path, folder: Path) -> Iterator[Row]:
    """Loss and gradient at random factors (`src/models/spm.py`, `src/configs/prompt.py`)."""
    network = importlib.import_module("src.models.spm")
    prompts = importlib.import_module("src.configs.prompt")
    unet = pipeline_of(TinyBackbone(), folder / "sd").unet.requires_grad_(False)
    adapters = network.SPMNetwork(unet, rank=1)
    adapters.load_state_dict(random_changes(dict(adapters.named_parameters())), strict=False)
    theirs = dict(adapters.named_parameters())
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
    predict = partial(_predict, unet, x, t)
    for anchors in (0, 2):
        ours = SPM(concepts=named(PAIRS[:1]), backbone=TinyBackbone(), anchors=anchors)
        ours.configure_model()
        words = [[word] for word in PAIRS[0]]
        target, neutral = map(ours.original.encode, words)
        random_states = ours.latent_anchors(target) if anchors else None
        ours.latent_anchors = lambda _, fixed=random_states: fixed  # the same for both
        with adapters:  # their multiplier is 0 outside
            latents = {"target_latents": predict(target), "anchor_latents": predict(random_states)}
        latents |= {"positive_latents": predict(target), "neutral_latents": predict(neutral)}
        latents["anchor_latents_ori"] = predict(random_states)
        settings = prompts.PromptSettings(
            target="cat", action="erase_with_la" if anchors else "erase"
        )
        loss = prompts.PromptEmbedsPair(mse_loss, *4 * [None], settings).loss(**latents)["loss"]
        adapters.zero_grad()
        loss.backward()
        ours.write({n: theirs[spm_name(n)].reshape(p.shape) for n, p in ours.trainable().items()})
        sentences = next(iter(PromptBatch.of_words("{}", *words)))._replace(indices=[0])
        own = ours.erasure_loss(
            NoisyBatch(x, t, sentences, Teacher(ours.original, x, t, sentences))
        )
        own.backward()
        gradients = {spm_name(n): p.grad for n, p in ours.trainable().items()}
        expected = {name: theirs[name].grad.reshape(g.shape) for name, g in gradients.items()}
        yield from step_rows(f"{anchors} latent anchors", (own, loss), gradients, expected)


def _predict(unet: Any, x: Tensor, t: Tensor, conditioning: Any) -> Tensor | None:
    if conditioning is None:
        return None
    count = len(conditioning.tokens)
    return unet(x.repeat(count, 1, 1, 1), t, conditioning.tokens).sample


def spm_name(name: str) -> str:
    """The official name of one of our factors, ``denoiser.LAYER.adapter.down``."""
    layer, _, factor = name.removeprefix("denoiser.").rpartition(".adapter.")
    return f"lora_unet_{layer.replace('.', '_')}.lora_{factor}.weight"


# ---------------------------------------------------------------------------------- closed forms


def uce(code: Path, folder: Path) -> Iterator[Row]:
    """The weights of whole runs (`trainscripts/uce_sd_erase.py`, `uce_flux_edit.py`)."""
    TinyBackbone().save(folder / "sd")
    flux = TinyFlux()
    for name, parameter in flux.denoiser.named_parameters():
        if name.endswith(("context_embedder.bias", "text_embedder.linear_1.bias")):
            parameter.data.zero_()  # which its solution doubles
    flux.save(folder / "flux")
    # It knows the pooled vector's entry by CLIP-L's width, and encodes 512 tokens.
    sizes = {"768": flux.denoiser.config.pooled_projection_dim}
    sizes["512"] = flux.encode(["cat"]).tokens.shape[1]
    text = (code / "trainscripts/uce_flux_edit.py").read_text()
    for number, own in sizes.items():
        text = text.replace(number, str(own))
    (folder / "uce_flux_edit.py").write_text(text)
    scripts = {"sd": code / "trainscripts/uce_sd_erase.py", "flux": folder / "uce_flux_edit.py"}
    for family, script in scripts.items():
        for preserve in ([], RETAINED):
            command = [sys.executable, str(script), "--device", "cpu", "--concept_type", "object"]
            command += ["--edit_concepts", "; ".join(name for name, _ in PAIRS)]
            command += ["--guide_concepts", "; ".join(anchor for _, anchor in PAIRS)]
            command += ["--preserve_concepts", "; ".join(preserve)] if preserve else []
            command += ["--model_id", str(folder / family)]
            command += ["--save_dir", str(folder), "--exp_name", "official"]
            subprocess.run(command, check=True, capture_output=True)
            theirs = load_file(folder / "official.safetensors")
            ours = UCE(concepts=named(), backbone=str(folder / family), preserve=preserve)
            yield changes(ours, theirs, f"{family}, {len(preserve)} preserved")


def changes(ours: Any, theirs: Mapping[str, Tensor], case: str) -> Row:
    """Compares the changes of a closed form with those of official weights."""
    if not hasattr(ours, "backbone"):
        ours.configure_model()
    own = {name.removeprefix("denoiser."): value for name, value in ours.solve().items()}
    before = ours.original.denoiser.state_dict()
    moved = {name: own[name] - before[name] for name in theirs}
    expected = {name: value - before[name] for name, value in theirs.items()}
    return Row(case, f"change of {len(theirs)} weights", difference(moved, expected))


def rece(code: Path, folder: Path) -> Iterator[Row]:
    """The weights after an epoch that follows our first edit (`train_object.py`'s two calls)."""
    edit = load("erase_methods", code / "erase_methods", "uce", {})
    needs = {"embedding2img": None, "setup_seed": None}
    embedding = load(
        "embedding_calculation", code / "utils/embedding_calculation", "close_form_emb", needs
    )
    for reg in (1e-3, 0.1):
        ours = RECE(concepts=named(), backbone=TinyBackbone(), epochs=1, regularization=reg)
        ours.configure_model()
        (source,) = ours.original.text_inputs()
        first = ours.first_edit(source)
        edited, original = (pipeline_of(TinyBackbone(), folder / "sd") for _ in range(2))
        start = {
            name.removeprefix("denoiser.") + ".weight": (layer.weight.double() @ first).float()
            for name, layer in source.layers.items()
        }
        edited.unet.load_state_dict(start, strict=False)
        states = []
        for name, anchor in PAIRS:
            _, restored = embedding.close_form_emb_regzero(
                edited, original, name, regeular_scale=reg
            )
            inputs = edited.tokenizer(anchor, padding="max_length", return_tensors="pt").input_ids
            states.append((restored[0], edited.text_encoder(inputs)[0][0]))
        olds, news = (list(each) for each in zip(*states, strict=True))
        result = edit.edit_model_adversarial(
            edited, olds, news, [""], technique="replace", erase_scale=1
        )
        yield changes(ours, texts(result.unet), f"reg {reg:g}, one epoch")


def mace(code: Path, folder: Path) -> Iterator[Row]:
    """The weights after stage 1 (`src/cfr_utils.py`)."""
    official = importlib.import_module("src.cfr_utils")
    shorter = 77 - TinyBackbone().encode(["cat"]).tokens.shape[1]
    # It counts 77 positions, of which our tiny encoder has fewer.
    official.range = lambda *ends: range(*ends[:-1], ends[-1] - (ends[-1] > 60) * shorter)
    for ridge in (1000.0, 0.1):
        ours = MACE(concepts=named(), backbone=TinyBackbone(), ridge=ridge)
        ours.prompt_templates = [
            "{}",
            "a {}",
            "the small {}",
            "a photo of a {}",
        ]  # that it can hold
        ours.configure_model()
        pipeline = pipeline_of(TinyBackbone(), folder / "sd")
        matrices, layers, originals = official.get_ca_layers(pipeline.unet)
        sentences = [ours.prompts.sentences(index) for index in range(len(PAIRS))]
        pairs = [
            {
                "old": [(template.format(name), name) for template in batch.templates],
                "new": [(template.format(anchor), anchor) for template in batch.templates],
            }
            for batch, (name, anchor) in zip(sentences, PAIRS, strict=True)
        ]
        contexts, values = official.prepare_k_v(
            pipeline.text_encoder, matrices, layers, originals, pairs, pipeline.tokenizer
        )
        # One sentence at a time: it stacks sentences of equal lengths alone.
        contexts = [[each] for several in contexts for each in several]
        values = [[each] for several in values for each in several]
        official.closed_form_refinement(matrices, contexts, values, lamb=ridge)
        ours._concept_sentences = sentences
        (source,) = ours.original.text_inputs()
        equations = ours._refinement(source, ours._retained_gram(source))
        solved = equations.solve(source.weights(), ridge)
        ours.solve = lambda source=source, solved=solved: source.named(solved)
        yield changes(ours, texts(pipeline.unet), f"stage 1, ridge {ridge:g}")


def trce(code: Path, folder: Path) -> Iterator[Row]:
    """The weights after stage 1 without captions (`src/cfr_utils.py`)."""
    last = TinyBackbone().encode(["cat"]).tokens.shape[1] - 1
    official = ModuleType("cfr_utils")  # which knows the last of 77 positions
    text = (code / "src/cfr_utils.py").read_text().replace(",76]", f",{last}]")
    exec(compile(text, "cfr_utils.py", "exec"), vars(official))
    pairs = [("cat", "dog"), ("tree", "house")]  # it counts words: each is a token
    for ridge in (1e-3, 1.0):
        ours = TRCE(concepts=named(pairs), backbone=TinyBackbone(), preserve_scale=0, ridge=ridge)
        ours.prompt_templates = ["{}", "a {}", "the small {}", "a photo of a {}"]
        ours.configure_model()
        pipeline = pipeline_of(TinyBackbone(), folder / "sd")
        matrices, layers, originals = official.get_ca_layers(pipeline.unet)
        sentences = [
            {"old": (template.format(name), name), "new": (template.format(anchor), anchor)}
            for name, anchor in pairs
            for template in ours.prompt_templates
        ]
        contexts, values, weights = official.prepare_k_v(
            pipeline.text_encoder, matrices, layers, originals, sentences, pipeline.tokenizer, "cpu"
        )
        # Its ridge is what its cache of captions has, divided by 30,000.
        grams = {}
        for number, matrix in enumerate(matrices):
            identity = 3e4 * ridge * torch.eye(matrix.weight.shape[1])
            grams[f"{number}_for_mat1"] = matrix.weight @ identity
            grams[f"{number}_for_mat2"] = identity
        official.closed_form_refinement(
            matrices,
            contexts,
            values,
            lamb=0.0,
            cache_dict=grams,
            all_weight_base=weights,
            weight_scale=[0, 1, 0, 0],
        )
        ours.solve = ours.stage_1
        yield changes(ours, texts(pipeline.unet), f"stage 1, ridge {ridge:g}")


def speed(code: Path, folder: Path) -> Iterator[Row]:
    """The weights of an edit without its random rows (`train_erase_null.py`)."""

    def clusters(X: Tensor, **_: Any) -> tuple[None, Tensor]:
        return None, centres(X.double()).float()  # its own begin at random rows

    sys.modules["kmeans_pytorch"] = SimpleNamespace(kmeans=clusters)  # type: ignore[assignment]
    sys.modules["src.utils"] = SimpleNamespace(seed_everything=None)  # type: ignore[assignment]
    official = importlib.import_module("train_erase_null")
    for scale in (1.0, 0.05):
        options = {"params": "V", "aug_num": 0, "threshold": 1.0, "disable_filter": True}
        arguments = SimpleNamespace(**options, retain_scale=scale, lamb=0.0)
        pipeline = pipeline_of(TinyBackbone(), folder / "sd")
        width = pipeline.unet.config.cross_attention_dim
        names, anchors = (list(each) for each in zip(*PAIRS, strict=True))
        theirs = official.edit_model(
            arguments, pipeline, names, anchors, RETAINED, "SPEED", emb_size=width, device="cpu"
        )
        ours = SPEED(
            concepts=named(),
            backbone=TinyBackbone(),
            retain=RETAINED,
            augment=0,
            threshold=1.0,
            retain_scale=scale,
        )
        yield changes(ours, theirs, f"no augmentation, retain scale {scale:g}")


def load(package: str, folder: Path, module: str, needs: dict[str, Any]) -> Any:
    """A module of a package whose other modules, which need much else, are not imported."""
    parent = ModuleType(package)
    parent.__path__ = [str(folder)]
    vars(parent).update(needs)
    sys.modules[package] = parent
    return importlib.import_module(f"{package}.{module}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what official code prints, its progress bars too."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


#: Comparisons, and the repository and commit of each.
COMPARISONS: dict[str, tuple[str, Callable[[Path, Path], Iterator[Row]]]] = {
    "esd": ("rohitgandikota/erasing@2ff19a1", esd),
    "spm": ("Con6924/SPM@3dd762e", spm),
    "uce": ("rohitgandikota/unified-concept-editing@28c81ed", uce),
    "rece": ("CharlesGong12/RECE@403a67f", rece),
    "mace": ("Shilin-LU/MACE@057e7a6", mace),
    "trce": ("ddgoodgood/TRCE@0da9b71", trce),
    "speed": ("Ouxiang-Li/SPEED@6d3df0c", speed),
}


def main() -> None:
    """Compare, and print a table."""
    listed = "; ".join(f"{name}: {code}" for name, (code, _) in COMPARISONS.items())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=listed)
    parser.add_argument("name", choices=COMPARISONS)
    parser.add_argument("--code", type=Path, required=True, help="a clone of the repository")
    options = parser.parse_args()
    silence()
    sys.path.insert(0, str(options.code.resolve()))
    title, compare = COMPARISONS[options.name]
    rows = [head(["official code", "case", "compared", "difference"])]
    with TemporaryDirectory() as scratch, quiet():
        compared = list(compare(options.code.resolve(), Path(scratch)))
    rows += [line([title, row.case, row.quantity, f"{row.difference:.0e}"]) for row in compared]
    print("\n".join(rows))


if __name__ == "__main__":
    main()
