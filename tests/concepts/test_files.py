import random
import string

import pytest
import torch
from trivial import Distillation, Redirection

from erasure_lightning.api.configs import SHIPPED
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.sample_grid import _title
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.files import read_concepts
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.data.image_plan import measured_prompts
from erasure_lightning.errors import ErasureError
from erasure_lightning.testing import edit_of, quick_fit

CAT = Concept("red cat", "dog", ["kitten", "tomcat"])


@pytest.fixture
def written(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def hundred(written):
    """A CSV of a hundred names without a heading, as other projects keep theirs."""
    letters = random.Random(0)
    names = {"".join(letters.choices(string.ascii_lowercase, k=6)) for _ in range(100)}
    assert len(names) == 100
    return written("hundred.csv", "\n".join(sorted(names)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "name,anchor,domain\nred cat,dog,kitten; tomcat\n"),
        ("c.csv", "\ufeffDomain, Name, Anchor, Kind\r\n\r\nkitten;;tomcat, red cat, dog,\r\n"),
        ("c.yaml", "- {name: red cat, anchor: dog, domain: [kitten, tomcat]}\n"),
        ("c.yml", "name: red cat\nanchor: dog\ndomain: kitten; tomcat\n"),
    ],
)
def test_every_format_says_all_of_a_concept(written, name, text):
    assert read_concepts(written(name, text)) == [CAT]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "\ncat\n red heart \n"),
        ("c.csv", "cat\nred heart\n"),
        ("c.csv", "Name\ncat\nred heart\n"),
        ("c.csv", "concept\ncat\nred heart\n"),
        ("c.yaml", "- cat\n- name: red heart\n"),
    ],
)
def test_names_alone_are_enough(written, name, text):
    assert read_concepts(written(name, text)) == [Concept("cat"), Concept("red heart")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", '["cat", "red heart"]'),
        ("c.txt", "['cat',\n 'red heart']\n"),
        ("c.json", '["cat", {"name": "red heart"}]'),
        ("c.txt", "# what goes\ncat\nred heart  # and not the blue one\n"),
        ("c.txt", "- cat\n* red heart\n"),
        ("c.txt", "\u2022 cat\n\u2022red heart\n"),
        ("c.txt", "1. cat\n2) red heart\n"),
        ("c.txt", "- cat\n1. red heart\n"),
        ("c.txt", "\"cat\",\n'red heart'\n"),
        ("c.txt", "\u201ccat\u201d\nred\u00a0heart,\n"),
        ("c.txt", "Concepts\ncat\nred heart\n"),
        ("c.txt", "\ufeffc\u200bat\n\ufeffred \u2060 heart\u00ad\n"),
        ("c.txt", "\ufeffcat\r\nred heart\r\n".encode("utf-16-le")),
        ("c.txt", "name;kind\ncat;\nred heart;thing\n"),
        ("c.csv", "id,concept\n1,cat\n2,red heart\n"),
        ("c.csv", ",NAME \n0,cat\n1,red heart\n"),
        ("c.csv", "sep=;\nname;kind\ncat;thing\nred heart;\n"),
        ("c.tsv", "name\tanchor\ncat\t\nred heart\t\n"),
        ("c.csv", "# what goes\n\nname,kind\ncat,\nred heart,\n\n,\n"),
    ],
)
def test_lists_as_they_lie_about(written, name, text):
    assert read_concepts(written(name, text)) == [Concept("cat"), Concept("red heart")]


def test_quotes_keep_a_name_as_it_is(written):
    text = (
        '"Tyler, The Creator"\n"#hashtag"\n"1. FC Cologne"\n"name"\n*NSYNC\nAC/DC\n<sks>\n\'90s'
        " fashion\n"
    )
    names = [
        "Tyler, The Creator",
        "#hashtag",
        "1. FC Cologne",
        "name",
        "*NSYNC",
        "AC/DC",
        "<sks>",
        "'90s fashion",
    ]
    assert [c.name for c in read_concepts(written("c.txt", text))] == names
    assert [c.name for c in read_concepts(written("c.csv", text))] == names


def test_escapes_of_json_are_read_as_json(written):
    (concept,) = read_concepts(written("c.txt", '["\\ud83d\\udeac"]'))
    assert concept.name == "\N{SMOKING SYMBOL}"


def test_joiners_stay(written):
    family = "\N{MAN}\u200d\N{WOMAN}"
    assert read_concepts(written("c.txt", family))[0].name == family


def test_words_of_a_domain_in_a_table_with_semicolons(written):
    (concept,) = read_concepts(written("c.csv", "name;anchor;domain\nred cat;dog;kitten, tomcat\n"))
    assert concept == CAT


def test_a_file_knows_styles(written):
    assert read_concepts(written("c.csv", "name,kind\nnoto,style\ncat,\n")) == [
        Concept("noto", kind="style"),
        Concept("cat"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.xlsx", "[]", "read from .csv, .tsv, .yaml, .yml, .json and .txt; found"),
        (
            "c.csv",
            "nmae,anchor\ncat,dog\n",
            "c.csv, line 1: unknown column 'nmae'. Did you mean 'name'?",
        ),
        ("c.csv", "name,type\ncat,dog\n", "line 1: unknown column 'type'"),
        ("c.csv", "anchor,kind\ncat,thing\n", "a column name is needed; found anchor, kind."),
        ("c.csv", "name,name\ncat,dog\n", "found 'name' more than once"),
        ("c.csv", "name,anchor\ncat,dog\n\n,dog\n", "c.csv, line 4: A concept needs a name"),
        (
            "c.csv",
            "name,kind\ncat,dog\n",
            "line 2: kind needs one of thing, style, person, action; found 'dog'.",
        ),
        ("c.csv", "name,anchor\ncat,dog,bird\n", "line 2: found 3 cells under 2 columns"),
        ("c.csv", 'name,anchor\n"cat,dog\n', "no valid CSV"),
        ("c.csv", "name,anchor\ncat,Cat\n", "line 2: Concept 'cat' has itself as anchor"),
        ("c.csv", "", "c.csv needs at least one concept; found none."),
        ("c.csv", "name\n", "needs at least one concept"),
        ("c.txt", "\n \n", "needs at least one concept"),
        ("c.yaml", "# nothing\n", "needs at least one concept"),
        (
            "c.yaml",
            "- cat\n- {name: dog, anhcor: x}\n",
            "line 2: a concept has no 'anhcor'. Did you mean 'anchor'?",
        ),
        ("c.yaml", "- cat\n-\n", "line 2: A concept needs a name"),
        ("c.yaml", "- 1984\n", "line 1: name needs text; found 1984"),
        ("c.yaml", "- cat\n- {name\n", "c.yaml, line 3: no valid YAML"),
        ("c.yaml", "cat\n", "needs a list of concepts"),
        (
            "c.txt",
            b"cat\ncaf\xe9\n",
            "at byte 7, in line 2: in Windows-1252 it reads 'caf\xe9'. If that is right",
        ),
        (
            "c.csv",
            "name\ncat\n".encode("utf-16-le"),
            "found zero bytes, as in UTF-16 without its mark",
        ),
        (
            "c.csv",
            "Van Gogh;painting;sunflowers\n",
            "line 1: a heading is needed; found van gogh, painting, sunflowers.",
        ),
        ("c.csv", "name,anchor,kind\ncat,dog\n", "line 2: found 2 cells under 3 columns"),
        ("c.csv", "name,anchor\n# pets,all\n", "line 2: found '# pets' as a name"),
        (
            "c.csv",
            f"name,anchor\ncat,{'x' * 140_000}\n",
            "c.csv, line 2: no valid CSV (field larger",
        ),
        (
            "c.txt",
            "Monet, Degas, Van Gogh\n",
            "line 1: 'Monet, Degas, Van Gogh' looks like several names",
        ),
        (
            "c.txt",
            "Hokusai \nVermeer,painter,baroque \n",
            "line 2: 'Vermeer,painter,baroque' looks like several names",
        ),
        (
            "c.txt",
            "cat\tdog\n",
            "looks like several names, or a name with remarks. Write one name a line",
        ),
        ("c.txt", "\u6bd5\u52a0\u7d22\u3001\u83ab\u5948\n", "looks like several names"),
        ("c.txt", "[Monet, Degas\n", "no valid YAML"),
        ("c.txt", "cat -> dog\n", "looks like a name with its anchor"),
        ("c.txt", "name: cat\n", "looks like a field of a concept"),
        ("c.txt", "Artists:\nMonet\n", "line 1: 'Artists:' looks like a heading"),
        ("c.txt", "artist\nMonet\n", "line 1: 'artist' looks like a heading"),
        ("c.txt", "Monet\n---\n", "line 2: '---' looks like"),
        ("c.txt", "Chanel #5\n", "looks like a name with a remark"),
        ("c.txt", '"Monet\n', "looks like a quotation without an end"),
        ("c.txt", "1. FC Cologne\n", "looks like an entry of a numbered list"),
        ("c.txt", "Monet\n2. Degas\n", "line 2: '2. Degas' looks like an entry of a numbered list"),
        ("c.txt", "# artists to erase\n", "needs at least one concept"),
        ("c.txt", "concepts\n", "needs at least one concept"),
        ("c.yaml", "- cat\n- Monet, Degas\n", "line 2: 'Monet, Degas' looks like several names"),
        (
            "c.yaml",
            "- {name: cat,\n   name: dog}\n",
            "line 2: no valid YAML (found 'name' twice, first in line 1)",
        ),
        ("c.json", '[{"name": "cat", "name": "dog"}]', "found 'name' twice"),
        ("c.csv", "name,anchor\ncat,cats\n", "has itself as anchor"),
    ],
)
def test_a_mistake_is_told_with_its_place(written, name, text, words):
    with pytest.raises(ErasureError) as caught:
        read_concepts(written(name, text))
    assert words in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ErasureError, match="found no file '.*cats.csv'"):
        read_concepts(tmp_path / "cats.csv")


def test_shipped_files_are_what_the_bars_ask_for():
    shipped = {path.stem: read_concepts(path) for path in (SHIPPED / "concepts").glob("*.yaml")}
    counts = dict.fromkeys(("cigarette", "guitar", "skull", "mushroom", "doughnut"), 1)
    counts |= {"heart": 2, "weapon": 5}
    assert {name: len(concepts) for name, concepts in shipped.items()} == counts
    domain = sorted(word for c in shipped["weapon"] for word in c.domain)
    assert domain == ["archery", "blade", "explosive", "knife", "sword", "weapon"]


def test_a_module_keeps_the_concepts_and_not_their_file(written, tmp_path):
    path = written("c.csv", "name,anchor\ncat,dog\n")
    module = quick_fit(
        Distillation(concepts=str(path), backbone=TinyBackbone()), 1, save=tmp_path / "x.ckpt"
    )
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    plain = [{"name": "cat", "anchor": "dog", "domain": [], "kind": "thing"}]
    assert module.concepts == [Concept("cat", "dog")]
    assert (
        saved["hyper_parameters"]["concepts"] == saved["erasure"]["arguments"]["concepts"] == plain
    )
    assert module.hparams["concepts"] == plain


@pytest.mark.parametrize("method", [Distillation, Redirection])
def test_a_hundred_concepts_are_fitted(method, hundred):
    module = quick_fit(method(concepts=str(hundred), backbone=TinyBackbone()), 2)
    assert len(module.concepts) == 100
    original = dict(module.original.named_parameters())
    assert any(not torch.equal(value, original[name]) for name, value in edit_of(module).items())


def test_a_hundred_concepts_are_each_measured_and_no_more_often_than_needed(hundred):
    concepts = read_concepts(hundred)
    rows = measured_prompts(Vocabulary(None, concepts), 54, [])
    efficacy = [prompt for group, prompt, _ in rows if group == "efficacy"]
    assert len(efficacy) == 100
    assert all(any(c.name in prompt for prompt in efficacy) for c in concepts)
    assert {prompt.rpartition(" ")[0] for prompt in efficacy} == {"", "a", "an image of a"}


def test_few_concepts_are_asked_for_in_every_caption():
    prompts = Vocabulary(None, [Concept("cat"), Concept("dog")]).concept_prompts()
    assert [p for p, _ in prompts] == [
        "cat",
        "a cat",
        "an image of a cat",
        "dog",
        "a dog",
        "an image of a dog",
    ]


def test_the_grid_names_the_first_of_many(hundred):
    module = Redirection(concepts=str(hundred), backbone=TinyBackbone())
    first = ", ".join(c.name for c in module.concepts[:3])
    assert _title(module) == f"Redirection erases {first} and 97 more"
