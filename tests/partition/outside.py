"""An auditor's check of a manifest with nothing but pyarrow and hashlib: none of our code, so none of its mistakes.

`check(manifest, corpus)` asserts every digest of the commit, the conservation law against the input itself, every text's
digest, the id index and the quarantine. It can be run as a script: `python outside.py MANIFEST CORPUS`.
"""

import gzip
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def check(manifest: Path, corpus: Path) -> dict[str, Any]:
    """Assert all of it, and return the commit's body."""
    commit = json.loads((manifest / "commits" / "00000.json").read_bytes())
    body = commit["body"]
    assert commit["body_sha256"] == sha256(canonical(body))
    assert commit["sha256"] == sha256(canonical({key: value for key, value in commit.items() if key != "sha256"}))
    tables = read_files(manifest, body["files"])
    aside = pa.concat_tables([tables[path] for path in tables if path.startswith("quarantine/")] or [pa.table({})])
    data = {path: table for path, table in tables.items() if path.startswith("data/")}
    check_conservation(body["counts"], read_input(corpus), data, aside)
    check_documents(data, body)
    check_ids(data, [tables[path] for path in sorted(tables) if path.startswith("ids/")])
    return dict(body)


def read_files(manifest: Path, entries: list[dict[str, Any]]) -> dict[str, pa.Table]:
    """Check path, size, digest and rows of every file of the commit, and that there are no others; return the tables."""
    tables = {}
    for entry in entries:
        data = (manifest / entry["path"]).read_bytes()
        assert (len(data), sha256(data)) == (entry["bytes"], entry["sha256"]), entry["path"]
        assert entry["sha256"][:16] in entry["path"]
        if entry["path"].endswith(".parquet"):
            tables[entry["path"]] = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
            assert tables[entry["path"]].num_rows == entry["rows"], entry["path"]
        else:
            assert entry["rows"] is None
    found = {path.relative_to(manifest).as_posix() for path in manifest.rglob("*") if path.is_file()}
    found = {path for path in found if not path.startswith("_work/")}
    assert found == {entry["path"] for entry in entries} | {"commits/00000.json", "README.md"}
    return tables


def read_input(corpus: Path) -> Counter[str]:
    """Count the records of the input and their raw bytes: a line without its newline, or a Parquet text."""
    counts: Counter[str] = Counter()
    for path in sorted(corpus.rglob("*")):
        if path.suffix == ".parquet":
            texts = [value.as_py() or "" for value in pq.read_table(path)["text"]]
            counts += Counter(records=len(texts), bytes=sum(len(text.encode()) for text in texts))
        elif path.is_file():
            data = path.read_bytes()
            if path.suffix == ".gz":
                data = gzip.decompress(data)
            elif path.suffix == ".zst":
                data = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
            lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
            counts += Counter(records=len(lines), bytes=sum(map(len, lines)))
    return counts


def check_conservation(counts: dict[str, Any], read: Counter[str], data: dict[str, pa.Table], aside: pa.Table) -> None:
    """Read = published + quarantined + duplicates, in records and raw bytes; and each against the files themselves."""
    assert counts["read"] == {"records": read["records"], "bytes": read["bytes"]}
    parts = [counts["published"], *counts["quarantined"].values(), *counts["duplicates"].values()]
    for unit in ("records", "bytes"):
        assert counts["read"][unit] == sum(part[unit] for part in parts), unit
    assert counts["published"]["records"] == sum(table.num_rows for table in data.values())
    assert counts["text_bytes"] == sum(len(text.as_py().encode()) for table in data.values() for text in table["text"])
    by_reason: dict[str, Counter[str]] = {}
    for row in aside.to_pylist():
        by_reason.setdefault(row["reason"], Counter()).update(records=1, bytes=row["num_bytes"])
    assert by_reason == counts["quarantined"] | counts["duplicates"]


def check_documents(data: dict[str, pa.Table], body: dict[str, Any]) -> None:
    """Text digests and lengths, domain and split of each file, groups that are not torn, ids that are unique."""
    splits: Counter[str] = Counter()
    split_of_group: dict[str, str] = {}
    seen: set[str] = set()
    for path, table in data.items():
        assert set(table["domain"].to_pylist()) == {path.split("/")[1]}
        assert len(set(table["split"].to_pylist())) == 1, f"{path} mixes splits"
        for row in table.to_pylist():
            text = row["text"].encode()
            assert (row["text_sha256"], row["num_bytes"]) == (sha256(text), len(text)), row["doc_id"]
            splits[row["split"]] += 1
            group = "t" + row["text_sha256"] if row["group"] is None else "g" + row["group"]
            assert split_of_group.setdefault(group, row["split"]) == row["split"], f"{group} is torn"
            seen.add(row["doc_id"])
    assert len(seen) == sum(splits.values())
    assert +splits == +Counter(body["splits"])


def check_ids(data: dict[str, pa.Table], ids: list[pa.Table]) -> None:
    """Every document is found by its hash, in order, at the domain, part and row where it is."""
    table = pa.concat_tables(ids)
    hashes = [int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:8], "big") for doc_id in table["doc_id"].to_pylist()]
    assert table["id_hash"].to_pylist() == hashes == sorted(hashes)
    by_part = {(path.split("/")[1], int(path.split("part-")[1][:5])): table["doc_id"].to_pylist() for path, table in data.items()}
    assert table.num_rows == sum(map(len, by_part.values()))
    for row in table.to_pylist():
        assert by_part[row["domain"], row["part"]][row["row"]] == row["doc_id"]


if __name__ == "__main__":
    check(Path(sys.argv[1]), Path(sys.argv[2]))
