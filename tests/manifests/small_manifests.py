"""Manifests of a few made-up rows, with any rule: what `diff` reads is real, what it does not read is left out."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests import schema
from lmsplit.manifests.commit import Amount, Body, Counts, FileEntry, write_commit
from lmsplit.manifests.layout import data_path, domain_name, domains_path, placement_path, plan_path
from lmsplit.manifests.placement import PlacementRule
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.rule_files import store_rule
from lmsplit.manifests.store import LocalStore

ENCODER = {"kind": "lexical"}


def document(doc_id: str, domain: int, **facts: Any) -> dict[str, Any]:
    """A row of a data file; its text is its id unless told, its margin large."""
    text = facts.pop("text", doc_id)
    row = {
        "text": text,
        "source_path": "in.jsonl",
        "source_row": 0,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "placed_by": "centroids",
        "distance": 0.25,
        "margin": 0.5,
        "num_bytes": len(text.encode()),
        "split": "train",
    }
    second = facts.pop("second", None)
    names = {"domain": domain_name(domain), "second_domain": None if second is None else domain_name(second)}
    return row | {"doc_id": doc_id} | names | facts


def flat_rule(num_domains: int, *prices: float) -> PlacementRule:
    """Orthogonal unit centroids."""
    return PlacementRule(np.eye(num_domains, dtype=np.float32), np.array(prices or [0.0] * num_domains))


class _Maker:
    def __init__(self, root: Path) -> None:
        self.store = LocalStore(root)
        self.files: list[FileEntry] = []

    def put(self, data: bytes, path: Any, rows: int | None = None) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.store.put_bytes(data, path(sha256))
        self.files.append(FileEntry(path=path(sha256), bytes=len(data), rows=rows, sha256=sha256))
        return self.files[-1].path

    def put_table(self, rows: list[dict[str, Any]], columns: pa.Schema, path: Any) -> str:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, columns), sink)
        return self.put(sink.getvalue().to_pybytes(), path, len(rows))


def _domain(name: str, own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    splits = {f"num_{split}": sum(row["split"] == split for row in own) for split in schema.SPLITS}
    lists = {"keywords": [], "representatives": [], "excerpts": [], "path": [int(name[1:])]}
    sizes = {"num_documents": len(own), "num_bytes": sum(row["num_bytes"] for row in own)}
    return {"domain": name, "label": f"label of {name}", "price": 0.0} | lists | sizes | splits


def make_manifest(
    root: Path, rows: Sequence[dict[str, Any]], rule: PlacementRule, *, encoder: dict[str, Any] | None = None, **body: Any
) -> Manifest:
    """Publish rows made by `document`; a `configuration` or `software` may be given for the body."""
    maker = _Maker(root)
    names = [domain_name(index) for index in range(rule.num_domains)]
    tables = {name: [row for row in rows if row["domain"] == name] for name in names}
    for name, own in tables.items():
        if own:
            maker.put_table(own, schema.documents(), lambda sha256, name=name: data_path(name, 0, sha256))
    domains = [_domain(name, own) for name, own in tables.items()]
    stored = store_rule(rule, ENCODER | (encoder or {}), {})
    maker.put(stored.arrays, lambda sha256: placement_path(sha256, "safetensors"))
    paths = {
        "domains": maker.put_table(domains, schema.DOMAINS, domains_path),
        "placement": maker.put(stored.description, lambda sha256: placement_path(sha256, "json")),
        "plan": maker.put(b"{}\n", plan_path),
    }
    num_bytes = sum(row["num_bytes"] for row in rows)
    tokens = [row.get("num_tokens") for row in rows]
    amount = Amount(records=len(rows), bytes=num_bytes)
    counts = {"read": amount, "published": amount, "quarantined": {}, "duplicates": {}, "text_bytes": num_bytes}
    content = Body(
        parent=None,
        run_id="0" * 16,
        files=tuple(sorted(maker.files, key=lambda entry: entry.path)),
        **paths,
        encoder={"kind": "lexical"},
        columns={},
        counts=Counts(**counts, tokens=None if None in tokens else sum(tokens)),
        splits={},
        tier="",
        **{"configuration": {}, "software": {}} | body,
    )
    return Manifest(maker.store, 0, write_commit(maker.store, content, 0))
