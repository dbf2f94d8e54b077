"""Every fault of the input, of names and of the mathematics, through a whole run: what stops it, what is set aside, what is kept.

Three verdicts: *stops* (nothing is published, and the message names the file, the place and the remedy), *set aside* (path, row,
offset, digest and reason, and the conservation law holds), *kept* (documents are all there, and what is odd is counted). Markup
and formulas in reports are in `tests/manifests/test_report.py`, a tokenizer that changes is in `test_pipeline_encoder.py`.
"""

import gzip
import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lmsplit.manifests.commit import Commit
from lmsplit.manifests.errors import ConfigurationError, InputError, LmsplitError
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.run import Run
from lmsplit.partition.scan import warn_of_notes
from tests.partition.corpora import as_lines, configuration, packed, quarantined, rows, topical, write

GOOD = topical(60)
FORMATS = ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst")
NUL_TEXT = "river\0water boat"


def unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if path.suffix == ".zst" else data


def run(corpus: Path, **keys: Any) -> Commit:
    """Partition a folder of the corpus's own name; without a group column, as not every bad file could have one."""
    return partition(configuration(corpus, corpus.with_name("out"), **{"input": str(corpus)} | keys))


def conserves(commit: Commit, num_records: int) -> bool:
    """Whether all that was read is published, quarantined or a duplicate, and so many records it was."""
    counts = commit.body.counts
    parts = [counts.published, *counts.quarantined.values(), *counts.duplicates.values()]
    records, num_bytes = (sum(getattr(part, unit) for part in parts) for unit in ("records", "bytes"))
    return (counts.read.records, counts.read.records, counts.read.bytes) == (records, num_records, num_bytes)


LARGE = b'{"text": "' + b"river " * 400 + b'"}'
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "invalid UTF-8": (b'{"text": "river \xff"}', "invalid_utf8"),
    "malformed JSON": (b'{"text": "river"', "malformed_json"),
    "raw NUL byte, which JSON forbids": (b'{"text": "river\0"}', "malformed_json"),
    "NUL bytes alone": (b"\0" * 40, "malformed_json"),
    "array line": (b'[{"text": "river"}]', "not_an_object"),
    "scalar line": (b'"river"', "not_an_object"),
    "missing text": (b'{"id": "x"}', "missing_text"),
    "null text": (b'{"text": null}', "missing_text"),
    "empty text": (b'{"text": ""}', "empty_text"),
    "blank text": (b'{"text": " \\n\\u00a0"}', "empty_text"),
    "text that is a number": (b'{"text": 7}', "text_not_string"),
    "NaN": (b'{"text": "river", "score": NaN}', "nan_or_infinity"),
    "Infinity": (b'{"text": "river", "score": -Infinity}', "nan_or_infinity"),
    "number beyond a double": (b'{"text": "river", "score": 1e400}', "nan_or_infinity"),
    "lone surrogate": (b'{"text": "river \\ud800"}', "lone_surrogate"),
    "lone surrogate in bytes": (b'{"text": "river \xed\xa0\x80"}', "invalid_utf8"),
    "lone surrogate in an id": (b'{"text": "river", "id": "\\udc00"}', "lone_surrogate"),
    "integer id of 2^64": (b'{"text": "river", "id": 18446744073709551616}', "integer_out_of_range"),
    "integer id of 5,000 digits": (b'{"text": "river", "id": ' + b"9" * 5000 + b"}", "integer_out_of_range"),
    "nesting of 100,000": (b'{"text": "river", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested_too_deep"),
    "record above max_record_bytes": (LARGE, "record_too_large"),
    "id that is an object": (b'{"text": "river", "id": {}}', "bad_value"),
}


@pytest.mark.parametrize("fault", BAD_LINES)
def test_bad_line_is_set_aside_in_every_format(tmp_path: Path, fault: str) -> None:
    line, reason = BAD_LINES[fault]
    corpus = tmp_path / "in"
    corpus.mkdir()
    for index, name in enumerate(FORMATS):
        good = as_lines(GOOD[20 * index : 20 * index + 20]).splitlines(keepends=True)
        (corpus / name).write_bytes(packed(name, b"".join([*good[:10], line, b"\n", *good[10:]])))
    limit = max(1024, 2000 if reason == "record_too_large" else len(line))
    commit = run(corpus, max_bad_fraction=0.1, max_record_bytes=limit)
    found = quarantined(tmp_path / "out")
    assert [(row["source_path"], row["source_row"], row["reason"]) for row in found] == [(name, 10, reason) for name in FORMATS]
    for row in found:
        data, start = unpacked(corpus / row["source_path"]), row["byte_offset"]
        assert data[start : start + row["num_bytes"]] == line
        assert (row["sha256"], row["record"]) == (hashlib.sha256(line).hexdigest(), line[:4096])
    assert commit.body.counts.quarantined[reason].model_dump() == {"records": 3, "bytes": 3 * len(line)}
    assert conserves(commit, 63)
    assert sorted(row["doc_id"] for row in rows(tmp_path / "out")) == sorted(row["id"] for row in GOOD)


BAD_TEXTS: dict[str, tuple[bytes | None, str]] = {
    "invalid UTF-8": (b"river \xff", "invalid_utf8"),
    "lone surrogate": (b"river \xed\xa0\x80", "invalid_utf8"),
    "null text": (None, "missing_text"),
    "empty text": (b"", "empty_text"),
    "blank text": (b" \n\xc2\xa0", "empty_text"),
    "record above max_record_bytes": (b"river " * 400, "record_too_large"),
}


@pytest.mark.parametrize("fault", BAD_TEXTS)
def test_bad_parquet_text_is_set_aside(tmp_path: Path, fault: str) -> None:
    text, reason = BAD_TEXTS[fault]
    (tmp_path / "in").mkdir()
    texts = [row["text"].encode() for row in GOOD]
    table = pa.table({"text": pa.array([*texts[:35], text, *texts[35:]], pa.binary()).view(pa.string())})
    pq.write_table(table, tmp_path / "in" / "d.parquet", row_group_size=20)
    commit = run(tmp_path / "in", max_bad_fraction=0.1, max_record_bytes=2000)
    (row,) = quarantined(tmp_path / "out")
    raw = text or b""
    assert (row["source_path"], row["source_row"], row["byte_offset"], row["reason"]) == ("d.parquet", 35, None, reason)
    assert (row["num_bytes"], row["sha256"], row["record"]) == (len(raw), hashlib.sha256(raw).hexdigest(), raw)
    assert conserves(commit, 61)
    assert sorted(row["source_row"] for row in rows(tmp_path / "out")) == [row for row in range(61) if row != 35]


def parquet(corpus: Path, *tables: dict[str, Any]) -> None:
    for number, columns in enumerate(tables):
        pq.write_table(pa.table(columns), corpus / f"{number}.parquet")


def truncated(name: str) -> Callable[[Path], None]:
    def make(corpus: Path) -> None:
        path = write(corpus / name, GOOD)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    return make


def flipped(name: str) -> Callable[[Path], None]:
    def make(corpus: Path) -> None:
        data = bytearray(write(corpus / name, GOOD).read_bytes())
        data[len(data) // 3] ^= 16
        (corpus / name).write_bytes(data)

    return make


def flipped_page(corpus: Path) -> None:
    data = bytearray(write(corpus / "d.parquet", GOOD, compression="none", use_dictionary=False).read_bytes())
    texts = pq.read_metadata(corpus / "d.parquet").row_group(0).column(1)
    assert texts.path_in_schema == "text"
    data[texts.data_page_offset + texts.total_compressed_size // 2] ^= 16
    (corpus / "d.parquet").write_bytes(data)


def bomb(name: str) -> Callable[[Path], None]:
    def make(corpus: Path) -> None:
        (corpus / name).write_bytes(packed(name, bytes(128 * 2**20)))

    return make


def linked(corpus: Path) -> None:
    write(corpus / "a.jsonl", GOOD)
    (corpus / "b.jsonl").symlink_to(write(corpus.with_name("elsewhere") / "b.jsonl", GOOD))


def repeated(corpus: Path) -> None:
    write(corpus / "a.jsonl.zst", GOOD)
    write(corpus / "b.parquet", GOOD[7:8])


def mostly_bad(corpus: Path) -> None:
    (corpus / "a.jsonl").write_bytes(as_lines(GOOD) + b"{\n")


class Stop(NamedTuple):
    """A fault that stops the run: how to make it, what the message says (file, place, remedy), and the configuration it takes."""

    make: Callable[[Path], object]
    message: str
    keys: dict[str, Any] = {}  # noqa: RUF012  # never written to
    error: type[LmsplitError] = InputError


TEXTS = {"text": [row["text"] for row in GOOD]}
COMPRESSED = r"{}: compressed data is truncated or damaged near byte \d+ of \d+ \(.+\): fetch or write the file again"
PAGES = r"d.parquet: row group 0 is truncated or damaged near row 0 \(.*CRC checksum.*\): fetch or write the file again"
FOOTER = r"d.parquet: the Parquet footer cannot be read, the file is truncated or damaged \(.+\): write it again or leave it out"
BOMB = r"{}: its first \d+ bytes expand to \d+, expected at most 1000 times as many: taken for a bomb; decompress it yourself"
KEEP_N = {"input": {"paths": "in", "keep": ["n"]}}
STOPS: dict[str, Stop] = {
    "truncated gzip": Stop(truncated("b.jsonl.gz"), COMPRESSED.format("b.jsonl.gz")),
    "truncated zstd": Stop(truncated("c.jsonl.zst"), COMPRESSED.format("c.jsonl.zst")),
    "bit-flipped gzip": Stop(flipped("b.jsonl.gz"), COMPRESSED.format("b.jsonl.gz")),
    "bit-flipped zstd": Stop(flipped("c.jsonl.zst"), COMPRESSED.format("c.jsonl.zst")),
    "truncated Parquet": Stop(truncated("d.parquet"), FOOTER),
    "Parquet without a byte": Stop(lambda corpus: (corpus / "d.parquet").touch(), FOOTER),
    "bit-flipped Parquet": Stop(flipped_page, PAGES),
    "zstd bomb": Stop(bomb("c.jsonl.zst"), BOMB.format("c.jsonl.zst")),
    "gzip bomb": Stop(bomb("b.jsonl.gz"), BOMB.format("b.jsonl.gz")),
    "types that differ between shards": Stop(
        lambda corpus: parquet(corpus, TEXTS | {"n": pa.array(range(60), pa.int64())}, {"text": ["x"], "n": ["1"]}),
        "column 'n' is int64 in 0.parquet and string in 1.parquet: expected one type everywhere; write one of the files again",
        KEEP_N,
    ),
    "column that appears late": Stop(
        lambda corpus: parquet(corpus, TEXTS, {"text": ["x"], "n": [1]}),
        "column 'n' is not in 0.parquet, which has text and int64 in 1.parquet: expected once in every Parquet file; "
        "correct the name in the configuration, or the file, or declare its type to have null there",
        KEEP_N,
    ),
    "id that appears late": Stop(
        lambda corpus: parquet(corpus, TEXTS, {"text": ["x"], "id": ["i"]}),
        "column 'id' is not in 0.parquet, .* and string in 1.parquet: .* or in none; write null where there is no value",
    ),
    "Parquet text that is a number": Stop(
        lambda corpus: parquet(corpus, {"text": [1, 2]}),
        "column 'text' is int64 in 0.parquet, expected string: name another column, or write the file again",
    ),
    "Parquet integer id beyond 2^64": Stop(
        lambda corpus: parquet(corpus, {"text": ["x"], "id": pa.array([2**64], pa.decimal128(38))}),
        r"column 'id' is decimal128\(38, 0\) in 0.parquet, expected string or integer: name another column",
    ),
    "duplicate ids": Stop(repeated, "'doc-7' stands in a.jsonl.zst row 7 and b.parquet row 0. Make the ids unique, .* or set"),
    "more bad records than allowed": Stop(
        mostly_bad, r"1 of 61 records are bad \(malformed_json 1\), more than max_bad_fraction: 0.001. .* mend the input"
    ),
    "glob that matches nothing": Stop(
        lambda corpus: write(corpus / "a.jsonl", GOOD),
        r"input 'in/\*.parquet' matches no file: expected .*; check the path",
        {"input": "in/*.parquet"},
    ),
    "symbolic link that leaves the root": Stop(
        linked, "input file 'b.jsonl' is a link that leads out of the input root: copy the file there"
    ),
    "more domains than documents": Stop(
        lambda corpus: write(corpus / "a.jsonl", GOOD[:8]),
        "domains: 9, but the sample has only 8 different documents: set domains to 8 or less",
        {"domains": 9, "heldout_fraction": 0},
        ConfigurationError,
    ),
    "identical documents in two domains": Stop(
        lambda corpus: write(corpus / "b.jsonl.gz", [{"text": "river water"}] * 50),
        "the sample has only 1 different documents: set domains to 1",
        {"domains": 2},
        ConfigurationError,
    ),
} | {
    f"{scheme} URL": Stop(
        lambda corpus: write(corpus / "a.jsonl", GOOD),
        f"{scheme}://.*not supported",
        {"input": f"{scheme}://in/a.jsonl"},
        ConfigurationError,
    )
    for scheme in ("http", "https", "ftp", "memory", "github", "FTP")
}  # fmt: skip


@pytest.mark.parametrize("fault", STOPS)
def test_fault_stops_the_run_and_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    stop = STOPS[fault]
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    stop.make(tmp_path / "in")
    with pytest.raises(stop.error, match=stop.message) as caught:
        run(tmp_path / "in", **stop.keys)
    assert caught.value.exit_code == (2 if stop.error is ConfigurationError else 3)
    assert not any((tmp_path / "out" / folder).exists() for folder in ("commits", "data"))


@pytest.mark.parametrize("name", [*FORMATS, "d.parquet"])
@pytest.mark.parametrize("remove", [False, True])
def test_input_that_changed_after_the_plan_stops_the_run(tmp_path: Path, name: str, remove: bool) -> None:
    path = write(tmp_path / "in" / name, GOOD)
    asked = configuration(tmp_path / "in", tmp_path / "out", input=str(tmp_path / "in"))
    plan = make_plan(asked)
    path.unlink()
    if not remove:
        write(path, GOOD[:-1])
    with pytest.raises(InputError, match=rf"{name} (changed after it was planned|cannot be read any more).* plan") as caught:
        partition(asked, plan)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out" / "commits").exists()


class Kept(NamedTuple):
    """A fault that is kept: how to make it, the texts that come out beside the good ones, and what is counted."""

    make: Callable[[Path], object]
    texts: tuple[str, ...] = ()
    notes: dict[str, int] = {}  # noqa: RUF012  # never written to
    keys: dict[str, Any] = {}  # noqa: RUF012  # never written to


def in_every_format(data: bytes) -> Callable[[Path], None]:
    def make(corpus: Path) -> None:
        for name in FORMATS:
            (corpus / name).write_bytes(packed(name, data))

    return make


def nul_bytes(corpus: Path) -> None:
    in_every_format(b'{"text": "river\\u0000water boat"}\n')(corpus)
    write(corpus / "d.parquet", [{"text": NUL_TEXT, "id": "nul", "source": "s"}])


def empty_files(corpus: Path) -> None:
    for name in ("none.jsonl", "none.jsonl.gz", "none.jsonl.zst"):
        (corpus / name).touch()
    for name in FORMATS:
        (corpus / name).write_bytes(packed(name, b""))
    (corpus / "blank.jsonl").write_bytes(b"\n \r\n\n")
    parquet(corpus, {"text": pa.nulls(0, pa.string())})
    pq.ParquetWriter(corpus / "groupless.parquet", pa.schema([("text", pa.string())])).close()


def frames(corpus: Path) -> None:
    parts = [as_lines(GOOD[:1])[:50], as_lines(GOOD[:1])[50:], b"", b'{"text": "harbour anchor"}']  # a line across two frames
    for name in FORMATS[1:]:
        (corpus / name).write_bytes(b"".join(packed(name, part.replace(b"doc-", name[:1].encode())) for part in parts))
    stream = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(stream, closefd=False) as writer:  # a frame that does not say how large it is
        writer.write(b'{"text": "harbour anchor"}\n')
    (corpus / "d.jsonl.zst").write_bytes(stream.getvalue())


KEPT: dict[str, Kept] = {
    "NUL character": Kept(nul_bytes, (NUL_TEXT,) * 4, {"nul_character": 4}),
    "repeated JSON key": Kept(
        in_every_format(b'{"text": "first", "\\u0074ext" :"river boat"}\n{"text": "river boat", "x": [{"a": ":", "a": 1}]}\n'),
        ("river boat",) * 6,
        {"repeated_key": 6},
    ),
    "byte order mark": Kept(in_every_format(b'\xef\xbb\xbf{"text": "river boat"}\n'), ("river boat",) * 3),
    "byte order mark alone": Kept(in_every_format(b"\xef\xbb\xbf"), (), {"empty_file": 3}),
    "line ends of Windows": Kept(in_every_format(b'{"text": "river boat"}\r\n\r\n'), ("river boat",) * 3),
    "empty files": Kept(empty_files, (), {"empty_file": 9}),
    "several frames and members": Kept(frames, (*(GOOD[0]["text"], "harbour anchor") * 2, "harbour anchor")),
    "declared column that appears late": Kept(
        lambda corpus: parquet(corpus, {"text": ["river boat"]}, {"text": ["harbour anchor"], "n": [1]}),
        ("river boat", "harbour anchor"),
        keys={"input": {"paths": "in", "keep": [{"name": "n", "type": "int64"}]}},
    ),
    "steps out of the root in an id and a source": Kept(
        lambda corpus: write(corpus / "a.jsonl", [{"text": "river boat", "source": "../../s", "id": "../../../x"}]),
        ("river boat",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", KEPT)
def test_fault_is_kept_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    kept = KEPT[fault]
    corpus = tmp_path / "work" / "in"
    write(corpus / "good.parquet" if fault != "declared column that appears late" else corpus / "good.jsonl", GOOD)
    monkeypatch.chdir(tmp_path / "work")
    kept.make(corpus)
    commit = run(corpus, **kept.keys)
    texts = sorted(row["text"] for row in rows(tmp_path / "work" / "out"))
    assert texts == sorted([*(row["text"] for row in GOOD), *kept.texts])
    assert conserves(commit, len(texts))
    assert quarantined(tmp_path / "work" / "out") == []
    assert warn_of_notes(Run(str(tmp_path / "work" / "out"), commit.body.run_id)) == kept.notes
    assert {path.name for path in tmp_path.iterdir()} | {path.name for path in corpus.parent.iterdir()} == {"work", "in", "out"}


def test_run_warns_once_of_what_the_scan_found_odd(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "in" / "good.jsonl", GOOD)
    nul_bytes(tmp_path / "in")
    for number in range(5):
        (tmp_path / "in" / f"none-{number}.jsonl").touch()
    with caplog.at_level(logging.WARNING, "lmsplit.partition.scan"):
        run(tmp_path / "in")
    assert [record.getMessage() for record in caplog.records if record.name == "lmsplit.partition.scan"] == [
        "4 documents have a NUL character in their text, which is kept: some programs end a text there",
        "5 input files have no record: leave them out if that is right (none-0.jsonl, none-1.jsonl, none-2.jsonl, …)",
    ]


def test_duplicate_ids_are_set_aside_in_every_format_where_asked(tmp_path: Path) -> None:
    corpus = tmp_path / "in"
    for name in (*FORMATS, "d.parquet"):
        write(corpus / name, GOOD)
    commit = run(corpus, duplicate_ids="quarantine")
    found = [(row["reason"], row["source_path"], row["doc_id"], row["sha256"]) for row in quarantined(tmp_path / "out")]
    digests = {row["id"]: hashlib.sha256(row["text"].encode()).hexdigest() for row in GOOD}
    later = (*FORMATS[1:], "d.parquet")
    assert found == [("duplicate_id", name, doc_id, digest) for name in later for doc_id, digest in digests.items()]
    assert commit.body.counts.duplicates["duplicate_id"].records == 180
    assert conserves(commit, 240)
    assert {row["source_path"] for row in rows(tmp_path / "out")} == {"a.jsonl"}
