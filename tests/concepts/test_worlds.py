"""Worlds that packages ship: what they know, and what is said when one cannot be used."""

import json
import re
import sys
from importlib.metadata import EntryPoint, EntryPoints, PathDistribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from erasure_lightning.concepts.concept import TEMPLATES_BY_KIND, Concept
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.concepts.worlds import (
    WORLDS_GROUP,
    Label,
    World,
    find_world,
    installed_world,
    worlds,
)
from erasure_lightning.errors import ErasureError

CONTENT = {
    "styles": ["ink"],
    "sampling": {"steps": 4, "guidance": 2.0, "size": 8},
    "captions": {"label": ["a {}"], "style": ["a {thing}, {style} style"]},
    "labels": [
        {"label": "dog", "group": "mammals", "tags": ["pet"]},
        {"label": "dog face", "group": "mammals", "tags": ["dog", "Pet"]},
        {"label": "tiger face", "group": "mammals", "tags": ["wild"]},
        {"label": "Christmas tree", "group": "plants", "tags": []},
    ],
}
#: A world with an autoencoder and a scorer of another's.
BASED = {
    "base": "garden",
    "sampling": {"steps": 6, "guidance": 3.0, "size": 16},
    "parts": {"pipeline/vae": "pipeline/vae", "pipeline/vae_2": "pipeline/vae", "scorer": "scorer"},
}


class Shipped:
    """Packages that exist only in memory, and the entry points they declare."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entries: list[EntryPoint] = []
        self.monkeypatch = monkeypatch
        monkeypatch.setattr("erasure_lightning.concepts.worlds.entry_points", self.select)

    def select(self, **by: Any) -> EntryPoints:
        """Stands in for ``importlib.metadata.entry_points``."""
        return EntryPoints(self.entries).select(**by)

    def add(self, root: object, name: str = "garden", module: str = "garden_package") -> None:
        """Declares a world; its module holds ``ROOT`` unless that is None."""
        package = ModuleType(module)
        if root is not None:
            package.__dict__["ROOT"] = root
        self.monkeypatch.setitem(sys.modules, module, package)
        self.entries.append(EntryPoint(name, f"{module}:ROOT", WORLDS_GROUP))

    def based(
        self, folder: Path, base: str = "garden", needs: str = "garden-package", has: str = "1.2"
    ) -> None:
        """Declares a world that shares parts with another, and the packages of both."""
        park = folder / "park"
        (park / "pipeline").mkdir(parents=True)
        (folder / "pipeline/vae").mkdir()
        (park / "labels.json").write_text(json.dumps(BASED | {"base": base}))
        self.add(park, name="park", module="park_package")
        for entry, package in zip(self.entries, ("garden_package", "park"), strict=True):
            info = folder / f"{package}.dist-info"
            info.mkdir()
            lines = (
                f"Name: {package}",
                f"Version: {has}",
                "Requires-Dist: torch",
                f"Requires-Dist: {needs}",
            )
            (info / "METADATA").write_text("\n".join(lines))
            entry._for(PathDistribution(info))


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> Shipped:
    """No world is installed until one is added."""
    return Shipped(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder in the shape of a world."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "scorer").mkdir()
    (tmp_path / "labels.json").write_text(json.dumps(CONTENT))
    return tmp_path


@pytest.fixture
def garden(shipped: Shipped, folder: Path) -> World:
    """World of four labels and one style."""
    shipped.add(folder)
    world = find_world("garden")
    assert world is not None
    return world


def test_world_is_read_from_its_folder(garden: World, folder: Path) -> None:
    assert (garden.name, garden.root, garden.package) == ("garden", folder, "garden_package")
    assert (garden.pipeline, garden.scorer) == (folder / "pipeline", folder / "scorer")
    assert (garden.steps, garden.guidance, garden.size) == (4, 2.0, 8)
    assert garden.styles == ("ink",)
    assert garden.captions == CONTENT["captions"]
    assert garden.labels[0] == Label("dog", "mammals", ("pet",))
    assert garden.templates == {}


def test_concepts_are_put_into_the_worlds_sentences_where_it_has_some(
    shipped: Shipped, folder: Path
) -> None:
    content = CONTENT | {"templates": {"thing": ["{}", "a sketch of a {}"]}}
    (folder / "labels.json").write_text(json.dumps(content))
    shipped.add(folder)
    vocabulary = Vocabulary(find_world("garden"), [Concept("dog")])
    assert vocabulary.templates("thing") == ("{}", "a sketch of a {}")
    assert vocabulary.templates("style") == TEMPLATES_BY_KIND["style"]
    assert Vocabulary(None, []).templates("thing") == TEMPLATES_BY_KIND["thing"]  # the control


@pytest.mark.parametrize(
    ("word", "labels"),
    [
        ("dog", ("dog", "dog face")),  # a label goes before the same word as a tag
        ("Dog  Face", ("dog", "dog face")),
        ("tiger", ("tiger face",)),
        ("pet", ("dog", "dog face")),
        ("WILD", ("tiger face",)),
        ("christmas tree", ("Christmas tree",)),
        ("ink", ()),
        ("submarine", ()),
    ],
)
def test_labels_of_a_word(garden: World, word: str, labels: tuple[str, ...]) -> None:
    assert garden.labels_of(word) == labels


@pytest.mark.parametrize(
    ("word", "known"), [("Dog", True), ("wild", True), ("INK", True), ("submarine", False)]
)
def test_knows(garden: World, word: str, known: bool) -> None:
    assert garden.has_word(word) is known


@pytest.mark.parametrize(
    ("word", "name"), [("dgo", "dog"), ("inc", "ink"), ("christmas", "Christmas tree")]
)
def test_nearest(garden: World, word: str, name: str) -> None:
    assert garden.nearest(word)[0] == name


def test_nearest_is_empty_for_a_word_like_no_other(garden: World) -> None:
    assert garden.nearest("xylophone") == []


def test_same(garden: World) -> None:
    assert garden.same("dog", "Dog face")
    assert not garden.same("dog", "tiger face")


def test_listing(shipped: Shipped, folder: Path) -> None:
    assert worlds() == {}
    shipped.add(folder, name="garden", module="one")
    shipped.add(folder, name="forest", module="two")
    shipped.add(folder, name="forest", module="three")
    assert worlds() == {"forest": "three and two", "garden": "one"}


def test_name_that_no_package_claims(shipped: Shipped, folder: Path) -> None:
    shipped.add(folder, name="garden")
    assert installed_world("stabilityai/stable-diffusion-2-1") is None
    message = "No world is named 'gardn'. Did you mean 'garden'? Installed: garden."
    with pytest.raises(ErasureError, match=re.escape(message)):
        find_world("gardn")


def test_published_world_that_is_not_installed(shipped: Shipped) -> None:
    message = (
        "The world 'emoji-world' needs its package, which is not installed: run `pip install"
        " erasure-lightning-emoji-world`, or in a checkout `pip install -e plugins/emoji-world`."
    )
    with pytest.raises(ErasureError, match=f"^{re.escape(message)}$"):
        find_world("emoji-world")


def test_name_that_two_packages_claim(shipped: Shipped, folder: Path) -> None:
    shipped.add(folder, module="two")
    shipped.add(folder, module="one")
    with pytest.raises(
        ErasureError, match=r"^The world 'garden' is claimed by one and two: uninstall all but one"
    ):
        find_world("garden")


def test_package_that_cannot_be_imported(shipped: Shipped) -> None:
    shipped.entries.append(EntryPoint("garden", "no_such_package:ROOT", WORLDS_GROUP))
    cause = (
        r"could not be loaded from no_such_package \(no_such_package:ROOT\): ModuleNotFoundError:"
        r" No module"
    )
    with pytest.raises(ErasureError, match=rf"^The world 'garden' {cause}"):
        find_world("garden")


def test_package_that_lacks_the_attribute(shipped: Shipped) -> None:
    shipped.add(None)
    with pytest.raises(ErasureError, match=r"garden_package:ROOT\): AttributeError: .*'ROOT'"):
        find_world("garden")


def test_entry_point_that_is_not_a_folder(shipped: Shipped) -> None:
    shipped.add(3)
    with pytest.raises(ErasureError, match=r"garden_package:ROOT\): TypeError: .* not '?int'?"):
        find_world("garden")


def test_folder_that_lacks_parts(shipped: Shipped, folder: Path) -> None:
    (folder / "labels.json").unlink()
    (folder / "scorer").rmdir()
    shipped.add(folder)
    with pytest.raises(
        ErasureError,
        match=r"FileNotFoundError: .* has no labels\.json and no scorer\. Reinstall that",
    ):
        find_world("garden")


@pytest.mark.parametrize(
    ("text", "cause"), [("{", "JSONDecodeError: "), ('{"labels": []}', "KeyError: 'styles'")]
)
def test_labels_that_cannot_be_read(shipped: Shipped, folder: Path, text: str, cause: str) -> None:
    (folder / "labels.json").write_text(text)
    shipped.add(folder)
    with pytest.raises(ErasureError, match=rf"garden_package:ROOT\): {cause}"):
        find_world("garden")


def test_world_based_on_another(shipped: Shipped, garden: World, folder: Path) -> None:
    shipped.based(folder)
    park = find_world("park")
    assert park is not None
    assert (park.name, park.root, park.package) == ("park", folder / "park", "park 1.2")
    assert (park.labels, park.styles, park.captions) == (garden.labels, ("ink",), garden.captions)
    assert (park.steps, park.guidance, park.size) == (6, 3.0, 16)
    assert (park.pipeline, park.scorer) == (folder / "park/pipeline", folder / "scorer")
    assert park.component("unet") == folder / "park/pipeline/unet"
    assert park.component("vae") == park.component("vae_2") == folder / "pipeline/vae"
    assert garden.component("vae") == folder / "pipeline/vae"


def _put(file: Path, **entries: Any) -> None:
    """Puts entries into a ``labels.json``."""
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_settings_of_a_shared_component(shipped: Shipped, garden: World, folder: Path) -> None:
    shipped.based(folder)
    (folder / "pipeline/vae/config.json").write_text('{"scaling_factor": 1, "shift_factor": null}')
    _put(folder / "park/labels.json", settings={"pipeline/vae": {"shift_factor": -0.5}})
    park = find_world("park")
    assert park is not None
    assert park.component_settings("vae") == {"shift_factor": -0.5}
    assert park.component_settings("vae_2") == park.component_settings("unet") == {}
    assert garden.component_settings("vae") == {}


def test_settings_go_with_the_part_to_a_third_world(
    shipped: Shipped, garden: World, folder: Path
) -> None:
    shipped.based(folder)
    (folder / "pipeline/vae/config.json").write_text('{"scaling_factor": 1, "shift_factor": null}')
    of_park = {"scaling_factor": 2, "shift_factor": -0.5}
    _put(folder / "park/labels.json", settings={"pipeline/vae": of_park})
    (folder / "yard/pipeline").mkdir(parents=True)
    of_yard = {"pipeline/vae_2": {"scaling_factor": 3}}
    (folder / "yard/labels.json").write_text(
        json.dumps(BASED | {"base": "park", "settings": of_yard})
    )
    shipped.add(folder / "yard", name="yard", module="yard_package")
    yard = find_world("yard")
    assert yard is not None
    assert yard.component("vae_2") == folder / "pipeline/vae"
    assert yard.component_settings("vae") == of_park
    assert yard.component_settings("vae_2") == of_park | {"scaling_factor": 3}


@pytest.mark.parametrize("path", ["pipeline/unet", "vae", "scorer"])
def test_settings_of_what_is_not_a_shared_component(
    shipped: Shipped, garden: World, folder: Path, path: str
) -> None:
    shipped.based(folder)
    _put(folder / "park/labels.json", settings={path: {"shift_factor": -0.5}})
    message = (
        "The world 'park' needs settings of components that it shares (pipeline/vae,"
        f" pipeline/vae_2); found settings of {path}: correct its labels.json."
    )
    with pytest.raises(ErasureError, match=f"^{re.escape(message)}$"):
        find_world("park")


def test_settings_that_the_component_does_not_have(
    shipped: Shipped, garden: World, folder: Path
) -> None:
    shipped.based(folder)
    config = folder / "pipeline/vae/config.json"
    config.write_text('{"scaling_factor": 1, "shift_factor": null}')
    wrong = {"pipeline/vae": {"shift": -0.5, "scaling_factor": 2}}
    _put(folder / "park/labels.json", settings=wrong)
    message = (
        f"The world 'park' needs settings of pipeline/vae that {config} has; found shift:"
        " correct its labels.json."
    )
    with pytest.raises(ErasureError, match=f"^{re.escape(message)}$"):
        find_world("park")


@pytest.mark.parametrize(
    ("base", "how"),
    [
        (
            "emoji-world",
            (
                "run `pip install erasure-lightning-emoji-world`, or in a checkout `pip install -e"
                " plugins/emoji-world`"
            ),
        ),
        ("meadow", "install the package that brings it"),
    ],
)
def test_base_that_is_not_installed(
    shipped: Shipped, garden: World, folder: Path, base: str, how: str
) -> None:
    shipped.based(folder, base)
    message = f"The world 'park' needs the world '{base}', which is not installed: {how}."
    with pytest.raises(ErasureError, match=f"^{re.escape(message)}$"):
        find_world("park")


@pytest.mark.parametrize(
    "needs", ["garden-package>=1.3", "Garden.Package<1.2", "garden_package==1.0"]
)
def test_base_of_another_version(shipped: Shipped, garden: World, folder: Path, needs: str) -> None:
    shipped.based(folder, needs=needs)
    message = f"The world 'park' needs {needs}; found 1.2: run `pip install '{needs}'`."
    with pytest.raises(ErasureError, match=f"^{re.escape(message)}$"):
        find_world("park")


@pytest.mark.parametrize(
    ("needs", "has"),
    [("garden-package>=1.2,<1.3", "1.2"), ("garden-package>=1.2", "1.3.dev1"), ("other>=9", "1.2")],
)
def test_base_of_a_version_that_will_do(
    shipped: Shipped, garden: World, folder: Path, needs: str, has: str
) -> None:
    shipped.based(folder, needs=needs, has=has)
    assert find_world("park") is not None


def test_base_that_lacks_a_part(shipped: Shipped, garden: World, folder: Path) -> None:
    shipped.based(folder)
    (folder / "pipeline/vae").rmdir()
    message = (
        "The world 'park' needs pipeline/vae of garden_package 1.2; found no such folder: reinstall"
        " both packages."
    )
    with pytest.raises(ErasureError, match=f"^{re.escape(message)}$"):
        find_world("park")


def test_base_that_cannot_be_read_is_named(shipped: Shipped, garden: World, folder: Path) -> None:
    shipped.based(folder)
    (folder / "labels.json").write_text("{")
    with pytest.raises(
        ErasureError, match=r"^The world 'garden' could not be loaded from garden_package 1\.2 "
    ):
        find_world("park")


def test_based_world_needs_the_parts_it_does_not_share(
    shipped: Shipped, garden: World, folder: Path
) -> None:
    shipped.based(folder)
    del (content := json.loads((folder / "park/labels.json").read_text()))["parts"]["scorer"]
    (folder / "park/labels.json").write_text(json.dumps(content))
    with pytest.raises(
        ErasureError, match=r"FileNotFoundError: .*park has no scorer\. Reinstall that"
    ):
        find_world("park")


def test_pipeline_is_the_stock_one_and_loads_silently(
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = find_world("emoji-world")
    assert world is not None
    ours = world.load_pipeline()
    assert capsys.readouterr() == ("", "")
    stock = StableDiffusionPipeline.from_pretrained(world.pipeline, dtype=torch.float32)
    assert type(ours) is type(stock)
    assert ours.components.keys() == stock.components.keys()
    for name in ("unet", "vae", "text_encoder"):
        values = ours.components[name].state_dict()
        expected = stock.components[name].state_dict()
        assert values.keys() == expected.keys()
        assert all(torch.equal(values[key], expected[key]) for key in expected)
        assert ours.components[name].dtype == torch.float32


def test_emoji_world() -> None:
    world = find_world("emoji-world")
    assert world is not None
    assert world.package.startswith("erasure-lightning-emoji-world ")
    assert len(world.labels) == 165
    assert world.styles == ("noto", "twemoji", "fluent", "flat")
    assert (world.steps, world.guidance, world.size) == (20, 4.0, 64)
    assert world.labels_of("dog") == ("dog face", "dog")
    assert world.labels_of("cigarette") == ("cigarette",)
    assert world.labels_of("smoking") == ("cigarette",)
    assert {"red heart", "broken heart"} <= set(world.labels_of("heart"))
    assert world.has_word("Twemoji")
    assert not world.has_word("submarine")
    assert world.nearest("cigarete")[0] == "cigarette"
    assert "emoji-world" in worlds()
