"""``erasure new-method``: writes a working method, to be rewritten into one's own."""

import keyword
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.api.configs import shipped_configs
from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.registry import METHOD, known_offers

_SKELETONS = Path(__file__).parent / "skeletons"

#: Summary of each skeleton.
_SUMMARIES = {
    "gradient": "Predicts for the concept what the original predicts for the anchor",
    "closed_form": "Maps the concept's tokens to the outputs of the anchor's",
}

#: Skeletons by their paths in a checkout of this repository; names are those of the skeletons'
#: ``MyMethod``.
_CHECKOUT = {
    "erasure_lightning/methods/my_method.py": "{shape}.py.txt",
    "configs/my-method.yaml": "{shape}.yaml.txt",
    "tests/methods/test_my_method.py": "checkout_test.py.txt",
}

#: Skeletons by their paths in a package.
_PLUGIN = {
    "erasure-my-method/pyproject.toml": "plugin.toml.txt",
    "erasure-my-method/README.md": "plugin_readme.md.txt",
    "erasure-my-method/erasure_my_method/__init__.py": "plugin_init.py.txt",
    "erasure-my-method/erasure_my_method/my_method.py": "{shape}.py.txt",
    "erasure-my-method/erasure_my_method/configs/my-method.yaml": "{shape}.yaml.txt",
    "erasure-my-method/tests/test_my_method.py": "plugin_test.py.txt",
}

TABLE = Path("erasure_lightning/methods/__init__.py")

_LINE = """\
    "MyMethod": BuiltIn(
        "erasure_lightning.methods.my_method:MyMethod",
        "SUMMARY",
        "Unpublished",
    ),
"""


def run_new_method(argv: list[str]) -> None:
    """Write a new method with its config and its test, and print the next commands.

    Raises:
        ErasureError: If the name is not free or none for a class, a file would be overwritten, or
            there is no checkout.
    """
    options = _parser().parse(argv)
    shape = "closed_form" if options.closed_form else "gradient"
    draft = Draft(class_name(options.name), shape, options.folder)
    draft.check_name()
    files, commands = draft.plugin() if options.plugin else draft.checkout()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    print("Next:", *commands, draft.filled("erasure fit --config my-method.yaml"), sep="\n  ")


def _parser() -> Arguments:
    parser = Arguments("new-method", "Write a method that works, to be rewritten into your own.")
    parser.add_argument("name", metavar="NAME", help="Its class name: MyMethod, or my-method.")
    parser.add_flags(
        plugin="As a package of its own, not in a checkout.",
        closed_form="Solved for in one step, not trained.",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="The checkout, or the package's parent folder."
    )
    return parser


def class_name(text: str) -> str:
    """``my-method`` and ``my_method`` as ``MyMethod``.

    Raises:
        ErasureError: If no class, or no module, can have that name.
    """
    name = "".join(word[:1].upper() + word[1:] for word in re.split("[-_]", text))
    module = module_name(name)
    if (
        not (name.isascii() and name.isidentifier())
        or keyword.iskeyword(name)
        or keyword.iskeyword(module)
    ):
        raise ErasureError(
            "A method needs a name that Python allows for a class, such as MyMethod; found"
            f" {text!r}."
        )
    return name


def module_name(name: str) -> str:
    """``MyMethod`` as ``my_method``; capitals in a row are one word."""
    return re.sub("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class Draft(NamedTuple):
    """A method that is to be written.

    Args:
        name: Its class name.
        shape: ``gradient`` or ``closed_form``.
        folder: The checkout, or the package's parent folder.
    """

    name: str
    shape: str
    folder: Path

    def filled(self, text: str) -> str:
        """A skeleton, or a place, with the method's names."""
        module = module_name(self.name)
        names = {"MyMethod": self.name, "my_method": module, "my-method": module.replace("_", "-")}
        names["SUMMARY"] = _SUMMARIES[self.shape]
        return re.sub("|".join(names), lambda match: names[match[0]], text)

    def files(self, places: dict[str, str]) -> dict[Path, str]:
        """Texts of the method's files, by path."""
        sources = {
            place: _SKELETONS / name.format(shape=self.shape) for place, name in places.items()
        }
        return {
            self.folder / self.filled(p): self.filled(s.read_text(encoding="utf-8"))
            for p, s in sources.items()
        }

    def check_name(self) -> None:
        """Raise if the name is taken: by a method, a config, or what the skeletons import.

        Raises:
            ErasureError: Saying by which.
        """
        taken = {m.name.casefold(): f"the method of {m.package}" for m in known_offers(METHOD)}
        skeletons = (f"{self.shape}.py.txt", "plugin_test.py.txt")
        text = "\n".join((_SKELETONS / name).read_text(encoding="utf-8") for name in skeletons)
        lines = re.findall(r"^from \S+ import (.+)$", text, re.MULTILINE)
        imported = {name for line in lines for name in line.split(", ")} - {"MyMethod"}
        taken |= {name.casefold(): "what every method or its test imports" for name in imported}
        if owner := taken.get(self.name.casefold()):
            raise ErasureError(f"The name {self.name} is taken by {owner}; choose another.")
        if config := shipped_configs().get(self.filled("my-method.yaml")):
            raise ErasureError(
                f"The name {self.name} is taken by the config {config}; choose another."
            )

    def checkout(self) -> tuple[dict[Path, str], list[str]]:
        """Files of a method among ours, with the table of methods; and how to test it.

        Raises:
            ErasureError: If there is no checkout in the folder, or one of the files.
        """
        table = self.folder / TABLE
        if not (table.is_file() and (self.folder / "pyproject.toml").is_file()):
            raise ErasureError(
                f"erasure new-method needs a checkout of erasure_lightning; {self.folder.resolve()}"
                " is none. Change to one, or add --plugin to write a package of its own."
            )
        files = self.files(_CHECKOUT)
        _check_unused(files)
        before, brace, after = table.read_text(encoding="utf-8").rpartition("\n}\n")
        if "\nMETHODS = {\n" not in before:
            raise ErasureError(
                f"erasure new-method needs {table} to end with the table METHODS, and found another"
                " end."
            )
        files[table] = f"{before}\n{self.filled(_LINE)}{brace.lstrip()}{after}"
        return files, [
            f"pytest {shell_word(self.folder / self.filled('tests/methods/test_my_method.py'))}"
        ]

    def plugin(self) -> tuple[dict[Path, str], list[str]]:
        """Files of a package of its own; and how to install and test it.

        Raises:
            ErasureError: If the folder exists, or a package of that name is installed.
        """
        root = self.folder / self.filled("erasure-my-method")
        package = self.filled("erasure_my_method")
        _check_unused([root])
        if find_spec(package):
            raise ErasureError(
                f"The name {self.name} is taken by an installed package, {package}; choose another."
            )
        return self.files(_PLUGIN), [
            f"pip install -e {shell_word(root)}",
            f"pytest {shell_word(root)}",
        ]


def _check_unused(paths: Iterable[Path]) -> None:
    if existing := [str(path) for path in paths if path.exists()]:
        raise ErasureError(
            f"{', '.join(existing)} exists already, and is not overwritten. Choose another name."
        )
