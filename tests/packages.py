"""Installed packages as `pip install` leaves them, without pip."""

from erasure_lightning.registry import METHOD


def install(folder, name, methods, files=None, metadata=None, kind=METHOD):
    """Write a package's metadata and files into a folder on the import path.

    Args:
        folder: Takes the place of ``site-packages``.
        name: Name of the distribution.
        methods: Its entry points, targets by name.
        files: Contents by path.
        metadata: Its METADATA; by default name and version.
        kind: Kind of the entry points.
    """
    info = f"{name}-1.0.dist-info"
    if metadata is None:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    entries = [f"[{kind.group}]", *(f"{key} = {target}" for key, target in methods.items())]
    contents = {f"{info}/METADATA": metadata, f"{info}/entry_points.txt": "\n".join(entries)}
    for path, content in (contents | (files or {})).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
