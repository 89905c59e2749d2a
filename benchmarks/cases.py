"""Inputs as people bring them, and how each ends: ``python benchmarks/cases.py``.

Each row is a public report (repository#thread) on the model folder, list or option named, made anew
in a temporary folder with a tiny random Stable Diffusion. *before* is what this package did with it
at its commit 71736a2. *now* is the exit code and the last line of the command, or what a few lines
of Python print. ``--ids 6 8`` runs some of them.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from rows import head, line

from erasure_lightning import apply_edit, load_edit
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.diffusion.sampling import sample_latents

CAT = ("--model.concepts", "[{name: cat, anchor: dog}]")
SHORT = ("--trainer.max_steps", "1", "--measure", "false")
FEW = ("--data.steps", "3", "--data.others", "3", "--data.seeds", "2")


def model(name: str, **pipeline: Any) -> Path:
    """A folder with a tiny Stable Diffusion; components are replaced by name."""
    if not Path(name).exists():
        stock = TinyBackbone().to_pipeline()
        stock.register_modules(**pipeline)
        stock.save_pretrained(name)
    return Path(name)


def edit_json(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def scheduler(name: str, cls: str, **values: Any) -> Path:
    """A model's folder with another scheduler, as a config of 2022 describes it."""
    folder = model(name)
    config = {
        "_class_name": cls,
        "_diffusers_version": "0.6.0",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | values))
    edit_json(folder / "model_index.json", scheduler=["diffusers", cls])
    return folder


def erasure(*arguments: str) -> str:
    """The exit code and the last line of a command."""
    command = [sys.executable, "-m", "erasure_lightning", *arguments]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )
    lines = [text.strip() for text in result.stdout.splitlines() if text.strip()]
    return f"{result.returncode}: {lines[-1] if lines else ''}"


def fit(method: str, backbone: str, *options: str, run: str | None = None) -> str:
    """`erasure fit` of a method on a folder; the run is in the folder ``run``."""
    run = run or f"{method}-{backbone}".lower()
    concepts = () if "--model.concepts" in options else CAT
    length = () if "--trainer.max_steps" in options else SHORT
    arguments = ("--model", method, "--model.backbone", f"./{backbone}", *concepts, *options)
    return erasure("fit", *arguments, *length, "--run_dir", run)


def predict(name: str, text: str, encoding: str = "utf-8") -> str:
    """`erasure predict` of a CSV with UCE on the plain model."""
    if not Path("uce-plain").exists():
        model("plain")
        fit("UCE", "plain")
    Path(f"{name}.csv").write_text(text, encoding=encoding)
    options = ("--data.prompts", f"{name}.csv", "--data.steps", "2", "--run_dir", name)
    return erasure("predict", "--ckpt_path", "uce-plain", *options)


def concepts(name: str, text: str) -> str:
    """`erasure fit` of a list of concepts, and the names that were read."""
    model("plain")
    Path(name).write_text(text)
    end = fit("UCE", "plain", "--model.concepts", name, run=f"{name}-run")
    edit = Path(f"{name}-run", "edit.safetensors")
    if not edit.exists():
        return end
    names = load_edit(edit).concepts
    return f"{end[:1]}: erased {', '.join(names)}"


def stock_gap(name: str) -> str:
    """Largest difference of our latents from the stock pipeline's, on the same folder."""
    ours, stock = load_backbone(name), StableDiffusionPipeline.from_pretrained(name)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        "a cat",
        num_inference_steps=6,
        guidance_scale=4.0,
        latents=ours.noise([3]),
        output_type="latent",
    ).images
    gap = sample_latents(ours, ["a cat"], [3], steps=6, guidance=4.0) - theirs
    return f"latents differ from stock's by {float(gap.abs().max()):.2g}"


def stochastic() -> str:
    """A case alone and among three, with a scheduler that draws noise."""
    scheduler("euler-a", "EulerAncestralDiscreteScheduler")
    backbone = load_backbone("euler-a")
    arguments = {"steps": 6, "guidance": 4.0}
    alone = sample_latents(backbone, ["a house"], [43], **arguments)
    three = sample_latents(backbone, ["a dog", "a tree", "a house"], [41, 42, 43], **arguments)
    return f"alone and among three: differs by {float((three[2:] - alone).abs().max()):.2g}"


def pipelines() -> str:
    """The message of `save_pretrained` with a membrane, and of edits in changed pipelines."""
    model("plain")
    fit("SPM", "plain", run="spm")
    pipeline = StableDiffusionPipeline.from_pretrained("plain")
    apply_edit("spm", pipeline)
    return raised(lambda: pipeline.save_pretrained("erased"))


def changed(change: Callable[[Any], object]) -> str:
    """Applies UCE to a pipeline that was changed before."""
    predict("any", "prompt,seed\na cat,1\n")
    pipeline = StableDiffusionPipeline.from_pretrained("plain")
    change(pipeline)
    return raised(lambda: apply_edit("uce-plain", pipeline))


def raised(call: Callable[[], object]) -> str:
    """The error of a call."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "applied"


def add_lora(pipeline: Any) -> None:
    """A LoRA beside the keys and values."""
    pipeline.unet.add_adapter(LoraConfig(r=4, target_modules=["to_k", "to_v"]))


def compiled(pipeline: Any) -> None:
    """The UNet beneath `torch.compile`."""
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")


def missing_layer() -> str:
    """A text encoder whose file has one layer too few."""
    edit_json(model("missing-layer") / "text_encoder" / "config.json", num_hidden_layers=3)
    return fit("UCE", "missing-layer")


def lora_inside() -> str:
    """A UNet saved with LoRA layers in it."""
    pipeline = StableDiffusionPipeline.from_pretrained(model("plain"))
    add_lora(pipeline)
    pipeline.save_pretrained("lora-inside")
    return fit("UCE", "lora-inside")


def zero_snr(name: str, prediction: str, command: Callable[[], str]) -> str:
    """Zero terminal SNR."""
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    scheduler(name, "DDIMScheduler", prediction_type=prediction, steps_offset=1, **zero)
    Image.new("RGB", (64, 64), "orange").save("photo.png")
    return command()


def purify() -> str:
    """`erasure purify` with velocity at zero terminal SNR."""
    fit("UCE", "zero-v")
    options = ("--prompt", "a cat", "--steps", "5", "--run_dir", "purified")
    return erasure("purify", "photo.png", "--ckpt_path", "uce-zero-v", *options)


def half_variant() -> str:
    """A folder with the fp16 variant alone."""
    pipeline = StableDiffusionPipeline.from_pretrained(model("plain"), dtype=torch.float16)
    pipeline.save_pretrained("fp16", variant="fp16")
    return fit("UCE", "fp16")


def distilled() -> str:
    """A UNet that takes the guidance scale."""
    folder = model("lcm-unet")
    config = UNet2DConditionModel.load_config(folder / "unet") | {"time_cond_proj_dim": 32}
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return stock_gap("lcm-unet")


def i2p() -> str:
    """Rows like I2P's: guidance and sizes change from row to row."""
    rows = ["prompt,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height"]
    rows += [f"a house,{i},{(7, 7.5, 12)[i % 3]},16,{(16, 24)[i % 2]}" for i in range(12)]
    end = predict("i2p", "\n".join(rows))
    sizes = {Image.open(path).size for path in Path("i2p/original").glob("*.png")}
    return f"{end}; sizes {sorted(sizes)}"


def without(name: str) -> str:
    """A folder that lacks something, or has something else in its place."""
    folder = model(name)
    if name == "no-scheduler":
        shutil.rmtree(folder / "scheduler")
    elif name == "flow":
        scheduler(name, "FlowMatchEulerDiscreteScheduler")
    else:
        index = folder / "model_index.json"
        index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())
    return fit("ESD", name)


def single_file(path: str) -> str:
    """A path to a file in place of a folder."""
    shutil.copy(
        model("plain") / "unet" / "diffusion_pytorch_model.safetensors", "model.safetensors"
    )
    return fit("UCE", path, run="single")


def epochs() -> str:
    """Steps of one, two and three epochs of four."""
    model("plain")
    counts = []
    for count in ("1", "2", "3"):
        run = f"epochs-{count}"
        options = ("--trainer.max_steps", "-1", "--trainer.max_epochs", count, "--measure", "false")
        bank = ("--model.latents", "PureNoise", "--trainer.log_every_n_steps", "1")
        fit("ESD", "plain", "--data.steps_per_concept", "4", *bank, *options, run=run)
        with Path(run, "metrics.csv").open() as file:
            counts.append(str(max(int(row["step"]) for row in csv.DictReader(file)) + 1))
    return f"steps of 1, 2 and 3 epochs: {', '.join(counts)}"


def many_names() -> str:
    """Processor time of a fit's start with 1,834 names."""
    model("plain")
    Path("names.txt").write_text("\n".join(f"artist {i}" for i in range(1834)))
    start = os.times().children_user
    options = ("--model.concepts", "names.txt", "--print_config")
    fit("UCE", "plain", *options, run="names")
    return f"1,834 names are parsed and printed in {os.times().children_user - start:.1f} s"


CASES: dict[str, tuple[str, str, str, Callable[[], str]]] = {
    "1": (
        "kohya-ss/sd-scripts#953",
        "a folder with Euler's scheduler",
        "latents up to 14.6 times too large in training",
        lambda: (scheduler("euler", "EulerDiscreteScheduler"), stock_gap("euler"))[1],
    ),
    "2": (
        "huggingface/diffusers#1339",
        "a scheduler that draws noise (Euler a)",
        "another image in another batch",
        stochastic,
    ),
    "3": (
        "rohitgandikota/erasing#29",
        "SPM applied, then `save_pretrained`",
        "saved without the edit",
        pipelines,
    ),
    "4": (
        "huggingface/diffusers#1672",
        "a DDIM config of 2022",
        "images differ by .148 from stock's",
        lambda: (scheduler("old-ddim", "DDIMScheduler"), stock_gap("old-ddim"))[1],
    ),
    "5": ("Shilin-LU/MACE#30", "1,834 names in a file", "not begun after 500 s", many_names),
    "6a": (
        "unified-concept-editing data/",
        'a `.txt` with `["Monet", "Degas"]`',
        "one concept of that name",
        lambda: concepts("json.txt", '["Monet", "Degas", "Van Gogh"]'),
    ),
    "6b": (
        "unified-concept-editing data/",
        "a CSV with `;`",
        "anchors lost",
        lambda: concepts("semi.csv", "name;anchor\ncat;dog\nbird;tree\n"),
    ),
    "6c": (
        "rohitgandikota/erasing#34",
        "a `.txt` with bullets",
        'a concept "- cat"',
        lambda: concepts("bullets.txt", "- cat\n- dog\n"),
    ),
    "6d": (
        "rohitgandikota/erasing#34",
        "a `.txt` with `#` comments",
        'a concept "# to erase"',
        lambda: concepts("comment.txt", "# to erase\ncat\ndog  # pets\n"),
    ),
    "6e": (
        "rohitgandikota/erasing#34",
        "names in a row with commas",
        "one concept",
        lambda: concepts("comma.txt", "cat, dog, bird\n"),
    ),
    "7": (
        "Lightning-AI/pytorch-lightning#12956",
        "`--trainer.max_epochs` of 1, 2 and 3, `--data.steps_per_concept 4`",
        "the same edit to the bit",
        epochs,
    ),
    "8a": (
        "rohitgandikota/erasing data/",
        "a prompt with commas, without quotes",
        "generated as its first part",
        lambda: predict("unquoted", "seed,prompt\n1,a cat, in a hat\n"),
    ),
    "8b": (
        "rohitgandikota/erasing data/",
        "a row with too few cells",
        "traceback",
        lambda: predict("short", "case_number,seed,prompt\n0,1,a cat\n1,2\n"),
    ),
    "9": (
        "Ouxiang-Li/SPEED data/",
        "`Cat,dog` and `Dog,bird`: an anchor that is erased",
        "not seen",
        lambda: concepts("clash.csv", "name,anchor\nCat,dog\nDog,bird\n"),
    ),
    "10a": (
        "huggingface/diffusers#6602",
        "a config with one layer more than the weights",
        "a random layer, exit 0",
        missing_layer,
    ),
    "10b": (
        "huggingface/diffusers#3212",
        "a UNet saved with LoRA layers inside",
        "traceback",
        lora_inside,
    ),
    "11a": (
        "huggingface/diffusers#5103",
        "zero terminal SNR with epsilon",
        "black images, exit 0",
        lambda: zero_snr("zero-eps", "epsilon", lambda: fit("UCE", "zero-eps", *FEW)),
    ),
    "11b": (
        "huggingface/diffusers#4195",
        "`purify` at zero terminal SNR with velocity",
        '"nan dB", exit 0',
        lambda: zero_snr("zero-v", "v_prediction", purify),
    ),
    "12": (
        "huggingface/diffusers#5863",
        "a folder with the fp16 variant alone",
        "refused without a way out",
        half_variant,
    ),
    "13": (
        "AIrjen/OneButtonPrompt#157",
        "prompts in cp1252",
        "traceback",
        lambda: predict("latin1", "prompt,seed\na café in Paris,1\n", "cp1252"),
    ),
    "14a": (
        "huggingface/diffusers#444",
        "steps of -5 in a CSV",
        "noise is saved, exit 0",
        lambda: predict("steps", "prompt,seed,steps\na cat,1,-5\n"),
    ),
    "14b": (
        "huggingface/diffusers#612",
        "a guidance of nan in a CSV",
        "generated unguided, exit 0",
        lambda: predict("guidance", "prompt,seed,guidance\na cat,1,nan\n"),
    ),
    "14c": (
        "huggingface/diffusers#612",
        "a seed of 2^64",
        "traceback",
        lambda: predict("seed", "prompt,seed\na cat,18446744073709551616\n"),
    ),
    "15": (
        "LCM UNets in stock pipelines",
        "a UNet that takes the guidance scale",
        "latents differ from stock's by 1.9",
        distilled,
    ),
    "17": (
        "I2P in five repositories",
        "sizes and guidance change from row to row",
        "square images, a batch a row",
        i2p,
    ),
    "18a": (
        "huggingface/diffusers#3390",
        "a single file that is no whole checkpoint",
        "a wrong message",
        lambda: single_file("model.safetensors"),
    ),
    "18b": (
        "huggingface/diffusers#7936",
        "a path to model_index.json",
        "traceback",
        lambda: single_file("plain/model_index.json"),
    ),
    "20a": (
        "huggingface/diffusers#11903",
        "`apply_edit` with fused projections",
        "no effect, no error",
        lambda: changed(lambda p: p.unet.fuse_qkv_projections()),
    ),
    "20b": (
        "huggingface/diffusers#4157",
        "`apply_edit` beneath a LoRA",
        "a misleading error",
        lambda: changed(add_lora),
    ),
    "20c": (
        "huggingface/diffusers#4157",
        "`apply_edit` beneath `torch.compile`",
        "a misleading error",
        lambda: changed(compiled),
    ),
    "21a": ("own", "no scheduler folder", "traceback", lambda: without("no-scheduler")),
    "21b": ("own", "a flow-matching scheduler", "traceback", lambda: without("flow")),
    "21c": ("own", "a byte-order mark in the index", "traceback", lambda: without("bom")),
    "24": (
        "own",
        "`--trainer.log_every_n_steps 0`",
        "traceback",
        lambda: (
            model("plain"),
            fit("ESD", "plain", "--trainer.log_every_n_steps", "0", run="no-log"),
        )[1],
    ),
    "25": (
        "Ouxiang-Li/SPEED data/",
        "prompts under `id,type,text,concept,seed`",
        "refused with a misleading hint",
        lambda: predict("speed", "id,type,text,concept,seed\n1,erase,a cat,cat,1\n"),
    ),
}


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ids", nargs="+", choices=CASES, default=list(CASES), metavar="ID")
    options = parser.parse_args()
    print(head(["id", "from", "input", "before", "now"]))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in options.ids:
            source, conditions, before, run = CASES[name]
            now = run().replace("|", "\\|").replace(folder, "")
            print(line([name, source, conditions, before, now]), flush=True)


if __name__ == "__main__":
    main()
