"""The documentation's site: every page and every public name is in it."""

import importlib.util
import re
import types
from pathlib import Path

import pytest

import erasure_lightning
from erasure_lightning.attacks import ATTACKS
from erasure_lightning.methods import METHODS
from erasure_lightning.retention import RETENTION_CALLBACKS

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def conf():
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_index_and_every_entry_is_a_page(conf):
    entries = re.findall(r"^[a-z][\w/-]*$", (DOCS / "index.md").read_text(), re.M)
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert {entry for entry in entries if "/" not in entry} == pages
    parts = {f"reference/{part.partition(' ')[0].lower()}" for part in conf.REFERENCE}
    assert {entry for entry in entries if "/" in entry} == parts | {"reference/python"}


def test_modules_of_the_reference_exist_and_have_every_public_name(conf):
    described = {module for part in conf.REFERENCE.values() for module in part}
    missing = [module for module in described if importlib.util.find_spec(module) is None]
    assert not missing
    assert {*conf.public_names()} < {*erasure_lightning.__all__}
    elsewhere = {*erasure_lightning.__all__} - {*conf.public_names()}
    assert {getattr(erasure_lightning, name).__module__ for name in elsewhere} <= described
    for table in (METHODS, ATTACKS, RETENTION_CALLBACKS):
        assert {offer.target.partition(":")[0] for offer in table.values()} <= described


def test_links_out_of_the_folder_become_names_of_files(conf):
    source = ["[a tour](../notebooks/tour.ipynb), [scale](scale.md), [licence](../LICENSE)"]
    conf.link_pages(None, "usage", source)
    assert source == ["a tour (`notebooks/tour.ipynb`), [scale](scale.md), licence (`LICENSE`)"]
    index = ["contents"]
    conf.link_pages(None, "index", index)
    assert index[0].startswith("# erasure_lightning")
    assert "](docs/" not in index[0]
    assert "](usage.md)" in index[0]


def test_equations_keep_their_lines(conf):
    lines = [
        "With ``a``,",
        "",
        "    one   ``a``",
        "          ``b``",
        "",
        "after",
        "",
        ":param x: y",
    ]
    lines += ["    continued"]
    conf.keep_lines(None, "class", "C", None, None, lines)
    assert lines[2:4] == ["    | one   ``a``", "    |       ``b``"]
    assert lines[5:] == ["after", "", ":param x: y", "    continued"]


def test_a_colon_in_a_property_is_no_type(conf):
    lines = ["Precision of latents: at least float32.", ""]
    conf.keep_colons(None, "property", "dtype", None, None, lines)
    assert lines == [": Precision of latents: at least float32.", ""]  # napoleon's empty type
    assert not conf.napoleon_numpy_docstring  # which would remove it first


def test_each_page_of_the_reference_is_listed_with_its_first_sentence(conf):
    assert conf.first_line("erasure_lightning.errors").startswith("`ErasureError`: ")
    assert all(conf.first_line(module) for part in conf.REFERENCE.values() for module in part)


def test_a_short_name_links_to_its_only_entry(conf):
    entries = {"a.One": "class", "a.One.step": "method", "b.Two": "class", "c.Two": "class"}
    objects = {
        name: types.SimpleNamespace(objtype=kind, aliased=False) for name, kind in entries.items()
    }
    domain = types.SimpleNamespace(objects=objects, resolve_xref=lambda *args: args[4])
    env = types.SimpleNamespace(get_domain=lambda _: domain)
    app = types.SimpleNamespace(builder=None)

    def linked(name):
        node = {"refdomain": "py", "reftarget": name, "refdoc": ""}
        return conf.link_short_name(app, env, node, None)

    assert [linked(name) for name in ("One", "One.step", "step", "Two")] == [
        "a.One",
        "a.One.step",
        None,
        None,
    ]
