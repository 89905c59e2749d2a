"""Packages as `pip install` leaves them, without pip."""

from erasure_lightning.registry import METHOD


def install(folder, name, methods, files=None, metadata=None, kind=METHOD):
    """Write a package's metadata and files into a folder that is, or will be, on the path.

    Args:
        folder: As it were, ``site-packages``.
        name: Of the distribution.
        methods: Its entry points, targets by name.
        files: Contents by path.
        metadata: Its METADATA; by default name and version.
        kind: What it offers.
    """
    info = f"{name}-1.0.dist-info"
    written = {
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" if metadata is None else metadata
        ),
        f"{info}/entry_points.txt": "\n".join(
            [f"[{kind.group}]", *(f"{k} = {v}" for k, v in methods.items())]
        ),
    }
    for path, content in (written | (files or {})).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
