"""Packages as `pip install` leaves them, without pip."""

from erasure_lightning.registry import METHOD


def install(folder, name, targets, files=None, metadata=None, group=METHOD.group):
    """Write a package's metadata and files into a folder that is, or will be, on the path.

    Args:
        folder: As it were, ``site-packages``.
        name: Name of the distribution.
        targets: Targets of its entry points, by name.
        files: Contents by path.
        metadata: Its METADATA; by default name and version.
        group: Group of its entry points.
    """
    info = f"{name}-1.0.dist-info"
    written = {
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" if metadata is None else metadata
        ),
        f"{info}/entry_points.txt": "\n".join(
            [f"[{group}]", *(f"{k} = {v}" for k, v in targets.items())]
        ),
    }
    for path, content in (written | (files or {})).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
