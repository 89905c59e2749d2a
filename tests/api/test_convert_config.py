"""Configs of LECO and of ai-toolkit's sliders, in their own layout, as configs of ours."""

import pytest
import yaml

from erasure_lightning import convert_config
from erasure_lightning.__main__ import main
from erasure_lightning.errors import ErasureError

#: Every key of LECO's example config @ a93cb46, with values of our own.
LECO = """
prompts_file: "./prompts.yaml"
pretrained_model:
  name_or_path: "owner/model"
  v2: true
  v_pred: true
network:
  type: "lierla"
  rank: 8
  alpha: 4.0
  training_method: "full"
train:
  precision: "bfloat16"
  noise_scheduler: "ddim"
  iterations: 700
  lr: 2e-4
  optimizer: "AdamW"
  lr_scheduler: "cosine"
  max_denoising_steps: 40
save: {name: "x", path: "./output", per_steps: 200, precision: "bfloat16"}
logging: {use_wandb: false, verbose: false}
other: {use_xformers: true}
"""

PROMPT = """
- target: "van gogh"
  positive: "van gogh"
  unconditional: ""
  neutral: ""
  action: "erase"
  guidance_scale: 1.5
  resolution: 512
  dynamic_resolution: false
  batch_size: 2
"""

SLIDER = """
job: train
config:
  name: smiles
  process:
    - type: slider
      network: {type: "lierla", linear: 8, linear_alpha: 4}
      train:
        noise_scheduler: "ddpm"
        steps: 500
        lr: 2e-4
        optimizer: "adamw"
        lr_scheduler: "constant"
        max_denoising_steps: 40
        batch_size: 1
        dtype: bf16
      model: {name_or_path: "owner/model", is_v2: false, is_v_pred: false, is_xl: false}
      slider:
        resolutions: [[512, 512]]
        batch_full_slide: true
        targets:
          - {target_class: "person", positive: "smiling person", negative: "sad person"}
        anchors:
          - {prompt: "a dog", neg_prompt: "", multiplier: 1.0}
meta: {name: "[name]"}
"""


#: The least of LECO's configs.
SHORT = "prompts_file: prompts.yaml\npretrained_model: {name_or_path: owner/model}"


def leco(folder, prompts=PROMPT, config=LECO):
    (folder / "prompts.yaml").write_text(prompts)
    (folder / "config.yaml").write_text(config)
    return folder / "config.yaml"


def test_leco(tmp_path):
    text = convert_config(leco(tmp_path))
    config = yaml.safe_load(text)
    arguments = config["model"]["init_args"]
    assert arguments["backbone"] == "owner/model"
    assert arguments["concepts"] == [{"name": "van gogh"}]
    # target = n - g (p - n) = c - (1 + g)(c - n) for target c = p and empty n
    assert (arguments["eta"], arguments["erase_from"]) == (1.5, "concept")
    assert (arguments["rank"], arguments["lr"], arguments["base_dtype"]) == (8, 2e-4, "bfloat16")
    assert arguments["schedule"] == "cosine"
    assert arguments["latents"]["init_args"]["steps"] == 40
    assert config["data"]["batch_size"] == 2
    assert config["trainer"]["max_steps"] == 700
    assert "# Not as there: the adapters' scale alpha / rank, 0.5" in text


def test_leco_from_another_prompt(tmp_path):
    prompt = "- {target: a girl, positive: cat ears, neutral: a girl, guidance_scale: 2}"
    arguments = yaml.safe_load(convert_config(leco(tmp_path, prompt)))["model"]["init_args"]
    # target = e - g (p - n): ESD's with 1 + eta = g, erased from the anchor
    assert arguments["concepts"] == [{"name": "cat ears", "anchor": "a girl"}]
    assert (arguments["eta"], arguments["erase_from"]) == (1.0, "anchor")


def test_sizes_of_the_first_prompt(tmp_path):
    one = "- {target: x, resolution: 512, batch_size: 2}"
    both = f"{one}\n- {{target: y, resolution: 768}}"
    alone, text = (convert_config(leco(tmp_path, prompts)) for prompts in (one, both))
    note = "sizes and batch sizes of the other prompts: those of the first"
    assert note in text
    assert note not in alone
    assert "image_size: 512" in text


def test_a_slider(tmp_path):
    (tmp_path / "slider.yml").write_text(SLIDER)
    text = convert_config(tmp_path / "slider.yml")
    arguments = yaml.safe_load(text)["model"]["init_args"]
    assert arguments["concepts"] == [{"name": "smiling person", "anchor": "person"}]
    assert (arguments["eta"], arguments["erase_from"], arguments["image_size"]) == (
        *(0.0, "anchor", 512),
    )
    for note in ("positive side", "negative", "anchors", "alpha / rank"):
        assert note in text.partition("model:")[0]


@pytest.mark.parametrize(
    ("prompts", "config", "message"),
    [
        ("- {target: x, action: enhance}", LECO, "'x' is enhanced; only erasing"),
        ("- {target: x, positive: y}", LECO, "found positive 'y', neutral ''"),
        ("- {target: x, unconditional: z}", LECO, "unconditional 'z'"),
        ("- {target: x}\n- {target: y, guidance_scale: 2}", LECO, "erases in 2 ways"),
        ("[]", LECO, "needs a list of prompts with a target each"),
        ("- {target: x}", "prompts_file: none.yaml", "none.yaml could not be read: No such file"),
        ("- {target: x}", "prompts_file: prompts.yaml", "needs the model's name_or_path"),
        ("- {target: x}", "a: 1", "needs to be LECO's config"),
        ("- {target: x}", "config: {process: [{type: sd_trainer}]}", "one process of type slider"),
        ("- x has a target", LECO, r"values that LECO .* reads; found others \(TypeError"),
        ("- {target: x}", f"{SHORT}\nnetwork: 4", r"found others \(AttributeError"),
        ("- {target: x}", f"{SHORT}\nnetwork: {{rank: four}}", r"others \(ValueError: .*'four'"),
        ("- {target: x}", "config: {process: {type: slider}}", r"found others \(KeyError: 0\)"),
        ("- {target: x}", "a: [", r"config.yaml, line \d: no valid YAML"),
    ],
)
def test_refused_in_one_line(tmp_path, prompts, config, message):
    with pytest.raises(ErasureError, match=message) as caught:
        convert_config(leco(tmp_path, prompts, config))
    assert "\n" not in str(caught.value)


def test_the_command_writes_a_config_that_fit_reads(tmp_path, capsys):
    file = leco(tmp_path, config=LECO.replace("owner/model", str(tmp_path / "none")))
    out = tmp_path / "ours.yaml"
    assert main(["convert-config", str(file)]) == 0
    assert "class_path: ESD" in capsys.readouterr().out
    assert main(["convert-config", str(file), "--out", str(out)]) == 0
    assert main(["convert-config", str(file), "--out", str(out)]) == 2
    assert "exists already, and is not overwritten" in capsys.readouterr().err
    # all of it is understood; the model alone is missing
    assert main(["fit", "--config", str(out), "--run_dir", str(tmp_path / "run")]) == 2
    assert "was not found: it is no installed world" in capsys.readouterr().err
