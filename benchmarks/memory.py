"""Planned and measured peaks of `erasure fit`: ``python benchmarks/memory.py [--full]``.

Each row is one `erasure fit` in a process of its own, and one `erasure plan` of the same arguments.
*Tensors* is the peak of all tensors in the real fit after the model was loaded, with every
operation's output counted until it is freed; *process* is the peak of the process above its memory
before the model was loaded (resident memory, read every two milliseconds), which includes kernels'
scratch, the allocator's slack and Python's own memory: tens of MiB, which matter for the small
model alone. *Off by* is the plan relative to the tensors, then to the process. *To the least* is
the peak of tensors over one model, in the precision of its base, and a step's activations. On a GPU
(``--accelerator cuda``) *tensors* is the peak that CUDA's allocator had allocated, and *process*
the peak that it had reserved. ``--full`` adds a random model of the size of Stable Diffusion 1.5
(860 M in its UNet, images of 256 pixels), built once in ``--folder``; that takes minutes.
``--flux narrow`` adds one of FLUX.1-dev's depth at about a tenth of its width (images of 256
pixels), and ``--flux published`` one of its own width, with the recipe ``flux/esd``, for a GPU of
80 GiB (34 GB on the disk); they are built once in ``--flux-folder``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from rows import head, line

CHILD = """
import sys, threading, time
import diffusers, peft, transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from erasure_lightning.cli import main, run
from erasure_lightning.planning.memory_tracker import MemoryTracker
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.retention import local_noise

def held():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024

def watch():
    global most
    while True:
        most = max(most, held())
        time.sleep(0.002)

def configured(module, configure=ErasureModule.configure_model):
    configure(module)
    tracker.restart()
    tracker.hold([*module.parameters(), *module.buffers()])

ErasureModule.configure_model = configured
tracker = MemoryTracker()
before = most = held()
threading.Thread(target=watch, daemon=True).start()
with tracker:
    code = main.main(["fit", *sys.argv[1:]])
print("PEAK", tracker.peak, most - before)
sys.exit(code)
"""

CUDA_CHILD = """
import sys
import torch
from erasure_lightning.cli import main
code = main.main(["fit", *sys.argv[1:]])
print("PEAK", torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
sys.exit(code)
"""

CHILDREN = {"cpu": CHILD, "cuda": CUDA_CHILD}
SMALL = [
    *("--measure", "false", "--trainer.max_steps", "3"),
    *("--trainer.max_epochs=-1", "--trainer.log_every_n_steps=1"),
]
CHECKPOINTING = ["--model.checkpointing", "true"]
BFLOAT16 = ["--model.base_dtype", "bfloat16"]
INT8 = ["--model.base_dtype", "int8"]
ALL = ["--model.train", "all"]
CONFIGS = (
    *("all-but-one", "sage", "sdd", "ca", "spm", "mace", "realera", "receler", "advunlearn"),
    *("ant", "salun", "uce", "rece", "realera-closed-form"),
)
WORLD = {
    "ESD": ["--config", "esd.yaml"],
    "ESD, checkpointing": ["--config", "esd.yaml", *CHECKPOINTING],
    "ESD, bfloat16 base": ["--config", "esd.yaml", *BFLOAT16],
    **{name: ["--config", f"{name}.yaml"] for name in CONFIGS},
}


def full(folder: Path, accelerator: str) -> dict[str, list[str]]:
    """Rows on the large model."""
    split = ["--trainer.strategy", "fsdp2", "--trainer.devices", "1"]
    common = ["--model.concepts", "[{name: cat, anchor: dog}]"]
    common += ["--model.backbone", str(folder), "--data.batch_size", "2"]
    esd = ["--model", "ESD", *common]
    return {
        "ESD": esd,
        "ESD, bfloat16 base": [*esd, *BFLOAT16],
        "ESD, bfloat16 base, checkpointing": [*esd, *BFLOAT16, *CHECKPOINTING],
        "ESD, bfloat16 base, all weights": [*esd, *BFLOAT16, *ALL],
        "SAGE, bfloat16 base": ["--model", "SAGE", *common, *BFLOAT16],
        # On the CPU a tracker of tensors does not see that FSDP2 frees gathered weights.
        **({"ESD, fsdp2 on one device": [*esd, *split]} if accelerator == "cuda" else {}),
    }


def published_flux(folder: Path) -> dict[str, list[str]]:
    """The recipe on the whole FLUX."""
    recipe = ["--config", "flux/esd.yaml", "--model.backbone", str(folder)]
    bank = ["--model.latents.trajectories", "1"]
    return {"ESD, joint attention as LoRA, checkpointing": [*recipe, *bank]}


def narrow_flux(folder: Path) -> dict[str, list[str]]:
    """Rows on the narrow FLUX."""
    common = ["--model", "ESD", "--model.concepts", "[{name: cat, anchor: dog}]"]
    common += ["--model.backbone", str(folder), "--data.batch_size", "1"]
    common += ["--model.image_size", "256"]
    common += ["--model.latents", "TrajectoryBank", "--model.latents.trajectories", "1"]
    common += ["--model.latents.steps", "2", *BFLOAT16]
    lora = ["--model.rank", "4", "--model.merge", "false"]  # as in the recipe
    return {
        "ESD, text entry": [*common, "--model.train", "entry"],
        "ESD, joint attention as LoRA": [*common, *lora],
        "ESD, joint attention as LoRA, checkpointing": [*common, *lora, *CHECKPOINTING],
        "ESD, joint attention as LoRA, 8 bits": [*common, *lora, *INT8],
        "ESD, joint attention as LoRA, 8 bits, checkpointing": [
            *common,
            *lora,
            *INT8,
            *CHECKPOINTING,
        ],
        "ESD, joint attention": common,
    }


class FluxSizes(NamedTuple):
    """Sizes of a FLUX pipeline with dev's 19 and 38 blocks.

    Args:
        head: Channels of each of 24 heads.
        rope: Those of them that encode each coordinate of a position.
        clip: Width of CLIP.
        t5: Width of T5, of 24 blocks.
        t5_heads: Its heads, of 64 channels.
        t5_inner: Width between its two maps.
        vae: Channels of the autoencoder's stages.
    """

    head: int
    rope: tuple[int, int, int]
    clip: int
    t5: int
    t5_heads: int
    t5_inner: int
    vae: tuple[int, int, int, int]


FLUX = {
    "narrow": FluxSizes(12, (2, 4, 6), 96, 384, 6, 960, (32, 64, 128, 128)),
    "published": FluxSizes(128, (16, 56, 56), 768, 4096, 64, 10240, (128, 256, 512, 512)),
}


def build_flux(folder: Path, sizes: FluxSizes) -> None:
    """Write a FLUX pipeline of random weights."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    from erasure_lightning.backbones.tiny_parts import (
        random_clip,
        random_t5,
        random_vae,
        tiny_clip_tokenizer,
        tiny_t5_tokenizer,
    )

    clip, t5 = tiny_clip_tokenizer(77), tiny_t5_tokenizer(512)
    torch.set_default_dtype(torch.bfloat16)
    inner = {"vocab_size": len(t5), "d_kv": 64, "d_ff": sizes.t5_inner}
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=random_vae(sizes.vae, layers_per_block=2, latent_channels=16, shift_factor=0.1159),
        text_encoder=random_clip("CLIPTextModel", clip, width=sizes.clip, layers=12, heads=12),
        tokenizer=clip,
        text_encoder_2=random_t5(width=sizes.t5, layers=24, heads=sizes.t5_heads, **inner),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            attention_head_dim=sizes.head,
            joint_attention_dim=sizes.t5,
            pooled_projection_dim=sizes.clip,
            guidance_embeds=True,
            axes_dims_rope=sizes.rope,
        ),
    ).save_pretrained(folder)


def build(folder: Path) -> None:
    """Write a pipeline of random weights, as large as Stable Diffusion 1.5 at 256 pixels."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from erasure_lightning.backbones.tiny_parts import random_clip, random_vae, tiny_clip_tokenizer

    tokenizer = tiny_clip_tokenizer(77)
    torch.set_default_dtype(torch.bfloat16)
    sizes = {"width": 768, "layers": 12, "heads": 12, "vocab_size": 49408}
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(sample_size=32, cross_attention_dim=768),
        vae=random_vae((128, 256, 512, 512), layers_per_block=2, sample_size=256),
        text_encoder=random_clip("CLIPTextModel", tokenizer, **sizes),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def output(*command: str) -> str:
    """Output of a command; a failure ends the program with all of it."""
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout


def row(name: str, arguments: list[str], accelerator: str) -> str:
    """The row of one plan and one fit."""
    arguments = [*arguments, *SMALL, "--trainer.accelerator", accelerator]
    planned = json.loads(output("-m", "erasure_lightning", "plan", *arguments, "--json"))
    with tempfile.TemporaryDirectory() as folder:
        fitted = output("-c", CHILDREN[accelerator], *arguments, "--run_dir", f"{folder}/run")
    tensors, process = map(int, fitted.split("PEAK")[1].split())
    weights = planned["held"]["weights"]
    model = weights["frozen"] + weights["edit"]
    peak = planned["peak"]
    sizes = [f"{size / 2**30:.3f}" for size in (peak, tensors, process)]
    least = tensors / (model + planned["activations"])
    shares = [f"{peak / tensors - 1:+.0%}", f"{peak / process - 1:+.0%}"]
    return line(
        [name, *sizes, *shares, f"{model / 2**30:.3f}", f"{least:.2f}", planned["peak_when"]]
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--full", action="store_true", help="on a model as large as Stable Diffusion 1.5, too"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "sd15-sized"))
    parser.add_argument("--flux", choices=FLUX, help="on a FLUX of this size, too")
    parser.add_argument("--flux-folder", type=Path, help="by default in the folder of temporaries")
    parser.add_argument("--accelerator", choices=CHILDREN, default="cpu")
    parser.add_argument("--rows", nargs="+", help="only these")
    args = parser.parse_args()
    if args.full and not args.folder.exists():
        build(args.folder)
    tables = {"emoji world": WORLD}
    if args.full:
        tables["SD 1.5-sized"] = full(args.folder, args.accelerator)
    if args.flux:
        folder = args.flux_folder or Path(tempfile.gettempdir(), f"flux-{args.flux}")
        if not folder.exists():
            build_flux(folder, FLUX[args.flux])
        rows = narrow_flux if args.flux == "narrow" else published_flux
        tables[f"FLUX.1-dev, {args.flux}"] = rows(folder)
    columns = ["planned, GiB", "tensors", "process", "off by", ""]
    columns += ["model", "to the least", "most when"]
    for where, rows in tables.items():
        print(head([where, *columns]), flush=True)
        for name, arguments in rows.items():
            if not args.rows or name in args.rows:
                print(row(name, arguments, args.accelerator), flush=True)
        print()


if __name__ == "__main__":
    main()
