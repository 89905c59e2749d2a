"""Site of these pages and of the docstrings: ``sphinx-build docs site``, with the extra ``docs``.

The reference lists methods, attacks and retention callbacks as the package's own tables do.
"""

import importlib.util
import re
from ast import get_docstring, parse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import erasure_lightning
from erasure_lightning.attacks import ATTACKS
from erasure_lightning.discovery import BuiltIn
from erasure_lightning.methods import METHODS
from erasure_lightning.retention import RETENTION_CALLBACKS

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

DOCS = Path(__file__).parent
PACKAGE = erasure_lightning.__name__

project = author = PACKAGE
html_title = "Erasure Lightning"
html_theme = "furo"
html_show_copyright = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
default_role = "py:obj"  # a name in single backticks links to its entry, where it has one
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True  # as they are written, not the values' representations
maximum_signature_line_length = 88
napoleon_numpy_docstring = False  # it would read a line's colon again, after `keep_colons`
myst_heading_anchors = 3
toc_object_entries_show_parents = "hide"


def modules_of(table: dict[str, BuiltIn]) -> dict[str, str]:
    """Modules of a table's classes, and a title with the names of each one's."""
    titles: dict[str, list[str]] = {}
    for name, offer in table.items():
        titles.setdefault(offer.target.partition(":")[0], []).append(name)
    return {module: ", ".join(names) for module, names in titles.items()}


def modules(room: str, names: str) -> dict[str, str]:
    """Modules of a package by name; each is its own title."""
    return {f"{PACKAGE}.{room}.{name}": f"{room}.{name}" for name in names.split()}


#: Parts of the reference: their modules, and a title for each.
REFERENCE = {
    "Methods": modules_of(METHODS),
    "Retention": modules("retention", "base") | modules_of(RETENTION_CALLBACKS),
    "Attacks": modules("attacks", "base target outcome probe fine_tuning_attack")
    | modules_of(ATTACKS),
    "Training": modules(
        "training",
        "base gradient closed_form inference_rule adapter_methods per_concept_erasure"
        " adversary adversary_kinds latent_sources trajectory_bank image_sources"
        " stochastic_trajectories paired_sampling"
        " saliency word_mixtures strategies",
    ),
    "Models": modules("backbones", "interface base conditioning towers process loading tiny"),
    "Edits": modules("adapters", "base") | modules("edits", "edit export_format changes"),
    "Data": modules("concepts", "concept") | modules("data", "datamodule image_plan"),
    "Measures": modules("callbacks", "measure")
    | modules("metrics", "estimates protocol image_metrics scorer"),
    "Checks of extensions": {f"{PACKAGE}.testing": "testing", f"{PACKAGE}.errors": "errors"},
}


def public_names() -> dict[str, str]:
    """Names that the package exports and no part of `REFERENCE` describes, and their directives.

    Functions come first.
    """
    described = {module for part in REFERENCE.values() for module in part}
    exported = {name: getattr(erasure_lightning, name) for name in erasure_lightning.__all__}
    entries = {
        name: "autoclass" if isinstance(each, type) else "autofunction"
        for name, each in exported.items()
        if each.__module__ not in described
    }
    return dict(sorted(entries.items(), key=lambda entry: entry[1], reverse=True))


def write_reference(app: "Sphinx") -> None:
    """Write a page for the package, and for each part of `REFERENCE` and each of its modules."""
    (DOCS / "reference").mkdir(exist_ok=True)
    entries = [
        f".. {directive}:: {PACKAGE}.{name}"
        + ("\n   :inherited-members:" if directive == "autoclass" else "")
        for name, directive in public_names().items()
    ]
    elsewhere = ", ".join(f"`{n}`" for n in erasure_lightning.__all__ if n not in public_names())
    text = f"``import {PACKAGE}`` also has {elsewhere}, which other pages describe."
    write_page("python", "Python", [text, *entries])
    for part, contents in REFERENCE.items():
        for module, title in contents.items():
            write_page(page_of(module), title, [f".. automodule:: {module}"])
        listed = "\n".join(
            f"* :doc:`{page_of(module)}`: {first_line(module).removeprefix(f'{title}: ')}"
            for module, title in contents.items()
        )
        contained = "".join(f"\n   {page_of(module)}" for module in contents)
        toctree = f".. toctree::\n   :hidden:\n{contained}"
        write_page(part.partition(" ")[0].lower(), part, [listed, toctree])


def first_line(module: str) -> str:
    """First sentence of a module's docstring."""
    spec = importlib.util.find_spec(module)
    assert spec
    assert spec.origin
    text = get_docstring(parse(Path(spec.origin).read_text())) or ""
    return " ".join(text.partition("\n\n")[0].split())


def page_of(module: str) -> str:
    """Name of a module's page."""
    return module.removeprefix(f"{PACKAGE}.")


def write_page(name: str, title: str, blocks: Iterable[str]) -> None:
    """Write a page of the reference."""
    text = "\n\n".join([f"{title}\n{'=' * len(title)}", *blocks])
    (DOCS / "reference" / f"{name}.rst").write_text(f"{text}\n")


def link_pages(app: "Sphinx", page: str, source: list[str]) -> None:
    """Begin the index with the README, and name files outside this folder in place of links."""
    text = source[0]
    if page == "index":
        readme = (DOCS.parent / "README.md").read_text().replace("](docs/", "](")
        text = f"{readme}\n{text}"
    outside = r"\[([^\]]+)\]\(((?:\.\./|notebooks/|[A-Z]+\.)[^)]*)\)"
    source[0] = re.sub(outside, lambda link: f"{link[1]} (`{link[2].lstrip('./')}`)", text)


def keep_colons(
    app: "Sphinx", what: str, name: str, of: object, options: Any, lines: list[str]
) -> None:
    """Keep napoleon from reading what precedes a colon in an attribute's first line as its type."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = f": {lines[0]}"  # an empty type


def keep_lines(
    app: "Sphinx", what: str, name: str, of: object, options: Any, lines: list[str]
) -> None:
    """Keep the lines of equations, which are indented paragraphs, as line blocks."""
    outer = ""  # the last line that is in no such paragraph
    for number, line in enumerate(lines):
        above = lines[number - 1] if number else ""
        begins = not above.strip() or above.startswith("    | ")
        if line.startswith("    ") and begins and not outer.startswith((" ", ":", "..", "* ")):
            lines[number] = f"    | {line[4:]}"
        elif line.strip():
            outer = line


def link_short_name(
    app: "Sphinx", env: "BuildEnvironment", node: "pending_xref", content: "Element"
) -> "Element | None":
    """Link the name of a class or a function to its only entry, whichever module names it."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"]
    domain: Any = env.get_domain("py")
    kinds = {"class", "exception", "function"} | ({"method", "attribute"} if "." in name else set())
    entries = [
        full
        for full, entry in domain.objects.items()
        if full.endswith(f".{name}") and entry.objtype in kinds and not entry.aliased
    ]
    if len(entries) != 1:
        return None
    link: Element | None = domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", entries[0], node, content
    )
    return link


def setup(app: "Sphinx") -> None:
    """Connect the functions above."""
    app.connect("builder-inited", write_reference)
    app.connect("source-read", link_pages)
    app.connect("autodoc-process-docstring", keep_colons, priority=100)  # before napoleon's
    app.connect("autodoc-process-docstring", keep_lines, priority=900)  # after it
    app.connect("missing-reference", link_short_name)
