"""Fixtures of the manifest tests: the golden manifest, a copy of it, and a forger who breaks a copy in one consistent way."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.card import write_card
from lmsplit.manifests.commit import canonical, digest
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest


@pytest.fixture(scope="session")
def golden_path() -> Path:
    """The golden manifest of format version 1. Never change it: take `copy_path`."""
    return Path(__file__).parent.parent / "golden" / "v1"


@pytest.fixture
def copy_path(golden_path: Path, tmp_path: Path) -> Path:
    """A copy of the golden manifest, to be broken."""
    return Path(shutil.copytree(golden_path, tmp_path / "manifest"))


class Forger:
    """Changes a manifest so that every digest holds again: what is left wrong is what the test is about."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commit_path = root / "commits" / "00000.json"

    def path(self, prefix: str) -> str:
        """Return the first path of the commit that starts with `prefix`."""
        files = json.loads(self.commit_path.read_bytes())["body"]["files"]
        return next(entry["path"] for entry in files if entry["path"].startswith(prefix))

    def body(self, change: Callable[[dict[str, Any]], None], *, card: bool = True) -> None:
        """Change the commit's body."""
        commit = json.loads(self.commit_path.read_bytes())
        change(commit["body"])
        rest = {key: commit[key] for key in ("body", "created_at", "actor")} | {"body_sha256": digest(commit["body"])}
        self.commit_path.write_bytes(canonical(rest | {"sha256": digest(rest)}) + b"\n")
        if card:
            write_card(Manifest.open(self.root))

    def file(self, prefix: str, data: bytes, *, rows: int | None = None, card: bool = True) -> str:
        """Give a file other bytes, the name that they demand, and its entry; return its new path."""
        old = self.path(prefix)
        sha256 = hashlib.sha256(data).hexdigest()
        stem, _, suffix = old.partition(".")
        new = f"{stem[:-16]}{sha256[:16]}.{suffix}"
        (self.root / old).unlink()
        (self.root / new).write_bytes(data)

        def change(body: dict[str, Any]) -> None:
            entry = next(entry for entry in body["files"] if entry["path"] == old)
            entry |= {"path": new, "bytes": len(data), "sha256": sha256, "rows": entry["rows"] if rows is None else rows}
            body["files"].sort(key=lambda each: each["path"])
            body |= {role: new for role in ("plan", "domains", "placement") if body[role] == old}

        self.body(change, card=card)
        return new

    def table(self, prefix: str, change: Callable[[pa.Table], pa.Table], *, card: bool = True) -> str:
        """Change a Parquet file; return its new path."""
        old = pq.read_table(self.root / self.path(prefix))
        table = change(old)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        return self.file(prefix, sink.getvalue().to_pybytes(), rows=table.num_rows, card=card)

    def value(self, prefix: str, column: str, row: int, value: Any, *, card: bool = True) -> str:
        """Change one value of a Parquet file; `value` may be a function of the old one. Return the file's new path."""

        def change(table: pa.Table) -> pa.Table:
            values = table[column].to_pylist()
            values[row] = value(values[row]) if callable(value) else value
            return _with(table, column, values)

        return self.table(prefix, change, card=card)

    def count_words(self) -> int:
        """Count tokens in a manifest that has none: one a word, in rows, domain table and commit; return their sum."""
        words: dict[str, int] = {}

        def count(table: pa.Table) -> pa.Table:
            texts, domains = table["text"].to_pylist(), table["domain"].to_pylist()
            numbers = [len(text.split()) for text in texts]
            words[domains[0]] = words.get(domains[0], 0) + sum(numbers)
            return _with(table, "num_tokens", numbers)

        for entry in Manifest.open(self.root).data_files():
            self.table(entry.path, count, card=False)
        self.table("domains", lambda table: _with(table, "num_tokens", list(words.values())), card=False)
        self.body(lambda body: body["counts"].update(tokens=sum(words.values())))
        return sum(words.values())

    def found(self, **options: Any) -> list[tuple[str, str]]:
        """Verify the manifest; return the code and place of each finding."""
        return [(finding.code, finding.where) for finding in verify_manifest(self.root, **options)]


def _with(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


@pytest.fixture
def forger(copy_path: Path) -> Forger:
    """A forger at work on `copy_path`."""
    return Forger(copy_path)
