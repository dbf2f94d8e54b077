import signal
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.manifests.errors import ConfigurationError, LmsplitError, ManifestError
from lmsplit.manifests.reader import Manifest
from lmsplit.train import pack, token_files
from lmsplit.train.pack import Packed, Packing, open_packed, pack_digest, pack_documents, pack_split
from lmsplit.train.tokenizer import DocumentEncoder, train_tokenizer

ENCODER = DocumentEncoder(train_tokenizer([["a small corpus of words", "another corpus, other words"]], 300))
PACKINGS = (Packing(32), Packing(32, "wrapped"))
MANY = [(f"doc{index}", "words of another corpus " * (index % 4)) for index in range(25)]

Documents = list[tuple[str, str]]


def packed_rows(packed: Packed, column: str = "input_ids") -> list[list[int]]:
    with pa.ipc.open_stream(packed.directory / "rows.arrow") as reader:
        return [row for batch in reader for row in batch.column(column).to_pylist()]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*")}


def of_split(manifest: Manifest, domain: str, split: str) -> Documents:
    batches = manifest.documents(domain=domain, split=split, columns=["doc_id", "text"])
    return [(row["doc_id"], row["text"]) for batch in batches for row in batch.to_pylist()]


def check_packed(documents: Documents, packed: Packed) -> None:
    rows, spans = packed_rows(packed), packed.spans().to_pylist()
    expected = [[ENCODER.begin_id, *ids, ENCODER.end_id] for ids in ENCODER.encode([text for _, text in documents])]
    assert Counter(chain(*rows)) == Counter(chain(*expected))
    assert [len(row) for row in rows] == packed.row_lengths().tolist()
    assert max(map(len, rows), default=0) <= packed.max_length
    found: dict[str, list[int]] = {doc_id: [] for doc_id, _ in documents}
    pieces: list[list[tuple[int, int]]] = [[] for _ in rows]
    for span in spans:
        assert span["token"] == len(found[span["doc_id"]])
        found[span["doc_id"]] += rows[span["row"]][span["start"] : span["end"]]
        pieces[span["row"]].append((span["start"], span["end"] - span["start"]))
    assert list(found.values()) == expected
    assert list(dict.fromkeys(span["doc_id"] for span in spans)) == [doc_id for doc_id, _ in documents]
    assert [ENCODER.decode(ids[1:-1]) for ids in found.values()] == [text for _, text in documents]
    assert packed_rows(packed, "seq_lengths") == [[length for _, length in sorted(row)] for row in pieces]
    assert (packed.num_rows, packed.num_tokens) == (len(rows), sum(map(len, rows)))
    assert (packed.num_documents, packed.num_bytes) == (len(documents), sum(len(text.encode()) for _, text in documents))
    if rows:
        assert packed.num_tokens >= 0.99 * ((len(rows) - 1) * packed.max_length + len(rows[-1]))


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.text(max_size=60), max_size=12),
    max_length=st.integers(2, 40),
    strategy=st.sampled_from(["wrapped", "bfd_split"]),
)
def test_packing_keeps_every_token_of_every_document(texts: list[str], max_length: int, strategy: str) -> None:
    documents = [(f"doc{index}", text) for index, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as directory:
        check_packed(documents, pack_documents(documents, ENCODER, Packing(max_length, strategy), Path(directory)))


@pytest.mark.parametrize("packing", [Packing(7), Packing(7, "wrapped")])
def test_packing_keeps_every_token_across_its_batches(packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_BATCH_TOKENS", 16), ("_BATCH_SPANS", 3)):
        monkeypatch.setattr(pack, name, value)
    for name, value in (("_UNIT_CHARACTERS", 100), ("_BATCH_CHARACTERS", 40)):
        monkeypatch.setattr(token_files, name, value)
    told = []
    packed = pack_documents(MANY, ENCODER, packing, tmp_path, lambda *counts: told.append(counts))
    check_packed(MANY, packed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.arrow", "spans.parquet"]
    with pa.ipc.open_stream(tmp_path / "rows.arrow") as reader:
        assert len(list(reader)) > 3
    assert pq.ParquetFile(tmp_path / "spans.parquet").num_row_groups > 3
    assert len(told) > 3
    assert told == sorted(told)
    assert told[-1] == (packed.num_documents, packed.num_tokens)


@pytest.mark.parametrize("packing", PACKINGS)
def test_packing_writes_the_same_rows_however_it_is_cut(
    packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    pack_documents(MANY, ENCODER, packing, tmp_path / "one")
    monkeypatch.setattr(token_files, "_NUM_THREADS", 5)
    monkeypatch.setattr(token_files, "_UNIT_CHARACTERS", 50)
    (tmp_path / "five").mkdir()
    pack_documents(MANY, ENCODER, packing, tmp_path / "five")
    assert contents(tmp_path / "one") == contents(tmp_path / "five")


def test_packing_gives_the_rows_of_a_hand_worked_case(tmp_path: Path) -> None:
    packed = pack_documents([("x", "ab"), ("y", "")], ENCODER, Packing(3, "wrapped"), tmp_path)
    a, b = ENCODER.encode(["a"])[0][0], ENCODER.encode(["b"])[0][0]
    begin, end = ENCODER.begin_id, ENCODER.end_id
    assert packed_rows(packed) == [[begin, a, b], [end, begin, end]]
    assert packed_rows(packed, "seq_lengths") == [[3], [1, 2]]
    assert packed.spans().to_pylist() == [
        {"doc_id": "x", "token": 0, "row": 0, "start": 0, "end": 3},
        {"doc_id": "x", "token": 3, "row": 1, "start": 0, "end": 1},
        {"doc_id": "y", "token": 0, "row": 1, "start": 1, "end": 3},
    ]
    assert packed.filled_fraction == 1.0


def test_packing_puts_the_remainder_after_longer_documents(tmp_path: Path) -> None:
    packed = pack_documents([("x", "ab"), ("y", "")], ENCODER, Packing(3), tmp_path)
    begin, end = ENCODER.begin_id, ENCODER.end_id
    assert packed_rows(packed)[1] == [begin, end, end]
    assert packed_rows(packed, "seq_lengths") == [[3], [2, 1]]


@pytest.mark.parametrize("packing", PACKINGS)
def test_packing_of_no_documents_has_no_rows(packing: Packing, tmp_path: Path) -> None:
    packed = pack_documents([], ENCODER, packing, tmp_path)
    check_packed([], packed)
    assert (packed.num_rows, len(packed.rows()), packed.spans().num_rows, packed.filled_fraction) == (0, 0, 0, 1.0)


def test_packing_has_more_token_files_than_a_process_may_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(token_files, "_UNIT_CHARACTERS", 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 40, limits[1]))
    try:
        packed = pack_documents([(str(number), "word") for number in range(100)], ENCODER, Packing(32), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert packed.num_documents == 100


def test_packing_refuses_rows_that_lost_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_read_back", lambda directory: (2, 2, 3))
    with pytest.raises(LmsplitError, match=r"\(2, 2, 3\) rows, pieces and tokens were read back, \(2, 2, 4\) were written"):
        pack_documents([("x", "ab")], ENCODER, Packing(3), tmp_path)


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_split_holds_the_manifests_documents(packing: Packing, manifest_path: Path, tmp_path: Path) -> None:
    manifest = Manifest.open(manifest_path)
    packed = pack_split(manifest, ENCODER, packing, "d00001", "train", tmp_path)
    check_packed(of_split(manifest, "d00001", "train"), packed)
    assert packed.num_documents == manifest.domain("d00001").splits["train"]
    assert (packed.domain, packed.num_filtered, packed.max_length, packed.strategy) == ("d00001", 0, *packing)
    assert packed.filled_fraction == packed.num_tokens / (packed.num_rows * 32) > 0.99
    rows = packed.rows()
    assert rows.column_names == ["input_ids", "seq_lengths"]
    assert rows.cache_files == [{"filename": str(packed.directory / "rows.arrow")}]
    assert np.concatenate(rows.with_format("numpy")["input_ids"][:]).tolist() == [*chain(*packed_rows(packed))]
    assert sorted(path.name for path in packed.directory.iterdir()) == ["pack.json", "rows.arrow", "spans.parquet"]


def test_packed_split_is_made_once(manifest_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.open(manifest_path)
    first = pack_split(manifest, ENCODER, PACKINGS[0], "d00000", "heldout", tmp_path)
    monkeypatch.setattr(pack, "pack_documents", lambda *_: pytest.fail("packed again"))
    assert pack_split(manifest, ENCODER, PACKINGS[0], "d00000", "heldout", tmp_path) == first == open_packed(first.directory)


def test_packed_split_is_made_anew_for_another_strategy_or_filter(manifest_path: Path, tmp_path: Path) -> None:
    manifest = Manifest.open(manifest_path)
    made = [pack_split(manifest, ENCODER, packing, "d00000", "train", tmp_path) for packing in PACKINGS]
    made.append(pack_split(manifest, ENCODER, PACKINGS[0], "d00000", "train", tmp_path, {"source": ["none such"]}))
    made.append(pack_split(manifest, DocumentEncoder(train_tokenizer([["abc"]], 280)), PACKINGS[0], "d00000", "train", tmp_path))
    assert len({packed.directory for packed in made}) == 4
    assert len(list(tmp_path.iterdir())) == 4


def test_packed_split_goes_on_where_it_was_interrupted(
    manifest_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(DocumentEncoder):
        left = 10**9
        num_encoded = 0

        def encode(self, texts: list[str]) -> list[list[int]]:
            if self.left < 1:
                raise KeyboardInterrupt
            self.left -= 1
            self.num_encoded += len(texts)
            return super().encode(texts)

    monkeypatch.setattr(token_files, "_UNIT_CHARACTERS", 20_000)
    manifest, encoder = Manifest.open(manifest_path), Counting(ENCODER.tokenizer)
    whole = pack_split(manifest, ENCODER, PACKINGS[0], "d00000", "train", tmp_path / "at once")
    encoder.left = 3
    with pytest.raises(KeyboardInterrupt):
        pack_split(manifest, encoder, PACKINGS[0], "d00000", "train", tmp_path / "again")
    assert [path.name for path in (tmp_path / "again").iterdir()] == [f".{whole.digest}.partial"]
    encoder.left = 10**9
    packed = pack_split(manifest, encoder, PACKINGS[0], "d00000", "train", tmp_path / "again")
    assert encoder.num_encoded == packed.num_documents, "no document was encoded twice"
    assert contents(packed.directory) == contents(whole.directory)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from transformers import AutoTokenizer
    from lmsplit.manifests.reader import Manifest
    from lmsplit.train import pack, token_files
    from lmsplit.train.tokenizer import DocumentEncoder

    where, manifest, tokenizer, cache = sys.argv[1:]
    token_files._UNIT_CHARACTERS = 20_000
    module, name = (token_files, "_open") if where == "tokens" else (pack, where)
    original, calls = getattr(module, name), []

    def kill(*arguments):
        calls.append(arguments)
        if len(calls) == (4 if where == "tokens" else 1):
            if where != "tokens":
                original(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(module, name, kill)
    encoder = DocumentEncoder(AutoTokenizer.from_pretrained(tokenizer))
    pack.pack_split(Manifest.open(manifest), encoder, pack.Packing(32), "d00000", "train", Path(cache))
"""


@pytest.mark.parametrize("where", ["tokens", "_write_rows", "_write_record"])
def test_packed_split_is_the_same_after_a_kill(
    where: str, manifest_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "_UNIT_CHARACTERS", 20_000)
    ENCODER.tokenizer.save_pretrained(tmp_path / "tokenizer")
    manifest = Manifest.open(manifest_path)
    whole = pack_split(manifest, ENCODER, Packing(32), "d00000", "train", tmp_path / "at once")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), where, manifest_path, tmp_path / "tokenizer", tmp_path / "killed"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [f".{whole.digest}.partial"]
    packed = pack_split(manifest, ENCODER, Packing(32), "d00000", "train", tmp_path / "killed")
    assert contents(packed.directory) == contents(whole.directory)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [whole.digest]


def test_packed_split_holds_only_the_documents_asked_for(manifest_path: Path, tmp_path: Path) -> None:
    manifest = Manifest.open(manifest_path)
    batches = manifest.documents(domain="d00000", split="train", columns=["doc_id", "text", "source"])
    rows = [row for batch in batches for row in batch.to_pylist()]
    wanted = sorted({row["source"] for row in rows})[:2]
    packed = pack_split(manifest, ENCODER, PACKINGS[0], "d00000", "train", tmp_path, {"source": wanted})
    chosen = [(row["doc_id"], row["text"]) for row in rows if row["source"] in wanted]
    check_packed(chosen, packed)
    assert 0 < packed.num_filtered == len(rows) - len(chosen)
    other = pack_split(manifest, ENCODER, PACKINGS[0], "d00000", "train", tmp_path, {"source": wanted[::-1]})
    assert other == packed


def test_packed_split_may_be_empty(manifest_path: Path, tmp_path: Path) -> None:
    manifest = Manifest.open(manifest_path)
    packed = pack_split(manifest, ENCODER, PACKINGS[0], "d00000", "train", tmp_path, {"source": []})
    check_packed([], packed)
    assert packed.num_filtered == manifest.domain("d00000").splits["train"]


def test_packed_split_of_an_unknown_domain_or_split_is_refused(manifest_path: Path, tmp_path: Path) -> None:
    manifest = Manifest.open(manifest_path)
    with pytest.raises(ManifestError, match="no domain 'd9'"):
        pack_split(manifest, ENCODER, PACKINGS[0], "d9", "train", tmp_path)
    with pytest.raises(ManifestError, match="no split 'test'"):
        pack_split(manifest, ENCODER, PACKINGS[0], "d00000", "test", tmp_path)


def test_packed_split_refuses_a_filter_before_it_leaves_anything(manifest_path: Path, tmp_path: Path) -> None:
    manifest = Manifest.open(manifest_path)
    with pytest.raises(ConfigurationError, match="cannot be chosen by"):
        pack_split(manifest, ENCODER, PACKINGS[0], "d00000", "train", tmp_path, {"text": ["a"]})
    assert list(tmp_path.iterdir()) == []


def test_pack_digest_differs_in_everything_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"source": ["a"]}
    arguments = ("m", "t", Packing(8), "d00000", "train", where)
    others = [("M", "t", Packing(8), "d00000", "train", where), ("m", "T", Packing(8), "d00000", "train", where)]
    others += [("m", "t", Packing(9), "d00000", "train", where), ("m", "t", Packing(8, "wrapped"), "d00000", "train", where)]
    others += [("m", "t", Packing(8), "d00001", "train", where), ("m", "t", Packing(8), "d00000", "heldout", where)]
    others += [("m", "t", Packing(8), "d00000", "train", other) for other in ({}, {"source": ["b"]}, {"group": ["a"]})]
    digests = {pack_digest(*each) for each in [arguments, *others]}
    monkeypatch.setattr(pack, "VERSION", pack.VERSION + 1)
    assert len({*digests, pack_digest(*arguments)}) == len(others) + 2


def test_pack_digest_is_the_same_for_the_same_choice() -> None:
    first = pack_digest("m", "t", Packing(8), "d", "train", {"a": ["x", "y"], "b": [1]})
    assert first == pack_digest("m", "t", Packing(8), "d", "train", {"b": [1], "a": ["y", "x", "x"]})
    assert pack_digest("m", "t", Packing(8), "d", "train") == pack_digest("m", "t", Packing(8), "d", "train", {})
