from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest

from lmsplit.train import token_files
from lmsplit.train.token_files import batches, token_units
from lmsplit.train.tokenizer import DocumentEncoder, train_tokenizer

ENCODER = DocumentEncoder(train_tokenizer([["a small corpus of words"]], 300))
DOCUMENTS = [(f"doc{number}", "a naïve word " * number) for number in range(12)]


class Broken(DocumentEncoder):
    """Fails on one text."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if DOCUMENTS[7][1] in texts:
            raise RuntimeError("no luck")
        return super().encode(texts)


def test_token_units_hold_every_document_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "_UNIT_CHARACTERS", 100)
    units = [*token_units(iter(DOCUMENTS), ENCODER, tmp_path / "tokens")]
    assert len(units) > 3
    assert len(list((tmp_path / "tokens").iterdir())) == len(units)
    assert [*chain(*(unit.doc_ids.to_pylist() for unit in units))] == [doc_id for doc_id, _ in DOCUMENTS]
    assert sum(unit.num_bytes for unit in units) == sum(len(text.encode()) for _, text in DOCUMENTS)
    expected = [[ENCODER.begin_id, *ids, ENCODER.end_id] for ids in ENCODER.encode([text for _, text in DOCUMENTS])]
    assert [*chain(*(unit.lengths_N.tolist() for unit in units))] == [len(ids) for ids in expected]
    assert [*chain(*(unit.tokens_T.tolist() for unit in units))] == [*chain(*expected)]


def test_token_units_are_encoded_once_and_go_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "_UNIT_CHARACTERS", 1)
    broken = Broken(ENCODER.tokenizer)
    with pytest.raises(RuntimeError, match="no luck"):
        list(token_units(DOCUMENTS, broken, tmp_path))
    done = {path.name for path in tmp_path.iterdir()}
    assert {f"{number:06d}.arrow" for number in range(6)} <= done
    assert all(len(name) == len("000000.arrow") for name in done), "half a file is left"
    assert "000006.arrow" not in done, "the unit that holds the text"
    other = DocumentEncoder(ENCODER.tokenizer)
    monkeypatch.setattr(other, "encode", lambda texts: [[1] for _ in texts])
    resumed = [*token_units(DOCUMENTS, other, tmp_path)]
    anew = [unit for unit in resumed if unit.tokens_T.tolist() == [ENCODER.begin_id, 1, ENCODER.end_id]]
    assert len(anew) == len(resumed) - len(done)


def test_batches_end_with_the_document_that_fills_them() -> None:
    assert [*batches([], 3)] == []
    assert [*chain(*batches(DOCUMENTS, 30))] == DOCUMENTS
    sizes = [sum(len(text) for _, text in batch) for batch in batches(DOCUMENTS, 30)]
    assert all(size >= 30 for size in sizes[:-1])
