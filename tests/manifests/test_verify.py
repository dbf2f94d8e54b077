"""verify: each way to break a manifest gives its own finding, with the place; and no bit of any file is free."""

import random
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests import deep, verify
from lmsplit.manifests.card import write_card
from lmsplit.manifests.commit import read_commit, write_commit
from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import LocalStore
from lmsplit.manifests.verify import verify_manifest

FIRST = "data/d00000/part-00000"


def found(root: Path, **options) -> list[tuple[str, str]]:
    return [(finding.code, finding.where) for finding in verify_manifest(root, **options)]


def flip(path: Path, position: int, bit: int = 4) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def end_of_first_page(path: Path) -> int:
    chunk = pq.read_metadata(path).row_group(0).column(0)
    return chunk.dictionary_page_offset + chunk.total_compressed_size - 3


@pytest.mark.parametrize("deeply", [False, True])
def test_verify_finds_nothing_in_a_sound_manifest(golden_path, deeply):
    assert verify_manifest(golden_path, deep=deeply) == []
    assert verify_manifest(f"{golden_path}@0", deep=deeply) == []


def test_verify_finds_nothing_in_a_published_manifest(manifest_path):
    assert verify_manifest(manifest_path, deep=True) == []


def test_verify_finds_nothing_in_a_copy_without_work_files(copy_path):
    moved = copy_path.rename(copy_path.parent / "moved")
    assert verify_manifest(moved, deep=True) == []


def test_findings_say_what_to_do(forger, copy_path):
    forger.body(lambda body: body["counts"]["read"].update(records=99))
    finding = verify_manifest(copy_path)[0]
    assert finding == (
        "conservation",
        "commit",
        "read records=99 bytes=3624",
        "accounted for records=35 bytes=3624",
        "make the manifest anew and report this",
    )


@pytest.mark.parametrize("location", ["absent", "absent@7", "empty"])
def test_verify_raises_when_there_is_no_manifest(tmp_path, location):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="is not a manifest"):
        verify_manifest(tmp_path / location)


def test_verify_raises_when_the_version_does_not_exist(copy_path):
    with pytest.raises(ManifestError, match="@7 does not exist: its commits are 0 to 0"):
        verify_manifest(f"{copy_path}@7")


def test_verify_raises_when_the_format_is_of_a_later_version(forger, copy_path):
    forger.body(lambda body: body.update(version=2), card=False)
    with pytest.raises(ManifestError, match="upgrade lmsplit"):
        verify_manifest(copy_path)


@pytest.mark.parametrize("deeply", [False, True])
def test_verify_reports_a_damaged_commit(copy_path, deeply):
    flip(copy_path / "commits" / "00000.json", 700)
    assert found(copy_path, deep=deeply) == [("file_damaged", "commits/00000.json")]


def test_verify_reports_a_damaged_older_commit(copy_path):
    store = LocalStore(copy_path)
    _, first = read_commit(store)
    write_commit(store, first.body.model_copy(update={"parent": first.body_sha256}), 1)
    flip(copy_path / "commits" / "00000.json", 700)
    assert ("file_damaged", "commits/00000.json") in found(copy_path)


def test_verify_checks_an_older_commit_without_asking_for_its_card(copy_path):
    store = LocalStore(copy_path)
    _, first = read_commit(store)
    write_commit(store, first.body.model_copy(update={"parent": first.body_sha256}), 1)
    assert found(copy_path, deep=True) == [("card", "README.md")]
    write_card(Manifest.open(copy_path))
    assert found(copy_path, deep=True) == found(f"{copy_path}@0", deep=True) == []


@pytest.mark.parametrize("folder", ["data", "domains", "ids", "placement", "plans", "quarantine"])
def test_verify_reports_a_missing_file(copy_path, forger, folder):
    path = forger.path(folder)
    (copy_path / path).unlink()
    assert found(copy_path) == [("file_missing", path)]


@pytest.mark.parametrize("folder", ["data", "domains", "ids", "placement", "plans", "quarantine"])
def test_verify_reports_another_size(copy_path, forger, folder):
    path = forger.path(folder)
    with (copy_path / path).open("ab") as stream:
        stream.write(b"\n")
    assert ("file_size", path) in found(copy_path)
    assert found(copy_path, deep=True)[0] == ("file_size", path)


@pytest.mark.parametrize("folder", ["data", "domains", "ids", "placement", "plans", "quarantine"])
def test_deep_verify_reports_another_digest(copy_path, forger, folder):
    path = forger.path(folder)
    flip(copy_path / path, 60)
    assert found(copy_path, deep=True) == [("file_digest", path)]


def test_verify_reports_other_rows(copy_path, forger):
    def change(body: dict) -> None:
        next(entry for entry in body["files"] if entry["path"].startswith(FIRST))["rows"] += 1

    forger.body(change)
    assert found(copy_path) == [("file_rows", forger.path(FIRST))]


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["confidence"]),
        lambda table: table.append_column("more", pa.nulls(table.num_rows, pa.int8())),
        lambda table: table.rename_columns([name.replace("margin", "gap") for name in table.schema.names]),
        lambda table: table.select([*table.schema.names[::-1]]),
        lambda table: table.set_column(0, pa.field("doc_id", pa.string(), nullable=True), table["doc_id"]),
        lambda table: table.set_column(8, pa.field("distance", pa.float64()), table["distance"].cast(pa.float64())),
        lambda table: table.set_column(18, pa.field("year", pa.int64()), table["year"].cast(pa.int64())),
    ],
)
def test_verify_reports_another_schema(copy_path, forger, change):
    path = forger.table(FIRST, change, card=False)
    assert found(copy_path) == [("file_schema", path)]


def test_verify_names_the_column_that_differs(copy_path, forger):
    forger.table(FIRST, lambda table: table.drop_columns(["year"]), card=False)
    finding = verify_manifest(copy_path)[0]
    assert (finding.expected, finding.found) == ("column year: int32", "no further column")


@pytest.mark.parametrize("changes", [{b"lmsplit.placement_sha256": "0" * 64}, {b"lmsplit.schema_version": "2"}, {b"host": "x"}])
def test_verify_reports_other_metadata(copy_path, forger, changes):
    path = forger.table(FIRST, lambda table: table.replace_schema_metadata({**table.schema.metadata, **changes}), card=False)
    assert found(copy_path) == [("file_metadata", path)]


@pytest.mark.parametrize("folder", ["data/d00001", "domains", "ids", "quarantine"])
def test_verify_reports_a_file_that_is_no_parquet(copy_path, forger, folder):
    path = forger.file(folder, b"PAR1 not at all PAR1", card=False)
    assert found(copy_path) == [("file_damaged", path)]


def test_verify_reports_a_damaged_domain_table_without_reading_everything(copy_path, forger):
    path = forger.path("domains")
    flip(copy_path / path, end_of_first_page(copy_path / path))
    assert found(copy_path) == [("file_damaged", path)]


@pytest.mark.parametrize("deeply", [False, True])
def test_verify_reports_a_file_of_two_splits(copy_path, forger, deeply):
    path = forger.value(FIRST, "split", 1, "heldout", card=False)
    assert found(copy_path, deep=deeply) == [("file_damaged", path)]


def test_verify_reports_a_broken_conservation_law_in_bytes(copy_path, forger):
    forger.body(lambda body: body["counts"]["duplicates"]["duplicate_id"].update(bytes=1))
    assert found(copy_path) == [("conservation", "commit")]


def shift(body: dict, path: str, key: str, amount: int) -> None:
    for part in path.split("."):
        body = body[part]
    body[key] += amount


@pytest.mark.parametrize(
    ("shifts", "where"),
    [
        ((("counts", "text_bytes", 1),), ["domains bytes"]),
        ((("splits", "train", 1),), ["splits", "split train", "files of split train"]),
        (
            (("splits", "train", 1), ("splits", "heldout", -1)),
            ["split train", "split heldout", "files of split train", "files of split heldout"],
        ),
        (
            (("counts.published", "records", 1), ("counts.read", "records", 1)),
            ["data", "ids", "splits", "domains"],
        ),
        ((("counts.quarantined.empty_text", "records", 1), ("counts.read", "records", 1)), ["quarantine"]),
    ],
)
def test_verify_reports_counts_that_disagree(copy_path, forger, shifts, where):
    def change(body: dict) -> None:
        for path, key, amount in shifts:
            shift(body, path, key, amount)

    forger.body(change)
    assert found(copy_path) == [("counts", place) for place in where]


@pytest.mark.parametrize(
    ("column", "where"),
    [("num_documents", ["domains", "d00000"]), ("num_bytes", ["domains bytes"]), ("num_heldout", ["split heldout"])],
)
def test_verify_reports_a_domain_table_that_disagrees(copy_path, forger, column, where):
    forger.value("domains", column, 0, lambda old: old + 1)
    assert found(copy_path) == [("counts", place) for place in where]


@pytest.mark.parametrize("deeply", [False, True])
def test_verify_finds_nothing_when_tokens_are_counted(forger, deeply):
    assert forger.count_words() > 500
    assert forger.found(deep=deeply) == []


@pytest.mark.parametrize("tokens", [0, 1, None])
def test_verify_reports_tokens_that_disagree_with_the_domain_table(forger, tokens):
    forger.count_words()
    forger.body(lambda body: body["counts"].update(tokens=tokens))
    assert forger.found() == [("counts", "domains tokens")]


def test_verify_reports_tokens_that_no_domain_has(copy_path, forger):
    forger.body(lambda body: body["counts"].update(tokens=0))
    finding = verify_manifest(copy_path)[0]
    assert finding[:4] == ("counts", "domains tokens", "0", "null")


def test_verify_reports_tokens_of_some_domains_only(copy_path, forger):
    forger.count_words()
    forger.value("domains", "num_tokens", 1, None)
    finding = verify_manifest(copy_path)[0]
    assert (finding.where, finding.found) == ("domains tokens", "null in 1 of 3 domains")


@pytest.mark.parametrize(
    "damage",
    [
        lambda card: card.unlink(),
        lambda card: card.write_text("# My own\n"),
        lambda card: flip(card, 300, 0),
        lambda card: card.write_bytes(card.read_bytes().replace(b"\n", b"\r\n")),
    ],
)
def test_verify_reports_another_card(copy_path, damage):
    damage(copy_path / "README.md")
    assert found(copy_path) == [("card", "README.md")]


@pytest.mark.parametrize(
    "name", ["data/d00000/part-00007-0123456789abcdef.parquet", "ids/x", "commits/000000.json", "plans/a/.b"]
)
def test_verify_lists_untracked_files(copy_path, name):
    (copy_path / name).parent.mkdir(exist_ok=True)
    (copy_path / name).write_bytes(b"late")
    assert found(copy_path, deep=True) == [("untracked", name)]


def test_verify_leaves_work_files_alone(copy_path):
    (copy_path / "_work" / "run").mkdir(parents=True)
    (copy_path / "_work" / "run" / "receipt.json").write_bytes(b"{}")
    assert found(copy_path, deep=True) == []


@pytest.mark.parametrize("seed", range(45))
def test_deep_verify_catches_a_flipped_bit_in_any_file(copy_path, seed):
    generator = random.Random(seed)
    files = sorted(path for path in copy_path.rglob("*") if path.is_file())
    path = files[seed % len(files)]
    flip(path, generator.randrange(path.stat().st_size), generator.randrange(8))
    name = path.relative_to(copy_path).as_posix()
    code = "card" if name == "README.md" else "file_damaged" if name.startswith("commits/") else "file_digest"
    assert found(copy_path, deep=True) == [(code, name)]


@pytest.mark.slow
def test_deep_verify_catches_a_thousand_flipped_bits(golden_path, tmp_path):
    for seed in range(1_000):
        copy = Path(shutil.copytree(golden_path, tmp_path / str(seed)))
        test_deep_verify_catches_a_flipped_bit_in_any_file(copy, seed)
        shutil.rmtree(copy)


@pytest.mark.parametrize("seed", range(24))
def test_quick_verify_never_fails_on_a_flipped_bit(copy_path, seed):
    generator = random.Random(seed)
    files = sorted(path for path in copy_path.rglob("*.parquet"))
    path = files[seed % len(files)]
    size = path.stat().st_size
    flip(path, generator.randrange(size * 3 // 4, size), generator.randrange(8))  # where the footers are
    name = path.relative_to(copy_path).as_posix()
    assert {where for _, where in found(copy_path)} <= {name, "README.md", "domains", "domains bytes"} | {
        f"{kind}{split}" for kind in ("split ", "files of split ") for split in ("train", "heldout", "excluded")
    } | {"d00000", "d00001", "d00002"}


def test_every_code_is_specified():
    source = Path(verify.__file__).read_text() + Path(deep.__file__).read_text()
    codes = set(re.findall(r'Finding\(\s*"(\w+)"', source))
    text = (Path(verify.__file__).parent / "README.md").read_text()
    table = text.partition("| code | what is wrong |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == codes


def test_verify_reports_a_commit_that_does_not_name_the_one_before(copy_path):
    """A copy under the next number is no next commit."""
    shutil.copy(copy_path / "commits" / "00000.json", copy_path / "commits" / "00001.json")
    found = [(finding.code, finding.where) for finding in verify_manifest(copy_path)]
    assert found == [("commit_chain", "commits/00001.json")]


def test_verify_reports_a_missing_commit(copy_path):
    """Numbers leave no gap."""
    shutil.copy(copy_path / "commits" / "00000.json", copy_path / "commits" / "00002.json")
    found = [(finding.code, finding.where) for finding in verify_manifest(copy_path)]
    assert ("commit_chain", "commits/00001.json") in found
