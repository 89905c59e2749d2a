"""Reads the transaction log of an offline W&B run with W&B's own message types.

The file is a LevelDB log (blocks of 32 KiB; a record is checksum, length, type, content, and may
span blocks) after a header of 7 bytes.
"""

import json
import struct
import time
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER, FULL, LAST = 32768, 7, 1, 4


def records(file):
    """Every record, in order."""
    content = file.read_bytes()
    at = HEADER
    parts = []
    assert content.startswith(b":W&B")
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        parts.append(content[at + HEADER : at + HEADER + length])
        at += HEADER + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def finished(folder, timeout=60):
    """The records of a finished run; W&B's process writes the last ones after the run has ended."""
    for _ in range(timeout * 10):
        run_records = [record for file in folder.glob("run-*.wandb") for record in records(file)]
        if run_records and run_records[-1].HasField("exit"):
            return run_records
        time.sleep(0.1)
    raise AssertionError(f"{folder} holds no finished run")


class OfflineRun:
    """Content of an offline run.

    Args:
        folder: The run's folder, ``wandb/offline-run-...``.
    """

    def __init__(self, folder):
        self.folder = folder
        self.records = finished(folder)
        of = {
            kind: [r for r in self.records if r.WhichOneof("record_type") == kind]
            for kind in self.kinds()
        }
        self.run = of["run"][0].run
        self.artifacts = {r.artifact.name: r.artifact for r in of["artifact"]}
        self.history = [_items(r.history.item) for r in of["history"]]
        self.summary = {}
        self.config = {}
        for r in of["summary"]:
            self.summary |= _items(r.summary.update)
        for r in self.records:
            update = r.run.config.update if r.HasField("run") else r.config.update
            self.config |= _items(update)

    def kinds(self):
        """The kinds of records."""
        return [field.name for field in Record.DESCRIPTOR.oneofs_by_name["record_type"].fields]

    def curve(self, name):
        """Every value of a metric, by step."""
        return {row["trainer/global_step"]: row[name] for row in self.history if name in row}

    def table(self, name):
        """Columns and rows of a table; asserts that its artifact holds every image."""
        assert any(f"{name}.path" in row for row in self.history)
        artifact = self.artifacts[f"run-{self.run.run_id}-{name}"]
        files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
        content = json.loads(files[f"{name}.table.json"].read_text())
        for cell in (cell for row in content["data"] for cell in row if isinstance(cell, dict)):
            assert files[cell["path"]].read_bytes().startswith(b"\x89PNG")
        return content["columns"], content["data"]


def _items(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
