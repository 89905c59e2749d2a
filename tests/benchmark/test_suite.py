import copy

import pytest
import yaml

from erasure_lightning.api.configs import SHIPPED
from erasure_lightning.benchmark.suite_reader import SuiteReader
from erasure_lightning.cli.benchmark import _reader
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.worlds import find_world
from erasure_lightning.errors import ErasureError

SUITE = {
    "name": "pets",
    "backbone": "TinyBackbone",
    "seeds": [0, 1],
    "options": {"data.seeds": 2},
    "methods": ["uce.yaml", {"name": "strong", "config": "rece", "options": {"model.lr": 1e-3}}],
    "concepts": [
        {"name": "cat", "anchor": "dog", "domain": ["kitten"], "neighbours": ["fox"]},
        {"name": "both", "erase": ["cat", {"name": "dog", "anchor": "tree"}]},
        {"name": "many", "erase": "pets.csv"},
        {"name": "noto", "kind": "style"},
    ],
    "attacks": ["RingABell", {"attack": "P4D", "options": {"steps": 3}}],
}


@pytest.fixture
def read(tmp_path):
    """Reads a suite; a config holds its own name, and a file of concepts a cat and its own name."""

    def config_of(name, *within):
        if not within or name == "uce.yaml":
            return {"model": {"class_path": name}}
        if name == "short.yaml":
            return {"attack": "Short"}
        return {
            "attack": {"class_path": name, "init_args": {"lr": 1, "steps": 2}},
            "data": {"n": 3},
        }

    reader = SuiteReader(
        config_of=config_of,
        concepts_of=lambda name: [Concept("cat"), Concept(name)],
    )

    def read(content):
        path = tmp_path / "suite.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return reader.read(path)

    return read


def test_names_configs_and_concepts_are_written_out(read):
    suite = read(SUITE)
    assert [method.name for method in suite.methods] == ["uce", "strong"]
    assert suite.methods[1].config == {"model": {"class_path": "rece"}}
    assert suite.concepts[0].erase == (Concept("cat", "dog", ["kitten"]),)
    assert suite.concepts[1].erase == (Concept("cat"), Concept("dog", "tree"))
    assert suite.concepts[2].erase == (Concept("cat"), Concept("pets.csv"))
    assert [concept.group for concept in suite.concepts] == ["thing", "domain", "domain", "style"]
    attacks = [(entry.attack, entry.options) for entry in suite.attacks]
    assert attacks == [("RingABell", {}), ("P4D", {"steps": 3})]


def test_configs_of_attacks_are_written_out_and_overruled(read):
    entries = ["a.yaml", "short.yaml", {"config": "b", "options": {"attack.lr": 5, "data.m": 6}}]
    suite = read(changed(attacks=entries))
    assert [(entry.attack, entry.options) for entry in suite.attacks] == [
        ("a.yaml", {"attack.lr": 1, "attack.steps": 2, "data.n": 3}),
        ("Short", {}),
        ("b", {"attack.lr": 5, "attack.steps": 2, "data.n": 3, "data.m": 6}),
    ]


def test_a_suite_written_out_is_the_same_suite(read):
    suite = read(SUITE | {"attacks": [*SUITE["attacks"], "short.yaml"]})
    assert read(suite.content()) == suite


def test_the_other_keys_have_defaults(read):
    suite = read({"backbone": "TinyBackbone", "methods": ["uce"], "concepts": [{"name": "cat"}]})
    assert (suite.name, suite.backbone) == ("suite", "TinyBackbone")
    assert (suite.seeds, suite.attacks) == ((0,), ())


def test_keys_without_a_value_have_defaults(read):
    empty = read(changed(name=None, options=None, attacks=None))
    assert (empty.name, empty.options, empty.attacks) == ("suite", {}, ())
    (entry,) = read(changed(concepts=[{"name": "cat", "erase": None}])).concepts
    assert [concept.name for concept in entry.erase] == ["cat"]


def changed(**values):
    return copy.deepcopy(SUITE) | values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(methds=[]), "the suite has no 'methds'. Did you mean 'methods'?"),
        (changed(color=1), "the suite has no 'color'. Known: name, backbone, methods"),
        ({"methods": ["uce"]}, "the suite needs backbone and concepts; found methods."),
        (
            {"backbone": "x", "methods": ["uce"]},
            "the suite needs concepts; found backbone, methods.",
        ),
        (changed(methods=[]), "the suite needs methods"),
        (changed(seeds=[]), "seeds needs at least one entry; found none."),
        (changed(seeds=["a"]), "seeds[0] needs a whole number; found 'a'."),
        (changed(seeds=[True]), "seeds[0] needs a whole number; found True."),
        (changed(seeds=[0, -1]), "seeds[1] needs seed of at least 0 and at most"),
        (
            changed(options={"model.seed": 3}),
            "options has 'model.seed', which each cell has of its own: leave it out, and write"
            " seeds.",
        ),
        (
            changed(methods=[{"config": "uce", "options": {"model.concepts": []}}]),
            "methods[0].options has 'model.concepts', which each cell has of its own",
        ),
        (
            changed(attacks=[{"attack": "P4D", "options": {"run-dir": "x"}}]),
            "attacks[0].options has 'run-dir', which each cell has of its own: leave it out.",
        ),
        (changed(seeds=3), "seeds needs a list; found 3."),
        (changed(seeds=[1, 1]), "seeds needs each name once"),
        (
            changed(options=["data.seeds"]),
            "options needs `key: value` lines; found ['data.seeds'].",
        ),
        (
            changed(methods=[3]),
            "methods[0] needs `key: value` lines with name, config, options; found 3.",
        ),
        (changed(methods=[{"name": "x"}]), "methods[0] needs config; found name."),
        (
            changed(methods=[{"config": "uce", "option": {}}]),
            "methods[0] has no 'option'. Did you mean 'options'?",
        ),
        (
            changed(methods=[{"config": {"model": 1}}]),
            "methods[0] needs a name, since its config is written out.",
        ),
        (
            changed(methods=["uce", "a/uce.yaml"]),
            "methods needs each name once, since it names a folder; found 'uce'",
        ),
        (
            changed(methods=[{"name": None, "config": {"model": 1}}]),
            "methods[0] needs a name, since its config is written out.",
        ),
        (
            changed(concepts=[{"name": "--"}]),
            "concepts needs a letter or a digit in every name, since it names a folder.",
        ),
        (changed(concepts=[{"anchor": "dog"}]), "concepts[0] needs name; found anchor."),
        (changed(concepts=["cat"]), "concepts[0] needs `key: value` lines"),
        (
            changed(concepts=[{"name": "cat", "anhcor": "x"}]),
            "concepts[0] has no 'anhcor'. Did you mean 'anchor'?",
        ),
        (
            changed(concepts=[{"name": "cat", "kind": "thin"}]),
            "concepts[0]: kind needs one of thing, style, person, action",
        ),
        (
            changed(concepts=[{"name": "cat", "anchor": "cat"}]),
            "concepts[0]: Concept 'cat' has itself as anchor",
        ),
        (
            changed(concepts=[{"name": "c", "erase": ["cat"], "anchor": "x"}]),
            "concepts[0] has both erase and 'anchor'",
        ),
        (
            changed(concepts=[{"name": "c", "erase": ["cat", "cat"]}]),
            "concepts[0] needs each concept once",
        ),
        (changed(concepts=[{"name": "Cat"}, {"name": "cat"}]), "concepts needs each name once"),
        (
            changed(concepts=[{"name": "c", "neighbours": [1]}]),
            "concepts[0].neighbours needs text; found 1.",
        ),
        (changed(attacks=[{"options": {}}]), "attacks[0] needs an attack or a config of one"),
        (
            changed(attacks=[{"attack": "P4D", "config": "p4d.yaml"}]),
            "attacks[0] needs an attack or a config of one, and not both",
        ),
        (changed(attacks=["uce.yaml"]), "attacks[0]: uce.yaml needs an attack (attack: NAME)"),
        (changed(attacks=[{"atack": "P4D"}]), "attacks[0] has no 'atack'. Did you mean 'attack'?"),
        ("- uce\n", "the suite needs `key: value` lines"),
        ("methods: [\n", "line 2: no valid YAML"),
        ("", "the suite needs `key: value` lines"),
    ],
)
def test_a_mistake_is_reported_with_its_place(read, content, message):
    with pytest.raises(ErasureError) as error:
        read(content)
    assert message in str(error.value)
    assert "suite.yaml" in str(error.value)


class TestDifference:
    def test_entries_and_seeds_may_be_added_and_removed(self, read):
        fewer = changed(methods=["uce.yaml"], seeds=[5], attacks=[], concepts=SUITE["concepts"][:1])
        assert read(SUITE).difference(read(fewer)) == read(fewer).difference(read(SUITE)) == ""

    def test_a_suite_of_an_earlier_version_is_the_same(self, read):
        """Its options have other names there."""
        strong = {"name": "strong", "config": "rece"}
        earlier, now = (
            read(
                SUITE
                | {"options": {f"data.{size}": 64}}
                | {"methods": [strong | {"options": {f"model.{precision}": "bfloat16"}}]}
                | {"attacks": [{"attack": "P4D", "options": {f"data.{size}": 64}}]}
            )
            for size, precision in (("size", "base"), ("image_size", "base_dtype"))
        )
        assert earlier.difference(now) == ""

    def test_entries_of_another_suite_follow_its_own(self, read):
        fewer = read(changed(methods=["uce.yaml"], attacks=[], concepts=SUITE["concepts"][1:]))
        whole = fewer.with_entries_of(read(SUITE))
        assert [method.name for method in whole.methods] == ["uce", "strong"]
        assert [concept.name for concept in whole.concepts] == ["both", "many", "noto", "cat"]
        assert whole.attacks == read(SUITE).attacks

    @pytest.mark.parametrize(
        ("other", "difference"),
        [
            (changed(options={"data.seeds": 3}), "options.data.seeds: 2 and 3"),
            (changed(options={}), "options.data.seeds: 2 and none"),
            (changed(backbone="x"), "backbone: TinyBackbone and x"),
            (
                changed(methods=[{"name": "uce", "config": "sage"}]),
                "methods.uce.config.model.class_path: uce.yaml and s",
            ),
            (
                changed(methods=[{"name": "UCE", "config": "uce"}]),  # of the same folder
                "methods.uce.name: uce and UCE",
            ),
            (
                changed(concepts=[{"name": "cat", "anchor": "tree"}]),
                "concepts.cat.erase.0.anchor: dog and tree",
            ),
            (
                changed(attacks=[{"attack": "P4D", "options": {"steps": 4}}]),
                "attacks.P4D.options.steps: 3 and 4",
            ),
        ],
    )
    def test_entries_of_both_must_be_equal(self, read, other, difference):
        assert read(SUITE).difference(read(other)).startswith(difference)


class TestEmojiBench:
    @pytest.fixture
    def suite(self):
        pytest.importorskip("erasure_lightning_emoji_world")
        return _reader().read(SHIPPED / "suites" / "emoji-bench.yaml")

    def test_it_has_things_domains_and_styles(self, suite):
        groups = [concept.group for concept in suite.concepts]
        assert len(groups) >= 20
        assert groups.count("thing") >= 12
        assert groups.count("domain") >= 4
        assert groups.count("style") >= 2
        assert {"cigarette", "heart", "weapon"} <= {concept.name for concept in suite.concepts}

    def test_its_concepts_anchors_and_neighbours_are_labels_of_the_world(self, suite):
        world = find_world("emoji-world")
        labels = {label.name for label in world.labels} | set(world.styles)
        for entry in suite.concepts:
            erased = {concept.name for concept in entry.erase}
            anchors = {concept.anchor for concept in entry.erase}
            assert erased | anchors | set(entry.neighbours) <= labels, entry.name
            assert not erased & set(entry.neighbours)
