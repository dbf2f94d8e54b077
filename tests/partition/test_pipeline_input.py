"""What the pipeline does with input that is bad, odd, tiny, or changes under its hands."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.commit import read_commit
from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.manifests.store import LocalStore
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition.hashing import chosen, keyed_hashes
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from tests.partition import outside
from tests.partition.corpora import configuration, quarantined, rows, topical, write

GOOD = topical(60)
BAD_LINES = (b'{"text": "\xff"}', b"{", b"[1]", b'{"id": "x"}', b'{"text": NaN}', b'{"text": " "}', b'{"text": 7}')
BAD_REASONS = [
    "invalid_utf8", "malformed_json", "not_an_object", "missing_text", "nan_or_infinity", "empty_text", "text_not_string",
]  # fmt: skip


def sound(output: Path, corpus: Path) -> bool:
    """Whether both the outside check and `verify --deep` find nothing."""
    outside.check(output, corpus)
    return verify_manifest(output, deep=True) == []


def nothing_published(output: Path) -> bool:
    return not (output / "commits").exists() and not (output / "data").exists()


def counts_of(output: Path) -> Any:
    return read_commit(LocalStore(output))[1].body.counts


def test_bad_records_are_quarantined_with_path_row_offset_reason_and_digest(tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    path = write(corpus / "a.jsonl", GOOD)
    start = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\n".join(BAD_LINES))
    pq.write_table(pa.table({"text": ["", None, "river boat water"]}), corpus / "b.parquet")
    partition(configuration(corpus, output, input=str(corpus), max_bad_fraction=0.2))
    found = quarantined(output)
    assert [row["reason"] for row in found] == [*BAD_REASONS, "empty_text", "missing_text"]
    assert [row["source_row"] for row in found] == [60, 61, 62, 63, 64, 65, 66, 0, 1]
    offsets = [start + sum(len(line) + 1 for line in BAD_LINES[:index]) for index in range(7)]
    assert [row["byte_offset"] for row in found] == [*offsets, None, None]
    assert [row["record"] for row in found] == [*BAD_LINES, b"", b""]
    assert [row["sha256"] for row in found[:7]] == [hashlib.sha256(line).hexdigest() for line in BAD_LINES]
    assert counts_of(output).quarantined["empty_text"].model_dump() == {"records": 2, "bytes": len(BAD_LINES[5])}
    assert sound(output, corpus)


def test_too_many_bad_records_stop_the_run_and_say_where_to_look(tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    path = write(corpus / "a.jsonl", GOOD)
    path.write_bytes(path.read_bytes() + b"\n".join(BAD_LINES[:2]))
    with pytest.raises(InputError, match=r"2 of 62 records are bad \(invalid_utf8 1, malformed_json 1\)") as caught:
        partition(configuration(corpus, output))
    assert nothing_published(output)
    assert "more than max_bad_fraction: 0.001. Nothing was published" in str(caught.value)
    pattern = str(caught.value).split("Look at ")[1].split(",")[0]
    (named,) = Path("/").glob(pattern.removeprefix("/"))
    assert pq.read_table(named)["reason"].to_pylist() == ["invalid_utf8", "malformed_json"]
    partition(configuration(corpus, output, max_bad_fraction=0.1))
    assert len(rows(output)) == 60


def test_texts_without_a_vector_are_quarantined_and_count_as_bad(tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    write(corpus / "a.jsonl", [*GOOD, {"id": "stop", "text": "the of and"}, {"id": "new", "text": "zyzzyva quokka"}])
    with pytest.raises(InputError, match=r"2 of 62 records are bad \(zero_vector 2\)"):
        partition(configuration(corpus, output))
    assert nothing_published(output)
    partition(configuration(corpus, output, max_bad_fraction=0.1))
    assert [(row["doc_id"], row["reason"], row["record"]) for row in quarantined(output)] == [
        ("stop", "zero_vector", b"the of and"),
        ("new", "zero_vector", b"zyzzyva quokka"),
    ]
    assert sound(output, corpus)


def test_duplicate_ids_stop_the_run_and_name_both_places(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", GOOD[:40])
    write(tmp_path / "in" / "b.parquet", GOOD[39:])
    message = r"1 documents repeat an id: 'doc-39' stands in a.jsonl row 39 and b.parquet row 0. Make the ids unique"
    with pytest.raises(InputError, match=message):
        partition(configuration(tmp_path / "in", tmp_path / "out"))
    assert nothing_published(tmp_path / "out")


def test_duplicate_ids_are_quarantined_but_the_first_when_so_configured(tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    write(corpus / "a.jsonl", GOOD[:40])
    write(corpus / "b.parquet", [*GOOD[40:], {"id": "doc-3", "text": "another river text"}, GOOD[3]])
    commit = partition(configuration(corpus, output, input=str(corpus), duplicate_ids="quarantine"))
    found = [(row["doc_id"], row["reason"], row["source_path"], row["source_row"]) for row in quarantined(output)]
    assert found == [("doc-3", "duplicate_id", "b.parquet", 20), ("doc-3", "duplicate_id", "b.parquet", 21)]
    (kept,) = [row for row in rows(output) if row["doc_id"] == "doc-3"]
    assert (kept["source_path"], kept["source_row"], kept["text"]) == ("a.jsonl", 3, GOOD[3]["text"])
    assert commit.body.counts.duplicates["duplicate_id"].records == 2
    assert commit.body.counts.quarantined == {}
    assert sound(output, corpus)


def test_more_domains_than_documents_is_refused_with_a_number_that_works(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", GOOD[:8])
    asked = {"input": str(tmp_path / "in"), "heldout_fraction": 0}
    with pytest.raises(ConfigurationError, match="domains: 9, but the sample has only 8 different documents") as caught:
        partition(configuration(tmp_path / "in", tmp_path / "out", domains=9, **asked))
    assert nothing_published(tmp_path / "out")
    assert "set domains to 8 or less" in str(caught.value)
    partition(configuration(tmp_path / "in", tmp_path / "out", domains=8, **asked))
    assert sound(tmp_path / "out", tmp_path / "in")


def test_identical_documents_are_one_domain_or_an_error(tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    write(corpus / "a.jsonl", [{"text": "river water"}] * 50)
    with pytest.raises(ConfigurationError, match="the sample has only 1 different documents: set domains to 1"):
        partition(configuration(corpus, output, domains=2, input=str(corpus)))
    partition(configuration(corpus, output, domains=1, input=str(corpus)))
    published = rows(output)
    assert len({row["split"] for row in published}) == 1  # one text is one group
    assert max(abs(row["distance"]) for row in published) < 1e-6
    assert [row["doc_id"] for row in published] == [f"a.jsonl:{row}" for row in range(50)]
    assert sound(output, corpus)


def test_one_domain_has_no_runner_up(tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    write(corpus / "a.jsonl", GOOD)
    partition(configuration(corpus, output, domains=1))
    names = ("second_domain", "second_distance", "margin", "num_tokens", "confidence")
    assert {row[name] for row in rows(output) for name in names} == {None}
    assert sound(output, corpus)


@pytest.mark.parametrize("heldout_fraction", [0, 0.1])
def test_corpus_of_one_group_is_all_in_one_split(tmp_path: Path, heldout_fraction: float) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    write(corpus / "a.jsonl", [row | {"group": "only"} for row in GOOD])
    partition(configuration(corpus, output, heldout_fraction=heldout_fraction))
    assert {row["split"] for row in rows(output)} == {"train"}
    assert sound(output, corpus)


def test_corpus_whose_only_group_would_be_held_out_is_refused(tmp_path: Path) -> None:
    names = [f"book {number}" for number in range(100)]
    may_be_heldout = chosen(keyed_hashes(0, "heldout", [f"g{name}" for name in names]), 0.1)
    write(tmp_path / "in" / "a.jsonl", [row | {"group": names[int(may_be_heldout.argmax())]} for row in GOOD])
    with pytest.raises(InputError, match="all 60 usable documents are in groups that may be held out: set heldout_fraction: 0"):
        partition(configuration(tmp_path / "in", tmp_path / "out"))


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": " "}\n'])
def test_corpus_without_a_document_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match="the input has 0 usable documents: nothing to cluster"):
        partition(configuration(tmp_path / "in", tmp_path / "out", max_bad_fraction=1))
    assert nothing_published(tmp_path / "out")


def test_input_that_changed_after_the_plan_is_refused_until_planned_anew(tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    path = write(corpus / "a.jsonl", GOOD)
    asked = configuration(corpus, output)
    plan = make_plan(asked)
    path.write_bytes(path.read_bytes().replace(b"river", b"RIVER", 1))
    with pytest.raises(InputError, match=r"a.jsonl changed after it was planned: run the same command again"):
        partition(asked, plan)
    assert nothing_published(output)
    commit = partition(asked)
    assert commit.body.run_id != plan.run_id
    assert sound(output, corpus)


def test_input_that_changed_between_scan_and_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in" / "a.jsonl", GOOD)
    asked = configuration(tmp_path / "in", tmp_path / "out")

    def change(*_: Any) -> None:
        path.write_bytes(path.read_bytes() + b'{"text": "late"}\n')

    monkeypatch.setattr("lmsplit.partition.ids.check_bad_fraction", change)
    with pytest.raises(InputError, match=r"a.jsonl changed after it was planned"):
        partition(asked)
    assert nothing_published(tmp_path / "out")


def test_touched_but_equal_input_is_the_same_run(tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "a.jsonl", GOOD)
    asked = configuration(tmp_path / "in", tmp_path / "out")
    before = make_plan(asked)
    shutil.copyfile(path, tmp_path / "copy")
    path.unlink()
    shutil.move(tmp_path / "copy", path)
    assert make_plan(asked).run_id == before.run_id


ODD_IDS = (
    *("", " ", "../../escape", "/etc/passwd", "=1+1", "日本語", "d00000", "a/b\\c", "new\nline", "nul\0", "x" * 5000, "'\"<&>"),
    *("\u00e9", "e\u0301"),  # the same letter in two ways: two ids
)


def test_odd_ids_sources_and_groups_are_data_and_never_paths(tmp_path: Path) -> None:
    corpus, output = tmp_path / "work" / "in", tmp_path / "work" / "out"
    odd = [row | {"id": odd, "source": odd, "group": odd} for row, odd in zip(GOOD, ODD_IDS, strict=False)]
    write(corpus / "日本 and space" / "a.jsonl", [*odd, *GOOD[len(odd) :]])
    write(corpus / "b.jsonl", topical(3, first=60))
    partition(configuration(corpus, output))
    published = {row["doc_id"]: row for row in rows(output)}
    assert set(ODD_IDS) <= set(published)
    assert all((published[odd]["source"], published[odd]["group"]) == (odd, odd) for odd in ODD_IDS)
    assert published[""]["source_path"] == "日本 and space/a.jsonl"
    assert {path.name for path in tmp_path.iterdir()} == {"work"}
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"in", "out"}
    assert sound(output, corpus)


def test_integer_ids_and_ids_by_place_are_told_apart(tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    write(corpus / "a.jsonl", [{"text": row["text"]} | ({"id": index} if index % 2 else {}) for index, row in enumerate(GOOD)])
    partition(configuration(corpus, output, input=str(corpus)))
    expected = {str(index) if index % 2 else f"a.jsonl:{index}" for index in range(60)}
    assert {row["doc_id"] for row in rows(output)} == expected
    assert sound(output, corpus)


def test_kept_columns_keep_values_nulls_and_types(tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    lines = [
        {"text": "river water boat", "score": 0.5, "seen": "2024-02-29T01:02:03", "flag": True, "n": None},
        {"text": "river water fish", "score": -0.0, "n": -3},
    ]
    write(corpus / "a.jsonl", lines + [{"text": row["text"]} for row in GOOD])
    keep = [{"name": "score", "type": "float64"}, {"name": "seen", "type": "timestamp[us]"}, {"name": "flag", "type": "bool"},
            {"name": "n", "type": "int16"}]  # fmt: skip
    commit = partition(configuration(corpus, output, input={"paths": str(corpus), "keep": keep}))
    assert commit.body.columns == {"flag": "bool", "n": "int16", "score": "double", "seen": "timestamp[us]"}
    stored = json.loads((output / "commits" / "00000.json").read_text())["body"]["columns"]
    assert list(stored) == sorted(stored)
    published = {row["source_row"]: row for row in rows(output)}
    first, second = ([published[row][name] for name in ("score", "flag", "n")] for row in (0, 1))
    assert first == [0.5, True, None]
    assert (second, str(second[0])) == ([-0.0, None, -3], "-0.0")
    assert published[0]["seen"].isoformat() == "2024-02-29T01:02:03"
    assert {name for name in stored for row in range(2, 62) if published[row][name] is not None} == set()
    assert sound(output, corpus)
