"""Planned and measured peaks of `erasure fit`: ``python benchmarks/memory.py [--full]
[--accelerator cuda]``.

Each row is one `erasure fit` in a process of its own, and one `erasure plan` of the same arguments.
*Tensors* is the most that tensors held at once in the real fit once the model was loaded, every
operation's output counted until it was let go of; *process* is what the process held at most beyond
what it held before the model was loaded (resident memory, read every two milliseconds), in which
kernels' scratch, the allocator's slack and whatever Python loads meanwhile are
too: tens of MiB, which drown the small model and nothing else. *Off by* is the plan against the
    tensors, then the
process. *To the least* is the peak of tensors over one model, in the precision of its base, and a
step's activations. On a GPU *tensors* is the most that CUDA's allocator had given out, and
*process* the most that it had reserved. ``--full`` adds a random model of the size of Stable
Diffusion 1.5 (860 M in its UNet, pictures of 256 pixels), built once in ``--folder``; that takes
minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

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
    ledger.restart()
    ledger.hold([*module.parameters(), *module.buffers()])

ErasureModule.configure_model, ledger = configured, MemoryTracker()
before = most = held()
threading.Thread(target=watch, daemon=True).start()
with ledger:
    code = main.main(["fit", *sys.argv[1:]])
print("PEAK", ledger.peak, most - before)
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
    "--measure",
    "false",
    "--trainer.max_steps",
    "3",
    "--trainer.max_epochs=-1",
    "--trainer.log_every_n_steps=1",
]
THRIFTY = ["--model.checkpointing", "true"]
COARSE = ["--model.base", "bfloat16"]
ALL = ["--model.train", "all"]
CONFIGS = (
    *(
        "all-but-one",
        "sage",
        "sdd",
        "ca",
        "spm",
        "mace",
        "realera",
        "receler",
        "advunlearn",
        "ant",
        "salun",
    ),
    *("uce", "rece", "realera-closed-form"),
)
WORLD = {
    "ESD": ["--config", "esd.yaml"],
    "ESD, checkpointing": ["--config", "esd.yaml", *THRIFTY],
    "ESD, bfloat16 base": ["--config", "esd.yaml", *COARSE],
    **{name: ["--config", f"{name}.yaml"] for name in CONFIGS},
}


def full(folder: Path, accelerator: str) -> dict[str, list[str]]:
    """Rows on the large model."""
    split = ["--trainer.strategy", "fsdp2", "--trainer.devices", "1"]
    told = [
        "--model.concepts",
        "[{name: cat, anchor: dog}]",
        "--model.backbone",
        str(folder),
        "--data.batch_size",
        "2",
    ]
    esd = ["--model", "ESD", *told]
    return {
        "ESD": esd,
        "ESD, bfloat16 base": [*esd, *COARSE],
        "ESD, bfloat16 base, checkpointing": [*esd, *COARSE, *THRIFTY],
        "ESD, bfloat16 base, all weights": [*esd, *COARSE, *ALL],
        "SAGE, bfloat16 base": ["--model", "SAGE", *told, *COARSE],
        # On the CPU an account of tensors cannot see that FSDP2 empties the storage of what it has
        # gathered.
        **({"ESD, fsdp2 on one device": [*esd, *split]} if accelerator == "cuda" else {}),
    }


def build(folder: Path) -> None:
    """Write a pipeline of random weights, as large as Stable Diffusion 1.5 at 256 pixels."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    from erasure_lightning.backbones.tiny import TinyBackbone

    tokenizer = TinyBackbone().towers[0].tokenizer
    tokenizer.model_max_length = 77
    torch.set_default_dtype(torch.bfloat16)
    blocks = {f"{way}_block_types": (f"{way.title()}{kind}Block2D",) * 4
              for way, kind in (("down", "Encoder"), ("up", "Decoder"))}  # fmt: skip
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos")}
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, projection_dim=768, pad_token_id=ends["eos_token_id"], **ends,
    )  # fmt: skip
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(sample_size=32, cross_attention_dim=768),
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=256, **blocks
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def output(*command: str) -> str:
    """What a command prints; all of it if it fails."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def row(name: str, given: list[str], accelerator: str) -> str:
    """Plan and fit."""
    given = [*given, *SMALL, "--trainer.accelerator", accelerator]
    planned = json.loads(output("-m", "erasure_lightning", "plan", *given, "--json"))
    with tempfile.TemporaryDirectory() as folder:
        fitted = output("-c", CHILDREN[accelerator], *given, "--run_dir", f"{folder}/run")
    tensors, process = map(int, fitted.split("PEAK")[1].split())
    model, peak = (
        planned["held"]["weights"]["frozen"] + planned["held"]["weights"]["edit"],
        planned["peak"],
    )
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
    parser.add_argument("--accelerator", choices=CHILDREN, default="cpu")
    parser.add_argument("--rows", nargs="+", help="only these")
    args = parser.parse_args()
    if args.full and not args.folder.exists():
        build(args.folder)
    tables = {"emoji world": WORLD} | (
        {"SD 1.5-sized": full(args.folder, args.accelerator)} if args.full else {}
    )
    columns = [
        "planned, GiB",
        "tensors",
        "process",
        "off by",
        "",
        "model",
        "to the least",
        "most when",
    ]
    for where, rows in tables.items():
        print(head([where, *columns]), flush=True)
        for name, given in rows.items():
            if not args.rows or name in args.rows:
                print(row(name, given, args.accelerator), flush=True)
        print()


if __name__ == "__main__":
    main()
