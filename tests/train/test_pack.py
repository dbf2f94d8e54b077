import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.manifests.errors import LmsplitError
from lmsplit.manifests.reader import Manifest
from lmsplit.train import pack
from lmsplit.train.pack import Packed, pack_digest, pack_documents, pack_split
from lmsplit.train.tokenizer import DocumentEncoder, train_tokenizer

ENCODER = DocumentEncoder(train_tokenizer([["a small corpus of words", "another corpus, other words"]], 300))

Documents = list[tuple[str, str]]


def packed_rows(packed: Packed) -> list[list[int]]:
    with pa.ipc.open_stream(packed.directory / "rows.arrow") as reader:
        return [row for batch in reader for row in batch.column("input_ids").to_pylist()]


def check_packed(documents: Documents, packed: Packed) -> None:
    rows = packed_rows(packed)
    expected = [[ENCODER.begin_id, *ids, ENCODER.end_id] for ids in ENCODER.encode([text for _, text in documents])]
    assert [*chain(*rows)] == [*chain(*expected)]
    assert [len(row) for row in rows] == packed.row_lengths().tolist()
    assert all(len(row) == packed.max_length for row in rows[:-1])
    assert (packed.num_rows, packed.num_tokens) == (len(rows), sum(map(len, rows)))
    found: dict[str, list[int]] = {doc_id: [] for doc_id, _ in documents}
    spans = packed.spans().to_pylist()
    for span in spans:
        found[span["doc_id"]] += rows[span["row"]][span["start"] : span["end"]]
    assert list(found.values()) == expected
    assert list(dict.fromkeys(span["doc_id"] for span in spans)) == [doc_id for doc_id, _ in documents]
    assert [ENCODER.decode(ids[1:-1]) for ids in found.values()] == [text for _, text in documents]


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.text(max_size=60), max_size=12), max_length=st.integers(2, 40))
def test_packing_keeps_every_token_of_every_document(texts: list[str], max_length: int) -> None:
    documents = [(f"doc{index}", text) for index, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as directory:
        check_packed(documents, pack_documents(documents, ENCODER, max_length, Path(directory)))


def test_packing_keeps_every_token_across_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_BATCH_DOCUMENTS", 2), ("_BATCH_TOKENS", 16), ("_BATCH_SPANS", 3), ("_BATCH_CHARACTERS", 40)):
        monkeypatch.setattr(pack, name, value)
    documents = [(f"doc{index}", "words of another corpus " * (index % 4)) for index in range(25)]
    packed = pack_documents(documents, ENCODER, 7, tmp_path)
    check_packed(documents, packed)
    with pa.ipc.open_stream(tmp_path / "rows.arrow") as reader:
        assert len(list(reader)) > 3
    assert pq.ParquetFile(tmp_path / "spans.parquet").num_row_groups > 3


def test_packing_gives_the_rows_of_a_hand_worked_case(tmp_path: Path) -> None:
    packed = pack_documents([("x", "ab"), ("y", "")], ENCODER, 3, tmp_path)
    a, b = ENCODER.encode(["a"])[0][0], ENCODER.encode(["b"])[0][0]
    begin, end = ENCODER.begin_id, ENCODER.end_id
    assert packed_rows(packed) == [[begin, a, b], [end, begin, end]]
    assert packed.spans().to_pylist() == [
        {"doc_id": "x", "row": 0, "start": 0, "end": 3},
        {"doc_id": "x", "row": 1, "start": 0, "end": 1},
        {"doc_id": "y", "row": 1, "start": 1, "end": 3},
    ]


def test_packing_refuses_rows_that_lost_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_read_back", lambda directory: (1, 2))
    with pytest.raises(LmsplitError, match="the rows hold 2 tokens, the documents 4"):
        pack_documents([("x", "ab")], ENCODER, 3, tmp_path)


def test_packed_split_holds_the_manifests_documents(manifest_path: Path, tmp_path: Path) -> None:
    manifest = Manifest.open(manifest_path)
    packed = pack_split(manifest, ENCODER, 32, "d00001", "train", tmp_path)
    batches = manifest.documents(domain="d00001", split="train", columns=["doc_id", "text"])
    documents = [(row["doc_id"], row["text"]) for batch in batches for row in batch.to_pylist()]
    check_packed(documents, packed)
    assert packed.num_documents == manifest.domain("d00001").splits["train"]
    assert packed.num_bytes == sum(len(text.encode()) for _, text in documents)
    rows = packed.rows()
    assert rows.column_names == ["input_ids"]
    assert rows.cache_files == [{"filename": str(packed.directory / "rows.arrow")}]
    assert np.concatenate(rows.with_format("numpy")["input_ids"][:]).tolist() == [*chain(*packed_rows(packed))]


def test_packed_split_is_made_once(manifest_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.open(manifest_path)
    first = pack_split(manifest, ENCODER, 32, "d00000", "heldout", tmp_path)
    monkeypatch.setattr(pack, "pack_documents", lambda *_: pytest.fail("packed again"))
    assert pack_split(manifest, ENCODER, 32, "d00000", "heldout", tmp_path) == first


def test_packed_split_leaves_nothing_when_it_is_interrupted(manifest_path: Path, tmp_path: Path) -> None:
    class Interrupted(DocumentEncoder):
        def encode(self, texts: object) -> list[list[int]]:
            raise KeyboardInterrupt

    encoder = Interrupted(ENCODER.tokenizer)
    with pytest.raises(KeyboardInterrupt):
        pack_split(Manifest.open(manifest_path), encoder, 32, "d00000", "train", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pack_digest_differs_in_everything_that_matters() -> None:
    arguments = ("m", "t", 8, "d00000", "train")
    others = [("M", "t", 8, "d00000", "train"), ("m", "T", 8, "d00000", "train"), ("m", "t", 9, "d00000", "train")]
    others += [("m", "t", 8, "d00001", "train"), ("m", "t", 8, "d00000", "heldout")]
    assert len({pack_digest(*each) for each in [arguments, *others]}) == 6
