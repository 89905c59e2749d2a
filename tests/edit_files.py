"""Edit files of tests: their tensors and metadata."""

from erasure_lightning.edits.edit import StoredEdit, read_edit


def read_content(path):
    """Tensors and metadata of an edit's file."""
    edit = read_edit(path)
    return edit.tensors, edit.metadata


def write_content(path, tensors, metadata):
    """Writes an edit's file."""
    StoredEdit(tensors, metadata).save(path)
