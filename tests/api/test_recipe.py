"""`erase` by a config."""

import pytest
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor

from erasure_lightning.api.configs import find_config
from erasure_lightning.api.erase import erase
from erasure_lightning.api.recipe import read_recipes
from erasure_lightning.api.trainer import make_trainer
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinyPixArt, TinyXL
from erasure_lightning.cli.main import main
from erasure_lightning.edits.applied import load_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.retention.local_noise import LocalNoisePreservation

ESD_CONFIG = {
    "model": {
        "class_path": "esd",
        "init_args": {
            "backbone": "none/such",
            "concepts": [{"name": "ship"}],
            "lr": 1e-3,
            "rank": 2,
            "latents": "PureNoise",
        },
    },
    "data": {"steps_per_concept": 2, "batch_size": 3, "templates": ["{} here"]},
    "trainer": {
        "max_steps": -1,
        "max_epochs": 1,
        "gradient_clip_val": 0.5,
        "callbacks": [
            {"class_path": "LocalNoisePreservation", "init_args": {"weight": 0.5}},
            {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
        ],
    },
}


@pytest.fixture
def write(tmp_path):
    """Writes a config, with changes, and returns its path."""

    def written(content, name="own.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return path

    return written


@pytest.fixture
def trainings(monkeypatch):
    """Arguments of the trainer and prompts a step of each fit."""
    trainings = []

    def recorded(function, **arguments):
        trainings.append(arguments)
        return make_trainer(function, **arguments)

    monkeypatch.setattr("erasure_lightning.api.erase.make_trainer", recorded)
    return trainings


@pytest.fixture
def prompts(monkeypatch):
    """Concept prompts of each step."""
    prompts = []
    noisy_batch = ESD.noisy_batch

    def recorded(self, sentences):
        prompts.append(sentences.prompts)
        return noisy_batch(self, sentences)

    monkeypatch.setattr(ESD, "noisy_batch", recorded)
    return prompts


def erased(method, **arguments):
    pipeline = TinyBackbone().to_pipeline()
    return erase(pipeline, ["cat", "dog"], method, progress_bar=False, **arguments)


def texts(prompts):
    return [[prompt.text for prompt in batch] for batch in prompts]


def test_a_config_has_the_method_its_arguments_and_how_it_is_trained(write, trainings, prompts):
    path = write(ESD_CONFIG)
    (recipe,) = read_recipes(path)
    assert recipe.method is ESD
    assert recipe.arguments.keys() == {"lr", "rank", "latents"}
    metadata = erased(path).metadata
    assert metadata["method"] == "erasure_lightning.methods.esd.ESD"
    assert metadata["arguments"]["lr"] == 1e-3
    assert metadata["arguments"]["rank"] == 2
    assert [concept["name"] for concept in metadata["concepts"]] == ["cat", "dog"]
    (training,) = trainings
    assert training["max_steps"] == 4  # two for each concept
    assert training["gradient_clip_val"] == 0.5
    assert type(training["callbacks"][0]) is LocalNoisePreservation
    assert not any(isinstance(c, LearningRateMonitor) for c in training["callbacks"])
    assert {text for batch in texts(prompts) for text in batch} == {"cat here", "dog here"}
    assert [len(batch) for batch in prompts] == [3] * 4


def test_the_edit_is_that_of_the_command_line(write, tmp_path):
    path = write(ESD_CONFIG | {"trainer": {"max_steps": -1, "max_epochs": 1}})
    model = str(tmp_path / "model")
    TinyBackbone().save(model)
    concepts = ["--model.concepts", "[{name: cat}, {name: dog}]", "--model.backbone", model]
    run = str(tmp_path / "run")
    fit = ["fit", "--config", str(path), *concepts, "--run_dir", run, "--measure", "false"]
    assert main([*fit, "--trainer.accelerator", "cpu"]) == 0
    edit = erase(load_backbone(model).to_pipeline(), ["cat", "dog"], path, progress_bar=False)
    assert all(value.equal(edit.tensors[name]) for name, value in load_edit(run).tensors.items())


def test_arguments_of_the_call_go_before_those_of_the_config(write, trainings, prompts):
    path = str(write(ESD_CONFIG))
    edit = erased(path, lr=2e-3, steps=1, templates=["a {}"], batch_size=1, retention=[])
    assert edit.metadata["arguments"]["lr"] == 2e-3
    assert edit.metadata["arguments"]["rank"] == 2
    assert trainings[0]["max_steps"] == 1
    assert not any(isinstance(c, LocalNoisePreservation) for c in trainings[0]["callbacks"])
    assert texts(prompts) in ([["a cat"]], [["a dog"]])


def test_steps_are_those_of_the_command_line(write):
    def steps(trainer, data):
        (recipe,) = read_recipes(write(ESD_CONFIG | {"trainer": trainer, "data": data}))
        return recipe.steps(2)

    each = {"steps_per_concept": 5}
    assert steps({"max_steps": -1}, each) == 10
    assert steps({"max_steps": 7}, each) == 7
    assert steps({"max_steps": 7}, {}) == 7
    assert steps({"max_steps": -1, "accumulate_grad_batches": 4}, each) == 3
    assert steps({}, {}) is None


def test_a_config_without_callbacks_has_none_and_names_are_in_any_case(write):
    trainer = {"callbacks": ["localnoisepreservation"]}
    (recipe,) = read_recipes(write(ESD_CONFIG | {"trainer": trainer}))
    assert [type(callback) for callback in recipe.retention] == [LocalNoisePreservation]
    sage = {"model": {"class_path": "SAGE", "init_args": {"check_steps": 0}}, "data": {}}
    (recipe,) = read_recipes(write(sage))
    assert SAGE.default_retention  # the control
    assert recipe.retention == []


def test_prompts_to_retain_are_retained_where_a_config_has_no_callback(write, trainings):
    erased(write(ESD_CONFIG | {"trainer": {}}), steps=1, retain=["a car"])
    callback = trainings[0]["callbacks"][0]
    assert type(callback) is LocalNoisePreservation
    assert callback.prompts == ["a car"]


def test_a_batch_of_no_prompts_is_refused(write):
    with pytest.raises(ErasureError, match="batch_size of at least 1; found 0"):
        erased(write(ESD_CONFIG), batch_size=0)


@pytest.mark.parametrize("name", ["sd15/uce.yaml", "sd15/uce"])
def test_a_shipped_recipe_is_read_by_its_name(name):
    edit = erased(name, preserve=["car"])
    assert edit.metadata["arguments"]["preserve"] == ["car"]
    assert edit.metadata["arguments"]["ridge"] == 0.5


def test_a_recipe_for_another_family_is_refused(write):
    with pytest.raises(ErasureError, match=r"for FLUX\.1 needs such .* found Stable Diffusion 1"):
        erased("flux/uce.yaml")
    copy = write(yaml.safe_load(find_config("flux/uce.yaml").read_text()))
    assert erased(copy).metadata["arguments"]["preserve"]


@pytest.mark.parametrize(
    ("model", "recipe"), [(TinyFlux, "flux/uce.yaml"), (TinyXL, "sdxl/uce.yaml")]
)
def test_a_bare_method_on_a_family_that_has_a_recipe_names_it(model, recipe):
    with pytest.warns(UserWarning, match=f"there is a recipe: .*method='{recipe}'"):
        erase(model().to_pipeline(), "ship", "UCE", progress_bar=False)


def test_the_defaults_need_no_recipe_on_their_own_family(recwarn):
    erase(TinyBackbone().to_pipeline(), "ship", "UCE", progress_bar=False)
    erase(TinyPixArt().to_pipeline(), "ship", "UCE", progress_bar=False)  # which has none
    assert not [warning for warning in recwarn if "recipe" in str(warning.message)]


def test_the_parts_of_a_config_are_added(write):
    stereo, sage = read_recipes("sage-robust.yaml")[::-1]
    assert [stereo.method.__name__, sage.method.__name__] == ["STEREO", "SAGE"]
    write(ESD_CONFIG, "one.yaml")
    part = {"name": "two", "config": {"model": {"class_path": "UCE"}}}
    config = write({"parts": [{"name": "one", "config": ESD_CONFIG}, part]})
    edit = erased(config, anchor="car")
    assert edit.metadata["method"] == "erasure_lightning.training.composition.Composition"
    part["options"] = {"model.ridge": 1}
    with pytest.raises(ErasureError, match=r"options of .*own.yaml's part two in a config"):
        erased(write({"parts": [{"name": "one", "config": ESD_CONFIG}, part]}))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": None}, "own.yaml: model needs a class_path, with init_args; found None"),
        ({"model": {"class_path": "ESDD"}}, "unknown method 'ESDD'. Did you mean "),
        (
            {"model": {"class_path": "ESD", "init_args": {"latents": "PurNoise"}}},
            "the class PurNoise cannot be imported",
        ),
        (
            {
                "model": {
                    "class_path": "ESD",
                    "init_args": {
                        "latents": {
                            "class_path": "TrajectoryBank",
                            "init_args": {"trajectory": 1},
                        }
                    },
                }
            },
            "own.yaml: TrajectoryBank has no argument 'trajectory'. Did you mean 'trajectories'",
        ),
        (
            {"model": {"class_path": "torch.nn.Linear"}},
            "model needs a method; found torch.nn.Linear",
        ),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(change, error, write):
    with pytest.raises(ErasureError) as raised:
        erased(write(ESD_CONFIG | change))
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_config_that_is_missing_or_of_something_else_is_refused(write):
    with pytest.raises(ErasureError, match=r"unknown config 'sd15/esdd.yaml'.*Did you mean"):
        erased("sd15/esdd.yaml")
    with pytest.raises(ErasureError, match=r"'concept-inversion.yaml'.*erasure attack --config"):
        erased("concept-inversion.yaml")
    with pytest.raises(ErasureError, match=r"nor ESD has an argument 'learning_rate'"):
        erased(write(ESD_CONFIG), learning_rate=1)
