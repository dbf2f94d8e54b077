"""The reader: what it opens, what it streams, and how it says that something is broken."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.commit import read_commit, write_commit
from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.reader import Manifest, open_placement
from lmsplit.manifests.schema import FIXED_COLUMNS
from lmsplit.manifests.store import LocalStore


@pytest.fixture
def golden(golden_path) -> Manifest:
    return Manifest.open(golden_path)


def rows_of(manifest: Manifest, **selection) -> list[dict]:
    return [row for batch in manifest.documents(**selection) for row in batch.to_pylist()]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def ends_of_columns(path: Path) -> list[int]:
    """Return where the last page of each column ends, but for 3 bytes."""
    group = pq.read_metadata(path).row_group(0)
    chunks = [group.column(column) for column in range(group.num_columns)]
    return [chunk.dictionary_page_offset + chunk.total_compressed_size - 3 for chunk in chunks]


def test_open_takes_the_newest_commit_and_any_older_one(copy_path):
    store = LocalStore(copy_path)
    _, first = read_commit(store)
    second = write_commit(store, first.body.model_copy(update={"parent": first.body_sha256}), 1)
    assert (Manifest.open(copy_path).version, Manifest.open(copy_path).digest) == (1, second.body_sha256)
    assert (Manifest.open(f"{copy_path}@0").version, Manifest.open(f"{copy_path}@0").digest) == (0, first.body_sha256)
    assert Manifest.open(f"file://{copy_path}@1").version == 1


def test_open_takes_a_directory_whose_own_name_ends_like_a_version(copy_path):
    named = copy_path.rename(copy_path.parent / "corpus@2")
    assert Manifest.open(f"{named}/").version == 0
    assert Manifest.open(f"{named}@0").version == 0


@pytest.mark.parametrize("location", ["absent", "absent@0", "."])
def test_open_says_what_is_no_manifest(tmp_path, monkeypatch, location):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=r"is not a manifest: it has no commits/00000\.json") as caught:
        Manifest.open(location)
    assert not isinstance(caught.value, DamagedError)


def test_open_names_the_versions_there_are(copy_path):
    with pytest.raises(ManifestError, match="@7 does not exist: its commits are 0 to 0"):
        Manifest.open(f"{copy_path}@7")


def test_open_refuses_a_damaged_commit_even_when_an_older_one_is_whole(copy_path):
    (copy_path / "commits" / "00001.json").write_text("{}\n")
    with pytest.raises(DamagedError, match=r"commits/00001\.json is damaged") as caught:
        Manifest.open(copy_path)
    assert caught.value.path == "commits/00001.json"
    assert Manifest.open(f"{copy_path}@0").version == 0


def test_domains_are_as_the_table_says(golden):
    assert [domain.domain for domain in golden.domains] == ["d00000", "d00001", "d00002"]
    sailing = golden.domain("d00001")
    assert (sailing.label, sailing.documents, sailing.price) == ("boat, wind, sail", 10, 0.015625)
    assert sum(sailing.splits.values()) == sailing.documents
    assert len(sailing.representatives) == len(sailing.excerpts) == 2


def test_domain_names_those_there_are(golden):
    with pytest.raises(ManifestError, match="has no domain 'd00009': it has d00000 to d00002"):
        golden.domain("d00009")


def test_documents_stream_every_row_once_by_domain_part_and_row(golden):
    rows = rows_of(golden)
    assert len(rows) == len({row["doc_id"] for row in rows}) == golden.body.counts.published.records
    assert list(rows[0]) == [*FIXED_COLUMNS, "license", "year"]
    expected = [row for entry in golden.data_files() for row in pq.read_table(golden.store.path(entry.path)).to_pylist()]
    assert rows == expected
    assert [row["domain"] for row in rows] == sorted(row["domain"] for row in rows)


@pytest.mark.parametrize("domain", [None, "d00000", "d00001", "d00002"])
@pytest.mark.parametrize("split", [None, "train", "heldout", "excluded"])
def test_documents_selects_domain_and_split(golden, domain, split):
    wanted = [row for row in rows_of(golden) if domain in (None, row["domain"]) and split in (None, row["split"])]
    assert rows_of(golden, domain=domain, split=split) == wanted


def test_documents_selects_a_split_also_from_files_that_mix_them(forger, copy_path):
    names = pa.array(["train", "heldout", "train", "excluded"])
    forger.table("data/d00000/part-00000", lambda table: table.set_column(16, table.schema.field("split"), names), card=False)
    rows = rows_of(Manifest.open(copy_path), split="excluded")
    assert {row["split"] for row in rows} == {"excluded"}
    assert len(rows) == 2


def test_documents_gives_the_wanted_columns_in_the_wanted_order(golden):
    batch = next(golden.documents(split="heldout", columns=["year", "text"]))
    assert batch.schema.names == ["year", "text"]
    assert rows_of(golden, columns=["doc_id"]) == [{"doc_id": row["doc_id"]} for row in rows_of(golden)]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"domain": "d00009"}, "no domain 'd00009'"),
        ({"split": "test"}, "there is no split 'test': expected one of train, heldout, excluded"),
        ({"columns": ["text", "lang"]}, r"has no columns \['lang'\]: it has doc_id, text"),
    ],
)
def test_documents_refuses_what_is_not_there(golden, selection, message):
    with pytest.raises(ManifestError, match=message):
        next(golden.documents(**selection))


def test_documents_names_a_missing_file(copy_path):
    manifest = Manifest.open(copy_path)
    path = manifest.data_files("d00001")[0].path
    (copy_path / path).unlink()
    assert rows_of(manifest, domain="d00000")
    with pytest.raises(DamagedError, match=r"cannot be read .*run lmsplit verify --deep") as caught:
        rows_of(manifest)
    assert caught.value.path == path


def test_documents_finds_a_flipped_bit_in_every_page_it_reads(copy_path):
    manifest = Manifest.open(copy_path)
    entry = manifest.data_files("d00000")[0]
    path = copy_path / entry.path
    sound = path.read_bytes()
    for position in ends_of_columns(path):
        flip(path, position)
        with pytest.raises(DamagedError, match="cannot be read"):
            rows_of(manifest)
        path.write_bytes(sound)
    assert rows_of(manifest)


def test_documents_does_not_list_the_folder(copy_path):
    manifest = Manifest.open(copy_path)
    before = rows_of(manifest)
    first = copy_path / manifest.data_files()[0].path
    (first.parent / "part-00009-0123456789abcdef.parquet").write_bytes(first.read_bytes())
    assert rows_of(Manifest.open(copy_path)) == before


def test_domains_say_that_their_table_is_damaged(copy_path):
    manifest = Manifest.open(copy_path)
    path = copy_path / manifest.body.domains
    sound = path.read_bytes()
    for position in ends_of_columns(path):
        flip(path, position)
        with pytest.raises(DamagedError, match="cannot be read"):
            _ = manifest.domains
        path.write_bytes(sound)
    path.unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        _ = manifest.domains


def test_rule_says_that_its_arrays_are_missing_or_others(copy_path):
    manifest = Manifest.open(copy_path)
    arrays = next(copy_path.glob("placement/*.safetensors"))
    flip(arrays, arrays.stat().st_size - 1)
    with pytest.raises(DamagedError, match="the commit says another one"):
        manifest.rule()
    arrays.unlink()
    with pytest.raises(DamagedError, match="is missing: run lmsplit verify"):
        manifest.rule()


def test_scan_holds_every_document(golden):
    frame = golden.scan().collect()
    assert frame.to_dicts() == rows_of(golden)


def test_copied_placement_places_alike(golden, tmp_path):
    golden.copy_placement(tmp_path / "expert")
    rule, encoder, domains = open_placement(tmp_path / "expert")
    rows = rows_of(golden)
    placed = rule.place(encoder.encode([row["text"] for row in rows]))
    assert [domains[k].domain for k in placed.domain] == [row["domain"] for row in rows]
    assert placed.distance.tolist() == [row["distance"] for row in rows]


@pytest.mark.parametrize("suffix", ["safetensors", "json", "parquet"])
def test_copied_placement_is_refused_when_a_file_differs(golden, tmp_path, suffix):
    golden.copy_placement(tmp_path)
    path = next(path for path in tmp_path.glob(f"*.{suffix}") if path.name != "placement-index.json")
    flip(path, 20)
    with pytest.raises(ManifestError, match=r"should have sha256 .*: copy it again"):
        open_placement(tmp_path)


def test_copied_placement_is_refused_when_there_is_none(tmp_path):
    with pytest.raises(ManifestError, match="holds no placement rule"):
        open_placement(tmp_path)


def test_published_manifest_is_read_whole(manifest_path, corpus_path):
    manifest = Manifest.open(manifest_path)
    lines = sum(len(path.read_text().splitlines()) for path in corpus_path.glob("*.jsonl"))
    assert len(rows_of(manifest, columns=["doc_id"])) == lines == manifest.body.counts.read.records
    assert "4 domains" in repr(manifest)
