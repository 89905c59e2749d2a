"""The edit as a file, only what was changed, with what it was made from; and in pipelines."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from erasure_lightning.adapters.base import AdapterPlan, adapters_of, refuse_saving, remove_adapters
from erasure_lightning.adapters.kinds import install
from erasure_lightning.adapters.lora import merged_weights
from erasure_lightning.edits.components import Component, fingerprints, is_same
from erasure_lightning.edits.format import EDIT_FORMAT, current_name, read_metadata
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import EDIT_FILE, json_text, write_atomically

#: The attribute of a component that lists the edits it holds.
MARK = "erasure_edits"


def plain(value: Any) -> Any:
    """Dataclasses and objects as what YAML can say of them."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def write_edit(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write an edit.

    Args:
        path: Where to; replaced atomically.
        tensors: Edited values by `Backbone.component_name`, ``unet.down_blocks...``.
        metadata: What it was made from; anything JSON holds.
    """
    # One entry, since safetensors writes several in an order of its own: equal edits are to be
    # equal files.
    text = json_text({"format": EDIT_FORMAT, **metadata}, str(path))
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(values, metadata={"erasure": text}))


def read_edit(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Edited values by name, and the metadata, both in today's layout.

    Raises:
        ErasureError: If the file is missing, is no safetensors file, is cut short, is no edit, or
            one of a later layout.
    """
    if not path.is_file():
        raise ErasureError(f"No edit at {path}: the file does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {current_name(n): file.get_tensor(n) for n in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ErasureError(
            f"{path} cannot be read as safetensors ({error}). It may be cut short, or a pickle,"
            " which is never read."
        ) from error
    return tensors, read_metadata(path, header)


def apply_edit(path: str | Path, pipeline: Any, transfer: bool = False) -> dict[str, Any]:
    """Put an edit into a pipeline: the one it was trained on, or another with the same component.

    A trained text encoder transfers to every pipeline with the same one, whatever its UNet.
    Low-rank adapters are merged into the weights; other adapters stand beside them, and such a
    pipeline refuses to be saved. An edit that a pipeline holds already is left as it is.

    Args:
        path: An ``edit.safetensors`` or the run folder that holds it.
        pipeline: A diffusers pipeline, or anything with the same component names.
        transfer: Accept components of equal shapes and other weights.

    Returns:
        The edit's metadata, and under ``transferred`` the components that needed ``transfer``.

    Raises:
        ErasureError: If the pipeline lacks a component, has another one, holds another edit in it,
            or keeps its weights where an edit would not act.
    """
    path = Path(path)
    tensors, metadata = read_edit(path / EDIT_FILE if path.is_dir() else path)
    changes = list(_changes(tensors, metadata, pipeline))
    due = [change for change in changes if change.is_due(transfer)]
    for change in due:
        change.install()
    for change in due:
        change.write()
    if any(change.plan for change in due) and hasattr(pipeline, "save_pretrained"):
        pipeline.save_pretrained = partial(_save_pretrained, pipeline)
    return metadata | {
        "transferred": [change.component.name for change in changes if change.transferred]
    }


def _changes(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], pipeline: Any
) -> Iterator["_Change"]:
    about = f"{metadata.get('method', '').rpartition('.')[2]} of {_concepts(metadata)}"
    for name in sorted({name.partition(".")[0] for name in tensors}):
        values = {
            n.removeprefix(f"{name}."): v for n, v in tensors.items() if n.startswith(f"{name}.")
        }
        given = metadata.get("adapters", {}).get(name)
        plan = AdapterPlan(**given) if given else None
        if plan and plan.kind == "lora":
            values, plan = merged_weights(values), None
        yield _Change(
            Component(pipeline, name),
            values,
            plan,
            metadata.get("fingerprints", {}).get(name),
            about,
        )


def _concepts(metadata: Mapping[str, Any]) -> str:
    names = [concept["name"] for concept in metadata.get("concepts", [])]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@dataclass
class _Change:
    """What an edit does to one component.

    Args:
        component: Of the pipeline.
        values: New values by plain name; an adapter's too.
        plan: Adapters that stand beside layers.
        made_on: `fingerprints` of the component it was made on; None in an edit of layout 1.
        about: The edit, in short.
        transferred: Whether the component is another than that.
    """

    component: Component
    values: dict[str, Tensor]
    plan: AdapterPlan | None
    made_on: dict[str, str] | None
    about: str
    transferred: bool = False

    def is_due(self, transfer: bool) -> bool:
        """Whether it must be written, since the component does not hold it yet.

        Raises:
            ErasureError: If it must not be written, or would change no value.
        """
        if not self.component.differing(self.values):
            marks = self._marks()
            self._require_effect(bool(marks) or self.plan is not None or not self._is_own())
            self.transferred = any(m["transferred"] for m in marks if m["edit"] == self.about)
            return False
        self.component.require_writable(adapters=self.plan is not None)
        if adapters_of(self.component.module) and (self.plan or not transfer):
            raise ErasureError(
                f"The edit needs {self.component.title} without adapters; found those of another"
                f" edit{self._held()}. Load the pipeline again, or erase all concepts in one fit."
            )
        if not self.plan:
            self.component.require_shapes(self.values)
        self.transferred = not self._is_own()
        if self.transferred and not transfer:
            self._refuse()
        return True

    def _is_own(self) -> bool:
        """Whether the component is the one that the edit was made on."""
        return self.made_on is not None and is_same(
            self.made_on, fingerprints(self.component.module)
        )

    def _refuse(self) -> None:
        title, marks = self.component.title, self._marks()
        if self.made_on is None:
            found = "an edit of an earlier version, which does not say which. Fit it again"
        elif marks:
            found = (
                f"one that holds another edit{self._held()}. Load the pipeline again, erase all"
                " concepts in one fit"
            )
        elif self.made_on["native"] == self.made_on["bfloat16"] and self.component.is_float16():
            found = "float16, by which a bfloat16 base is not known. Load it in float32 or bfloat16"
        else:
            found = (
                "another of equal shapes, or one that was changed since. Apply it to the model it"
                " was made on"
            )
        raise ErasureError(
            f"The edit needs {title} to be the {self.component.name} it was made on; found {found},"
            " or accept it with apply_edit(..., transfer=True)."
        )

    def _held(self) -> str:
        return "".join(f" ({mark['edit']})" for mark in self._marks()[-1:])

    def _marks(self) -> list[dict[str, Any]]:
        marks: list[dict[str, Any]] = vars(self.component.module).setdefault(MARK, [])
        return marks

    def install(self) -> None:
        """Put the adapters in, if there are any; out again where they do not fit or do not act."""
        if self.plan is None:
            return
        module = self.component.module
        install(module, self.plan)
        try:
            self.component.require_shapes(self.values)
            self.component.write(self.values)
            self._require_effect(not all(adapter.is_identity() for adapter in adapters_of(module)))
        except ErasureError:
            remove_adapters(module)
            raise

    def write(self) -> None:
        """Write the values, and leave a mark."""
        if self.plan is None:
            self.component.write(self.values)
        self._marks().append({"edit": self.about, "transferred": self.transferred})

    def _require_effect(self, has: bool) -> None:
        if not has:
            dtype = str(next(iter(self.component.parameters().values())).dtype).removeprefix(
                "torch."
            )
            raise ErasureError(
                f"The edit needs to change {self.component.title}; found its {len(self.values)}"
                f" tensors to be, in {dtype}, what the component is without it. Fit it longer, or"
                " apply it in a finer precision."
            )


def _save_pretrained(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
    """A pipeline's ``save_pretrained``, refused before it writes while a component has adapters."""
    for component in vars(pipeline).values():
        if isinstance(component, nn.Module) and adapters_of(component):
            refuse_saving(component)
    return type(pipeline).save_pretrained(pipeline, *args, **kwargs)
