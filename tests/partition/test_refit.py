"""Kept vectors, and other domains from them: a next commit, nothing encoded again, the same documents held out."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.errors import ConfigurationError, ConflictError, ManifestError
from lmsplit.manifests.lexical import LexicalEncoder
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.refit import kept_vectors, refit_plan
from tests.partition.corpora import configuration, rows, topical, write


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write(tmp_path / "in" / "a.parquet", topical(120))
    write(tmp_path / "in" / "b.jsonl", [*topical(80, first=120), {"id": "empty", "text": "?"}])
    return tmp_path / "in"


@pytest.fixture
def kept(corpus: Path, tmp_path: Path) -> Partition:
    """A configuration whose manifest is there, with its vectors."""
    wanted = configuration(corpus, tmp_path / "out", keep_embeddings=True, max_bad_fraction=0.1)
    partition(wanted)
    return wanted


def refit(wanted: Partition, **keys: object) -> None:
    changed = Partition.model_validate(wanted.model_dump(mode="json") | keys)
    partition(changed, refit_plan(make_plan(changed), changed.output))


def test_kept_vectors_are_those_of_the_encoder(kept: Partition) -> None:
    manifest = Manifest.open(kept.output)
    found = {}
    for entry in manifest.body.files:
        if entry.path.startswith("embeddings/"):
            table = pq.read_table(manifest.store.path(entry.path))
            found |= dict(zip(table["doc_id"].to_pylist(), table["vector"].to_pylist(), strict=True))
    documents = rows(Path(kept.output))
    assert found.keys() == {row["doc_id"] for row in documents}
    expected = manifest.encoder().encode([row["text"] for row in documents])
    assert np.array_equal(expected, np.array([found[row["doc_id"]] for row in documents], np.float32))


def test_refit_is_the_next_commit_and_encodes_nothing(kept: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Manifest.open(kept.output)
    asked: list[int] = []
    original = LexicalEncoder.encode
    monkeypatch.setattr(LexicalEncoder, "encode", lambda self, texts: asked.append(len(texts)) or original(self, texts))
    refit(kept, domains=[2, 2], max_imbalance=1.5)
    assert sum(asked) <= 1  # the one text that has no vector to keep
    second = Manifest.open(kept.output)
    assert (second.version, second.body.parent, len(second.domains)) == (1, first.digest, 4)
    assert [domain.path for domain in second.domains] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert verify_manifest(kept.output, deep=True) == verify_manifest(f"{kept.output}@0", deep=True) == []
    assert Manifest.open(f"{kept.output}@0").digest == first.digest


def test_refit_holds_out_the_same_documents(kept: Partition) -> None:
    before = {row["doc_id"]: row["split"] for row in rows(Path(kept.output))}
    refit(kept, domains=5)
    after = {row["doc_id"]: row["split"] for row in rows(Path(kept.output))}
    assert before == after
    assert set(before.values()) >= {"train", "heldout"}


def test_refit_of_a_refit_goes_on_from_it(kept: Partition) -> None:
    refit(kept, domains=2)
    refit(kept, domains=4)
    manifest = Manifest.open(kept.output)
    assert (manifest.version, len(manifest.domains)) == (2, 4)
    assert manifest.body.parent == Manifest.open(f"{kept.output}@1").digest


def test_refit_gives_the_bytes_of_a_partition_with_the_same_encoder(kept: Partition, corpus: Path, tmp_path: Path) -> None:
    """lexical is fitted on the sample, which is the same here."""
    refit(kept, domains=4)
    fresh = configuration(corpus, tmp_path / "fresh", keep_embeddings=True, max_bad_fraction=0.1, domains=4)
    partition(fresh)
    assert rows(Path(kept.output)) == rows(tmp_path / "fresh")


def test_same_refit_again_is_the_same_commit(kept: Partition) -> None:
    changed = Partition.model_validate(kept.model_dump(mode="json") | {"domains": 4})
    plan = refit_plan(make_plan(changed), changed.output)
    first, second = partition(changed, plan), partition(changed, plan)
    assert first.body_sha256 == second.body_sha256
    assert Manifest.open(kept.output).version == 1


def test_without_refit_another_configuration_is_still_a_conflict(kept: Partition) -> None:
    with pytest.raises(ConflictError, match="choose another output"):
        partition(Partition.model_validate(kept.model_dump(mode="json") | {"domains": 4}))


def test_manifest_without_embeddings_cannot_be_refitted(corpus: Path, tmp_path: Path) -> None:
    wanted = configuration(corpus, tmp_path / "out", max_bad_fraction=0.1)
    partition(wanted)
    with pytest.raises(ConfigurationError, match="has no embeddings to refit from: partition it with keep_embeddings: true"):
        refit(wanted, domains=4)


def test_refit_without_a_manifest_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is not a manifest"):
        refit(configuration(corpus, tmp_path / "out"), domains=4)


@pytest.mark.parametrize(("key", "value"), [("seed", 5), ("heldout_fraction", 0.05), ("encoder", {"model": "minilm"})])
def test_refit_may_not_change_the_vectors_or_what_is_held_out(kept: Partition, key: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"{key}.* differ from commit 0 .*: a refit may change only domains"):
        refit(kept, **{key: value})


def test_refit_of_a_changed_corpus_is_refused(kept: Partition, corpus: Path) -> None:
    write(corpus / "c.jsonl", topical(9, first=500))
    with pytest.raises(ConfigurationError, match="files, units differ from commit 0"):
        refit(kept, domains=4)


def test_unit_without_kept_vectors_has_none(kept: Partition) -> None:
    ordinals, vectors_ND = kept_vectors(Manifest.open(kept.output), 999)
    assert (len(ordinals), vectors_ND.shape) == (0, (0, 0))
