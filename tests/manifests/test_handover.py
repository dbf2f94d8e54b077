"""A hand-over is a manifest: it verifies, reads and is looked up as any other, and holds the chosen documents to the last bit."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests import commit as commits
from lmsplit.manifests import schema
from lmsplit.manifests.commit import Amount, ExportedFrom, canonical, digest, parse_commit
from lmsplit.manifests.errors import ConfigurationError, DamagedError, ManifestError
from lmsplit.manifests.handover import export_manifest
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition

CHOSEN = ["d00000", "d00002"]


def rows_of(manifest: Manifest, domain: str, split: str | None = None) -> list[dict[str, Any]]:
    return [row for batch in manifest.documents(domain, split) for row in batch.to_pylist()]


def add_file(forger: Any, path_of: Callable[[str], str], table: pa.Table) -> str:
    """Put a further Parquet file into a forged manifest."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    sha256 = hashlib.sha256(data).hexdigest()
    path = path_of(sha256[:16])
    (forger.root / path).parent.mkdir(parents=True, exist_ok=True)
    (forger.root / path).write_bytes(data)
    entry = {"path": path, "bytes": len(data), "rows": table.num_rows, "sha256": sha256}
    forger.body(lambda body: body.update(files=sorted([*body["files"], entry], key=lambda each: each["path"])))
    return path


def exclude(forger: Any, *pairs: tuple[str, str]) -> None:
    rows = [{"doc_id": doc_id, "heldout_doc_id": near, "similarity": 0.9} for doc_id, near in pairs]
    table = pa.Table.from_pylist(rows, schema.EXCLUSIONS)
    add_file(forger, lambda sha: f"exclusions/part-00000-{sha}.parquet", table)


@pytest.fixture
def handed(golden_path: Path, tmp_path: Path) -> Manifest:
    """Two of the golden manifest's three domains, the middle one left behind."""
    return export_manifest(Manifest.open(golden_path), tmp_path / "handed", CHOSEN)


def test_handover_is_a_sound_manifest(handed: Manifest) -> None:
    """With every check there is, the placement of every document by the whole rule among them."""
    assert verify_manifest(handed.store.root, deep=True) == []


def test_handover_holds_the_documents_of_the_chosen_domains(golden_path: Path, handed: Manifest) -> None:
    """Row by row, in every split, and no others."""
    original = Manifest.open(golden_path)
    assert [domain.domain for domain in handed.domains] == CHOSEN
    for domain in CHOSEN:
        assert handed.domain(domain) == original.domain(domain)
        for split in (None, *schema.SPLITS):
            assert rows_of(handed, domain, split) == rows_of(original, domain, split)
    with pytest.raises(ManifestError, match="has no domain 'd00001'"):
        next(handed.documents("d00001"))


def test_handover_finds_its_documents_and_no_others(golden_path: Path, handed: Manifest) -> None:
    """Through an index of the same ranges, each sorted."""
    original = Manifest.open(golden_path)
    for domain in original.domains:
        for row in rows_of(original, domain.domain):
            found = handed.find(row["doc_id"])
            assert found.document == (row if domain.domain in CHOSEN else None)
            assert found.status == ("published" if domain.domain in CHOSEN else "unknown")
    ranges = [[e.path[:9] for e in each.body.files if e.path.startswith("ids/")] for each in (original, handed)]
    assert ranges[0] == ranges[1]
    hashes = [pq.read_table(path)["id_hash"].to_pylist() for path in sorted(handed.store.root.glob("ids/*"))]
    assert [sorted(each) for each in hashes] == hashes


def test_handover_says_where_it_comes_from(golden_path: Path, handed: Manifest) -> None:
    """And begins a history of its own, which nothing was set aside from."""
    original, body = Manifest.open(golden_path), handed.body
    assert body.exported_from == ExportedFrom(commit=original.digest, domains=("d00000", "d00002"))
    assert (body.parent, body.gate, body.tombstones) == (None, None, ())
    text_bytes = sum(len(row["text"].encode()) for domain in CHOSEN for row in rows_of(original, domain))
    assert body.counts.read == body.counts.published == Amount(records=22, bytes=text_bytes)
    assert (body.counts.quarantined, body.counts.duplicates, body.counts.text_bytes) == ({}, {}, text_bytes)
    assert body.splits == {split: sum(original.domain(domain).splits[split] for domain in CHOSEN) for split in schema.SPLITS}
    folders = {path.name for path in handed.store.root.iterdir()}
    assert folders == {"README.md", "commits", "data", "domains", "ids", "placement", "plans"}


def test_handover_keeps_what_says_how_the_documents_came_to_be(golden_path: Path, handed: Manifest) -> None:
    """Plan, rule, configuration, encoder, software and tier; the run is another one."""
    original, body = Manifest.open(golden_path).body, handed.body
    for key in ("plan", "placement", "encoder", "columns", "configuration", "software", "tier", "heldout_fraction"):
        assert getattr(body, key) == getattr(original, key)
    assert body.run_id != original.run_id
    assert body.domains != original.domains


def test_handover_shares_the_data_with_the_manifest(golden_path: Path, handed: Manifest) -> None:
    """Files are linked, not copied, where that can be."""
    for entry in handed.data_files():
        assert handed.store.path(entry.path).samefile(golden_path / entry.path)


def test_handover_has_the_same_body_each_time(golden_path: Path, handed: Manifest, tmp_path: Path) -> None:
    """In whatever order the domains are named."""
    again = export_manifest(Manifest.open(golden_path), tmp_path / "again", ["d00002", "d00000", "d00002"])
    assert again.digest == handed.digest
    other = export_manifest(Manifest.open(golden_path), tmp_path / "other", ["d00002"])
    assert (other.digest, other.body.run_id) != (handed.digest, handed.body.run_id)


def test_handover_can_be_handed_over(golden_path: Path, handed: Manifest, tmp_path: Path) -> None:
    """It then comes from the hand-over."""
    second = export_manifest(handed, tmp_path / "second", ["d00002"])
    assert verify_manifest(tmp_path / "second", deep=True) == []
    assert second.body.exported_from == ExportedFrom(commit=handed.digest, domains=("d00002",))
    assert rows_of(second, "d00002") == rows_of(Manifest.open(golden_path), "d00002")


def test_handover_of_all_domains_differs_only_in_what_was_set_aside(golden_path: Path, tmp_path: Path) -> None:
    """The domain table, the index and the data are the same files."""
    names = [domain.domain for domain in Manifest.open(golden_path).domains]
    whole = export_manifest(Manifest.open(golden_path), tmp_path / "whole", names)
    kept = [entry for entry in Manifest.open(golden_path).body.files if entry.path.startswith(("data/", "plans/", "placement/"))]
    assert set(kept) <= set(whole.body.files)
    assert whole.domains == Manifest.open(golden_path).domains
    assert verify_manifest(tmp_path / "whole", deep=True) == []


def test_handover_of_a_published_manifest_is_sound(manifest_path: Path, tmp_path: Path) -> None:
    """One that the pipeline made, its card included; `load_dataset` reads it."""
    original = Manifest.open(manifest_path)
    calls: list[int] = []
    handed = export_manifest(original, tmp_path / "handed", ["d00001", "d00003"], calls.append)
    assert verify_manifest(tmp_path / "handed", deep=True) == []
    carried = [e for e in handed.body.files if e.path.startswith(("data/", "plans/", "placement/"))]
    assert calls
    assert sum(calls) == sum(entry.bytes for entry in carried)
    loaded = datasets.load_dataset(str(tmp_path / "handed"), "d00003", cache_dir=str(tmp_path / "cache"))
    expected = {split: number for split, number in original.domain("d00003").splits.items() if number}
    assert {str(split): len(rows) for split, rows in loaded.items()} == expected
    assert loaded["train"]["doc_id"][:] == [row["doc_id"] for row in rows_of(original, "d00003", "train")]


def test_handover_out_of_a_hierarchy_is_sound(corpus_path: Path, tmp_path: Path) -> None:
    """Leaves of two branches; kept vectors stay behind."""
    configuration = {"domains": [2, 2], "encoder": "lexical", "keep_embeddings": True, "executor": {"workers": 0}}
    partition(Partition.model_validate(configuration | {"input": str(corpus_path), "output": str(tmp_path / "tree")}))
    original = Manifest.open(tmp_path / "tree")
    assert any(entry.path.startswith("embeddings/") for entry in original.body.files)
    assert original.body.gate is not None
    handed = export_manifest(original, tmp_path / "handed", ["d00000", "d00003"])
    assert verify_manifest(tmp_path / "handed", deep=True) == []
    assert [domain.path for domain in handed.domains] == [(0, 0), (1, 1)]
    assert not any(entry.path.startswith(("embeddings/", "quarantine/")) for entry in handed.body.files)
    assert "It judged all domains of the manifest" in (tmp_path / "handed" / "README.md").read_text()


def test_handover_counts_tokens_where_the_manifest_does(copy_path: Path, forger, tmp_path: Path) -> None:
    """Those of the chosen domains."""
    forger.count_words()
    handed = export_manifest(Manifest.open(copy_path), tmp_path / "handed", CHOSEN)
    words = sum(len(row["text"].split()) for domain in CHOSEN for row in rows_of(handed, domain))
    assert handed.body.counts.tokens == words
    assert verify_manifest(tmp_path / "handed", deep=True) == []


def test_handover_keeps_the_reasons_of_its_excluded_documents(copy_path: Path, forger, tmp_path: Path) -> None:
    """Also where the held-out document is in a domain that was left behind."""
    excluded = next(row["doc_id"] for row in rows_of(Manifest.open(copy_path), "d00002", "excluded"))
    twin = next(row["doc_id"] for row in rows_of(Manifest.open(copy_path), "d00001", "heldout"))
    exclude(forger, (excluded, twin))
    assert verify_manifest(copy_path, deep=True) == []
    export_manifest(Manifest.open(copy_path), tmp_path / "handed", CHOSEN)
    assert verify_manifest(tmp_path / "handed", deep=True) == []
    (kept,) = (tmp_path / "handed").glob("exclusions/*")
    assert pq.read_table(kept).to_pylist() == [{"doc_id": excluded, "heldout_doc_id": twin, "similarity": pytest.approx(0.9)}]
    other = export_manifest(Manifest.open(copy_path), tmp_path / "other", ["d00001"])
    assert not any(entry.path.startswith("exclusions/") for entry in other.body.files)
    assert verify_manifest(tmp_path / "other", deep=True) == []


def test_verify_finds_a_handover_without_the_reason_of_an_excluded_document(copy_path: Path, forger, tmp_path: Path) -> None:
    """So the filter of the exclusions is looked at, not taken on trust."""
    excluded = next(row["doc_id"] for row in rows_of(Manifest.open(copy_path), "d00002", "excluded"))
    twin = next(row["doc_id"] for row in rows_of(Manifest.open(copy_path), "d00002", "heldout"))
    exclude(forger, (excluded, twin))
    export_manifest(Manifest.open(copy_path), tmp_path / "handed", ["d00002"])
    hand = type(forger)(tmp_path / "handed")
    hand.value("exclusions", "doc_id", 0, twin)
    assert {code for code, _ in hand.found(deep=True)} == {"exclusions"}


def test_handover_of_a_domain_without_documents_is_sound(copy_path: Path, forger, tmp_path: Path) -> None:
    """An empty domain is in the table and nowhere else."""

    def add(table: pa.Table) -> pa.Table:
        empty = table.slice(0, 1).to_pylist()[0] | {
            "domain": "d00003",
            "representatives": [],
            "excerpts": [],
            "mean_distance": None,
        }
        empty |= {name: 0 for name in table.schema.names if name.startswith("num_") and name != "num_tokens"}
        return pa.concat_tables([table, pa.Table.from_pylist([empty], table.schema)])

    forger.table("domains", add)
    handed = export_manifest(Manifest.open(copy_path), tmp_path / "handed", ["d00003"])
    assert (handed.body.counts.published, handed.data_files()) == (Amount(), [])
    assert verify_manifest(tmp_path / "handed", deep=True) == []
    assert handed.find("book-00").status == "unknown"


def test_handover_copies_where_no_link_can_be(golden_path: Path, tmp_path: Path, monkeypatch) -> None:
    """Another file system: the same body, from files of its own."""
    linked = export_manifest(Manifest.open(golden_path), tmp_path / "linked", CHOSEN)
    link = os.link

    def refuse(source: Any, target: Any, **options: Any) -> None:
        if str(golden_path) in str(source):
            raise OSError(errno.EXDEV, "another device")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", refuse)
    copied = export_manifest(Manifest.open(golden_path), tmp_path / "copied", CHOSEN)
    assert copied.digest == linked.digest
    first = copied.data_files()[0].path
    assert not copied.store.path(first).samefile(golden_path / first)
    monkeypatch.undo()
    assert verify_manifest(tmp_path / "copied", deep=True) == []


def test_handover_finds_another_byte_while_it_copies(copy_path: Path, forger, tmp_path: Path, monkeypatch) -> None:
    """And leaves nothing behind."""
    path = copy_path / forger.path("data/d00002")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    link = os.link

    def refuse(source: Any, target: Any, **options: Any) -> None:
        if str(copy_path) in str(source):
            raise OSError(errno.EPERM, "not yours")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(DamagedError, match=r"should have sha256 [0-9a-f]{64}, found sha256 [0-9a-f]{64}: run lmsplit verify"):
        export_manifest(Manifest.open(copy_path), tmp_path / "handed", CHOSEN)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["manifest"]


def test_handover_follows_the_symbolic_links_of_a_downloaded_manifest(copy_path: Path, tmp_path: Path) -> None:
    """It gets the files, not the links."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in sorted(copy_path.rglob("*.*")):
        blob = blobs / hashlib.sha256(str(path).encode()).hexdigest()
        shutil.move(path, blob)
        path.symlink_to(blob)
    handed = export_manifest(Manifest.open(copy_path), tmp_path / "handed", CHOSEN)
    shutil.rmtree(blobs)
    assert verify_manifest(handed.store.root, deep=True) == []
    assert not any(path.is_symlink() for path in handed.store.root.rglob("*"))


@pytest.mark.parametrize(("change", "found"), [(Path.unlink, "no file"), (lambda path: path.write_bytes(b"x"), "1 bytes")])
def test_handover_names_a_file_that_is_not_there(copy_path: Path, forger, tmp_path: Path, change, found: str) -> None:
    """Or has another size, which needs no digest."""
    path = forger.path("data/d00002")
    change(copy_path / path)
    with pytest.raises(DamagedError, match=rf"should have [0-9]+ bytes, found {found}") as caught:
        export_manifest(Manifest.open(copy_path), tmp_path / "handed", CHOSEN)
    assert caught.value.path == path
    assert not (tmp_path / "handed").exists()


def test_handover_names_an_index_that_cannot_be_read(copy_path: Path, forger, tmp_path: Path) -> None:
    """It is read anew, so it is not linked blindly."""
    (copy_path / forger.path("ids/00001")).write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match="cannot be read"):
        export_manifest(Manifest.open(copy_path), tmp_path / "handed", CHOSEN)


def test_handover_needs_a_domain_that_is_there_and_an_output_that_is_not(golden_path: Path, tmp_path: Path) -> None:
    """Each refused before anything is written."""
    manifest = Manifest.open(golden_path)
    with pytest.raises(ConfigurationError, match="at least one domain"):
        export_manifest(manifest, tmp_path / "handed", [])
    with pytest.raises(ManifestError, match="has no domain 'd00009'"):
        export_manifest(manifest, tmp_path / "handed", ["d00000", "d00009"])
    (tmp_path / "handed").mkdir()
    with pytest.raises(ConfigurationError, match="handed exists"):
        export_manifest(manifest, tmp_path / "handed", CHOSEN)
    assert [entry.name for entry in tmp_path.iterdir()] == ["handed"]


def test_handover_may_have_a_name_that_looks_like_a_version(golden_path: Path, tmp_path: Path) -> None:
    """A directory may be called anything."""
    assert export_manifest(Manifest.open(golden_path), tmp_path / "handed@3", ["d00001"]).version == 0


def test_handover_out_of_an_older_commit_takes_its_files(copy_path: Path, tmp_path: Path) -> None:
    """The newest one does not matter."""
    original = Manifest.open(copy_path)
    commits.write_commit(original.store, original.body.model_copy(update={"parent": original.digest}), 1)
    handed = export_manifest(Manifest.open(f"{copy_path}@0"), tmp_path / "handed", CHOSEN)
    assert handed.body.exported_from is not None
    assert handed.body.exported_from.commit == original.digest


def test_commit_without_exported_from_is_written_as_it_was(golden_path: Path) -> None:
    """The key is absent, not null: bodies keep their digests."""
    manifest = Manifest.open(golden_path)
    assert "exported_from" not in manifest.body.model_dump(mode="json")
    assert digest(manifest.body.model_dump(mode="json")) == manifest.digest


def test_commit_of_a_handover_is_read_back(handed: Manifest) -> None:
    """And its digests hold on the raw bytes."""
    data = handed.store.read("commits/00000.json")
    assert json.loads(data)["body"]["exported_from"] == {"commit": handed.body.exported_from.commit, "domains": CHOSEN}
    assert parse_commit(data, "commits/00000.json").body == handed.body


@pytest.mark.parametrize("value", [{}, {"commit": "0" * 64, "domains": []}, {"commit": "x", "domains": ["d00000"]}, "d00000"])
def test_commit_refuses_an_origin_that_is_none(handed: Manifest, value: Any) -> None:
    """It names one manifest and at least one domain."""
    commit = json.loads(handed.store.read("commits/00000.json"))
    commit["body"]["exported_from"] = value
    rest = {key: commit[key] for key in ("body", "created_at", "actor")} | {"body_sha256": digest(commit["body"])}
    with pytest.raises(DamagedError, match="exported_from"):
        parse_commit(canonical(rest | {"sha256": digest(rest)}) + b"\n", "commits/00000.json")


def test_specification_has_the_keys_of_the_origin() -> None:
    """The table in the specification is the model."""
    specification = (Path(commits.__file__).parent / "README.md").read_text(encoding="utf-8")
    for key, field in ExportedFrom.model_fields.items():
        assert f"| `{key}` | {field.description} |" in specification


def test_handover_is_explained_compared_and_reported(manifest_path: Path, tmp_path: Path) -> None:
    """Though its rows and its rule name domains that were left behind."""
    from lmsplit.manifests.explain import explain_text
    from lmsplit.manifests.report import write_report
    from lmsplit.manifests.report_facts import Limits

    whole = Manifest.open(manifest_path)
    own = whole.domains[1].domain
    part = export_manifest(whole, tmp_path / "part", [own])
    rows = part.scan().select("doc_id", "second_domain").collect()
    for doc_id, second in rows.head(5).iter_rows():
        found = part.explain(doc_id)
        assert (found.domain, found.second_domain, found.second_label) == (own, second, None)
    elsewhere = next(domain.representatives[0] for domain in whole.domains if domain.domain != own)
    text = whole.find(elsewhere, ["text"]).document["text"]
    said = explain_text(part, text, part.encoder())
    assert said.domain == whole.explain(elsewhere).domain
    assert (said.label, said.percentile, said.representatives) == (None, None, ())
    for difference, gone, new in ((whole.diff(part), "removed", "added"), (part.diff(whole), "added", "removed")):
        assert difference.amounts["unchanged"].documents == rows.height
        assert difference.amounts[gone].documents == whole.body.counts.published.records - rows.height
        assert (difference.amounts[new].documents, difference.causes) == (0, {})
    assert whole.diff(part).alignment == {domain.domain: own if domain.domain == own else None for domain in whole.domains}
    write_report(part, tmp_path / "report.html", difference=part.diff(whole), limits=Limits(map_documents=60))
    assert own in (tmp_path / "report.html").read_text()
