"""Every recipe is valid for its method and family: it is parsed, and trains a tiny model."""

import re
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import pytest
from lightning.pytorch.cli import LightningArgumentParser
from published_variants import VARIANTS
from trivial import quiet_trainer

from erasure_lightning.api.configs import (
    RECIPES,
    SHIPPED,
    dump_yaml,
    find_config,
    load_yaml,
    shipped_configs,
)
from erasure_lightning.api.recipe import read_recipes
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinySD3, TinyXL
from erasure_lightning.callbacks.interrupt import LastCheckpoint
from erasure_lightning.cli.main import main
from erasure_lightning.cli.plan import Planner
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import METHODS
from erasure_lightning.registry import METHOD, find_offer
from erasure_lightning.training.gradient import GradientErasure


class Published(NamedTuple):
    """A published model, and a tiny one of its family."""

    hub_id: str
    tiny: type


PUBLISHED = {
    "sd15": Published("stable-diffusion-v1-5/stable-diffusion-v1-5", TinyBackbone),
    "sdxl": Published("stabilityai/stable-diffusion-xl-base-1.0", TinyXL),
    "sd35": Published("stabilityai/stable-diffusion-3.5-medium", TinySD3),
    "flux": Published("black-forest-labs/FLUX.1-dev", TinyFlux),
}

#: Of every family the recipes that are found by name, plugins' too.
FOUND = {
    f"{family}/{name}": path
    for family in RECIPES
    for name, path in sorted(shipped_configs(family).items())
}

#: Counts that cost much, and what is enough to see whether a recipe trains.
FEW = {
    "trajectories": 2, "steps": 2, "images": 2, "remaining": 2, "maps": 1, "attack_steps": 1,
    "inversion_steps": 1, "rollout_steps": 2,
}  # fmt: skip

every_recipe = pytest.mark.parametrize("name", FOUND)


def read(name):
    return load_yaml(FOUND[name].read_text(encoding="utf-8"))


def method_of(name):
    return resolve_name(find_offer(METHOD, read(name)["model"]["class_path"]).class_path)


@pytest.fixture(scope="module")
def parser() -> LightningArgumentParser:
    """The parser of a fit; to build it costs as much as to parse every recipe."""
    config = str(SHIPPED / "uce.yaml")
    return Planner(
        ["--config", config, "--model.backbone", "TinyBackbone"], LastCheckpoint()
    ).parser


@pytest.fixture
def build(parser):
    """Parses a config's content as the command line does, and builds what it names."""

    def built(content):
        return parser.instantiate_classes(parser.parse_string(dump_yaml(content)))

    return built


def cheap(content, backbone):
    """A recipe for a tiny model, of concepts that are tokens of its tokenizers."""
    changed = _with_few(content)
    arguments = changed["model"]["init_args"]
    if changed["model"]["class_path"] != "ESD":  # slow on a CPU; one method a family shows it
        arguments.pop("base_dtype", None)
        arguments.pop("checkpointing", None)
    arguments.pop("image_size", None)
    if "retain" in arguments:
        arguments["retain"] = ["tree", "car"]
    has_anchor = "anchor" in arguments["concepts"][0]
    arguments["concepts"] = [{"name": "cat"} | ({"anchor": "dog"} if has_anchor else {})]
    arguments["backbone"] = backbone
    if arguments.get("optimizer") == "adam8bit":  # bitsandbytes is for CUDA
        arguments["optimizer"] = "adam"
    if "templates" in changed.get("data", {}):
        changed["data"]["templates"] = ["{}"]
    return changed


def _with_few(value):
    if isinstance(value, list):
        return [_with_few(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: min(v, FEW[k]) if k in FEW else _with_few(v) for k, v in value.items()}


def test_every_method_has_a_recipe_for_each_family_that_it_serves():
    by_family = {f: {method_of(n) for n in FOUND if n.startswith(f"{f}/")} for f in RECIPES}
    for family, (_, tiny) in PUBLISHED.items():
        ours = {method for method in by_family[family] if method.__name__ in METHODS}
        assert ours == {
            method
            for method in (resolve_name(find_offer(METHOD, name).class_path) for name in METHODS)
            if method.needs <= tiny.capabilities
        }
    assert by_family["flux"] < by_family["sd15"]  # the control: not every method serves FLUX


@every_recipe
def test_a_recipe_is_valid_as_it_is(name, build):
    content = read(name)
    built = build(content)
    assert content["model"]["init_args"]["backbone"] == PUBLISHED[name.partition("/")[0]].hub_id
    assert type(built.model) is method_of(name)
    is_gradient = isinstance(built.model, GradientErasure)
    limits = {key: content["trainer"].get(key) for key in ("max_steps", "max_epochs")}
    closed = {"max_steps": 1, "max_epochs": None}
    assert limits == ({"max_steps": -1, "max_epochs": 1} if is_gradient else closed)
    assert ("steps_per_concept" in content.get("data", {})) == is_gradient


@every_recipe
def test_erase_reads_a_recipe_as_the_command_line_does(name, build):
    content = read(name)
    built = build(content)
    (recipe,) = read_recipes(name)
    assert recipe.method is type(built.model)
    model = {"concepts": built.model.concepts, "backbone": TinyBackbone()}
    module = recipe.method(**model, **recipe.arguments)
    assert state(module) == state(built.model)
    for key in ("latents", "adversary"):
        assert state(getattr(module, key, None)) == state(getattr(built.model, key, None)), key
    for key in ("batch_size", "templates", "steps_per_concept"):
        assert getattr(recipe, key) == getattr(built.data, key), key
    assert [*map(state, recipe.retention)] == [*map(state, built.trainer.callbacks or [])]
    assert recipe.trainer.get("gradient_clip_val") == built.trainer.gradient_clip_val
    assert (recipe.max_steps or -1) == built.trainer.max_steps


def state(value):
    """The class and the plain attributes of an object."""
    plain = (str, int, float, list, type(None))
    attributes = vars(value) if hasattr(value, "__dict__") else {}
    named = {k: v for k, v in attributes.items() if isinstance(v, plain)}
    return type(value), named


@every_recipe
def test_a_recipe_trains(name, build, folder):
    check_trains(build(cheap(read(name), PUBLISHED[name.partition("/")[0]].tiny.__name__)))


def check_trains(built):
    """A fit changes a weight, or adds adapters."""
    quiet_trainer(
        fast_dev_run=2,
        gradient_clip_val=built.trainer.gradient_clip_val,
        callbacks=built.trainer.callbacks or [],
    ).fit(built.model, built.data)
    edit, original = built.model.edit_values(), dict(built.model.original.named_parameters())
    assert edit
    assert any(n not in original or not v.equal(original[n].float()) for n, v in edit.items())


def test_a_recipe_for_another_family_is_refused_before_the_model_is_read(tmp_path, capsys):
    TinyBackbone().save(tmp_path / "sd")
    (tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    here = ["--model.backbone", str(tmp_path / "sd"), "--run_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", "flux/uce.yaml", *here]) == 2
    error = capsys.readouterr().err
    assert "A recipe for FLUX.1 needs such a model; found Stable Diffusion 1.x" in error
    assert not (tmp_path / "run").exists()
    copy = tmp_path / "own.yaml"
    copy.write_text(find_config("flux/uce.yaml").read_text())
    for other in ("sd15/uce.yaml", str(copy)):  # the controls: they are refused for the weights
        assert main(["fit", "--config", other, *here]) == 2
        assert "A recipe for" not in capsys.readouterr().err


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    """A family of recipes, and the folder of another of its published models."""
    folder = tmp_path_factory.mktemp(request.param)
    VARIANTS[request.param].build().save_pretrained(folder)
    return request.param, folder


@pytest.mark.parametrize("method", ["esd", "uce", "all-but-one", "sage"])
def test_a_recipe_trains_other_published_models_of_its_family(variant, method, build, folder):
    family, place = variant
    content = cheap(read(f"{family}/{method}.yaml"), str(place))
    content["model"]["init_args"]["image_size"] = 16
    check_trains(build(content))


def test_the_documented_command_for_another_model_is_valid(variant, folder):
    family, place = variant
    (command,) = [line for line in page("families").splitlines() if line.startswith("erasure")
                  and VARIANTS[family].hub_id in line]  # fmt: skip
    words = command.replace(VARIANTS[family].hub_id, str(place)).split()[1:]
    assert words[2] == f"{family}/esd.yaml"
    tiny = ["--model.concepts", "[{name: cat}]", "--model.latents.trajectories", "1"]
    tiny += ["--model.base_dtype", "float32", "--model.checkpointing", "false"]
    tiny += ["--model.image_size", "16", "--model.latents.steps", "2"]
    assert main([*words, *tiny, "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu"]) == 0


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("sd15/esd.yaml", ("model", "init_args")),
        ("flux/esd.yaml", ("model", "init_args", "latents", "init_args")),
        ("sdxl/uce.yaml", ("data",)),
        ("sd35/advunlearn.yaml", ("trainer", "callbacks", 0, "init_args")),
    ],
)
def test_a_wrong_key_is_found(name, place, build):
    content = read(name)
    part = content
    for key in place:
        part = part[key]
    part["stepz"] = 4
    with pytest.raises(ErasureError, match="stepz"):
        build(content)


@every_recipe
def test_every_number_of_a_recipe_says_where_it_comes_from(name):
    """Beside it; but for what every run has, or only our own code."""
    own = {"seeds", "refresh", "max_steps", "max_epochs"}
    lines = [line for line in text(name).splitlines() if re.match(r" +\w+: [\d.]", line)]
    silent = [line.split(":")[0].strip() for line in lines if "  # " not in line]
    assert {*silent} <= own
    assert lines  # the control
    assert text(name).startswith("# ")


def text(name):
    return FOUND[name].read_text(encoding="utf-8")


def test_recipes_are_found_by_family_and_name():
    assert find_config("sdxl/esd.yaml") == find_config("sdxl/esd") == FOUND["sdxl/esd.yaml"]
    message = r"unknown config 'sdxl/uces'.* Did you mean 'sdxl/uce'\?"
    with pytest.raises(ErasureError, match=message):
        find_config("sdxl/uces")
    assert find_config("esd.yaml") == SHIPPED / "esd.yaml"  # the control


def test_documentation_lists_every_recipe():
    missing = [name for name in FOUND if name.removesuffix(".yaml") not in page("recipes")]
    assert not missing


def page(name):
    return Path(__file__).parents[2].joinpath("docs", f"{name}.md").read_text(encoding="utf-8")


def test_data_of_a_recipe_is_that_of_any_run(build):
    assert isinstance(build(read("sd15/uce.yaml")).data, PromptData)
