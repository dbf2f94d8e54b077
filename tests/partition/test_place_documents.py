"""The step in real pipelines: what it says of a document is what the manifest's row says, to the last bit."""

import copy
import json
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers.jsonl import JsonlReader
from datatrove.pipeline.readers.parquet import ParquetReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.pipeline.writers.parquet import ParquetWriter
from threadpoolctl import threadpool_info, threadpool_limits

from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.manifests.lexical import LexicalEncoder
from lmsplit.manifests.placement import Floats
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.sentence import SentenceEncoder
from lmsplit.partition import place_documents
from lmsplit.partition.pipeline import partition
from lmsplit.partition.place_documents import KEYS, PlaceDocuments
from tests.partition.corpora import configuration, quarantined, rows, topical, write

# Datatrove's executor forks its manager; Python 3.12 and later warn of that where a library has begun threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

NUMBERS = ("distance", "second_distance", "margin")


@pytest.fixture(scope="module")
def encoded_manifest(mixed_corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixed corpus in three domains by the tiny model."""
    output = tmp_path_factory.mktemp("encoded") / "manifest"
    partition(configuration(mixed_corpus, output, encoder={"model": str(tiny_model)}))
    return output


@pytest.fixture(scope="module")
def with_bad_records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus with texts that have no place, and its manifest in one domain."""
    corpus, output = (tmp_path_factory.mktemp("bad") / name for name in ("corpus", "manifest"))
    bad = [{"id": f"bad-{text}", "text": text} for text in (" \n", "the of and", "zyzzyva quokka", "\u3000")]
    documents = topical(60)
    write(corpus / "a.jsonl", [*bad[:2], *documents[:30], *bad[2:], *documents[30:]])
    partition(configuration(corpus, output, domains=1, max_bad_fraction=0.1))
    return corpus, output


def documents_of(manifest: Path) -> list[Document]:
    return [Document(row["text"], row["doc_id"]) for row in rows(manifest)]


def check(manifest: Path, documents: list[Document], prefix: str = "") -> None:
    """Assert that the documents are the manifest's, with what its rows say of them."""
    published = {row["doc_id"]: row for row in rows(manifest)}
    labels = {domain.domain: domain.label for domain in Manifest.open(manifest).domains}
    assert sorted(document.id for document in documents) == sorted(published)
    for document in documents:
        row = published[document.id]
        found = {key: document.metadata[prefix + key] for key in KEYS}
        assert found == {**{key: row[key] for key in KEYS if key != "label"}, "label": labels[row["domain"]]}
        assert all(np.float32(found[key]).tobytes() == np.float32(row[key]).tobytes() for key in NUMBERS if row[key] is not None)
        assert {type(value) for value in found.values()} <= {str, float, type(None)}
        assert document.text == row["text"]


def execute(steps: list[PipelineStep], logs: Path, *, tasks: int, workers: int) -> Any:
    return LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=str(logs)).run()


def read(reader: PipelineStep) -> list[Document]:
    return list(reader())


def test_json_lines_through_an_executor_with_two_workers_get_the_manifests_rows(
    corpus_path: Path, manifest_path: Path, tmp_path: Path
) -> None:
    steps = [JsonlReader(str(corpus_path)), PlaceDocuments(manifest_path, batch_size=64), JsonlWriter(str(tmp_path / "out"))]
    stats = execute(steps, tmp_path / "logs", tasks=2, workers=2)
    for rank in range(2):
        expected = [document.id for document in JsonlReader(str(corpus_path))(None, rank, 2)]
        assert [document.id for document in read(JsonlReader(str(tmp_path / "out"), glob_pattern=f"{rank:05d}*"))] == expected
    placed = read(JsonlReader(str(tmp_path / "out")))
    check(manifest_path, placed)
    counts = Counter(f"domain_{document.metadata['domain']}" for document in placed)
    assert {label: stat.total for label, stat in stats.stats[1].stats.items()} == {**counts, "total": len(placed)}
    assert json.loads((tmp_path / "logs" / "executor.json").read_text())["pipeline"][1]["manifest"] == str(manifest_path)


def test_parquet_through_an_executor_with_a_model_gets_the_manifests_rows(
    encoded_manifest: Path, tiny_model: Path, tmp_path: Path
) -> None:
    step = PlaceDocuments(encoded_manifest, prefix="again_", model=tiny_model)
    reader = ParquetReader(str(encoded_manifest / "data"), id_key="doc_id")  # has metadata `domain` and so on
    execute([reader, step, ParquetWriter(str(tmp_path / "out"))], tmp_path / "logs", tasks=2, workers=1)
    placed = read(ParquetReader(str(tmp_path / "out")))
    check(encoded_manifest, placed, "again_")
    assert all(document.metadata["again_domain"] == document.metadata["domain"] for document in placed)


@pytest.mark.parametrize("batch_size", [1, 7, 4096])
@pytest.mark.parametrize("kind", ["lexical", "sentence"])
def test_values_are_the_same_in_any_batch(
    mixed_manifest: Path, encoded_manifest: Path, tiny_model: Path, kind: str, batch_size: int
) -> None:
    manifest, model = (mixed_manifest, None) if kind == "lexical" else (encoded_manifest, tiny_model)
    documents = documents_of(manifest)[::-1]
    placed = list(PlaceDocuments(manifest, batch_size=batch_size, model=model)(iter(documents)))
    assert [id(document) for document in placed] == [id(document) for document in documents]
    check(manifest, placed)


def test_batches_are_bounded_in_characters_too(mixed_manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_documents, "BATCH_CHARACTERS", 200)
    taken = []

    def documents() -> Iterator[Document]:
        for document in documents_of(mixed_manifest):
            taken.append(len(document.text))
            yield document

    step = PlaceDocuments(mixed_manifest)
    next(step(documents()))
    assert 200 <= sum(taken) < 200 + taken[-1]
    taken.clear()
    list(step(documents()))
    assert 10 < step.stats.time_stats.n - 1 <= sum(taken) / 200 + 1  # each batch but the last is as large again


@pytest.mark.parametrize("batch_size", [1, 3, 4096])
def test_exactly_the_texts_that_the_manifest_set_aside_have_no_place(
    with_bad_records: tuple[Path, Path], batch_size: int
) -> None:
    corpus, manifest = with_bad_records
    step = PlaceDocuments(manifest, batch_size=batch_size)
    placed = list(step(JsonlReader(str(corpus))()))
    assert [document.id for document in placed] == [document.id for document in read(JsonlReader(str(corpus)))]
    aside = [document for document in placed if document.metadata["domain"] is None]
    assert [document.id for document in aside] == [
        row["doc_id"] for row in sorted(quarantined(manifest), key=lambda row: row["source_row"])
    ]
    assert all(document.metadata[key] is None for document in aside for key in KEYS)
    check(manifest, [document for document in placed if document not in aside])
    assert {label: stat.total for label, stat in step.stats.stats.items()} == {"total": 64, "no_domain": 4, "domain_d00000": 60}


def test_one_domain_has_no_runner_up(with_bad_records: tuple[Path, Path]) -> None:
    [document] = PlaceDocuments(with_bad_records[1])([Document("bread oven flour", "a")])
    assert [document.metadata[key] for key in ("domain", "second_domain", "second_distance", "margin")] == ["d00000", *[None] * 3]
    assert document.metadata["distance"] > 0


@pytest.mark.parametrize("text", ["", "\t ", "\ud800 bread"])
def test_blank_and_broken_texts_have_no_place_though_a_model_would_encode_them(
    encoded_manifest: Path, tiny_model: Path, text: str
) -> None:
    placed = list(PlaceDocuments(encoded_manifest, model=tiny_model)([Document(text, "a"), Document("bread", "b")]))
    assert [document.metadata["domain"] is None for document in placed] == [True, False]


def test_documents_without_a_place_are_written_to_parquet_with_a_schema(
    with_bad_records: tuple[Path, Path], tmp_path: Path
) -> None:
    corpus, manifest = with_bad_records  # its first document has no place
    schema = pa.schema([("text", pa.string()), ("id", pa.string()), ("domain", pa.string()), ("distance", pa.float64())])
    writer = ParquetWriter(str(tmp_path / "out"), expand_metadata=True, schema=schema)
    execute([JsonlReader(str(corpus)), PlaceDocuments(manifest), writer], tmp_path / "logs", tasks=1, workers=1)
    domains = [document.metadata["domain"] for document in read(ParquetReader(str(tmp_path / "out")))]
    assert Counter(domains) == {None: 4, "d00000": 60}


def test_metadata_that_is_there_is_never_overwritten(mixed_manifest: Path) -> None:
    mine = Document("bread oven", "mine", metadata={"domain": "example.com", "label": "spam"})
    other = Document("bread oven", "other")
    message = (
        "document 'mine' has metadata domain, label already, which PlaceDocuments would overwrite: "
        "give it another prefix than '', such as prefix='lmsplit_'"
    )
    with pytest.raises(ConfigurationError, match=message):
        list(PlaceDocuments(mixed_manifest)([other, mine]))
    assert (other.metadata, mine.metadata) == ({}, {"domain": "example.com", "label": "spam"})
    [document] = PlaceDocuments(mixed_manifest, prefix="lmsplit_")([mine])
    assert document.metadata.keys() == {"domain", "label", *(f"lmsplit_{key}" for key in KEYS)}
    assert document.metadata["domain"] == "example.com"


def test_pickle_of_a_step_is_its_arguments_before_and_after_it_ran(mixed_manifest: Path) -> None:
    step = PlaceDocuments(mixed_manifest, prefix="p_", batch_size=5)
    before = len(pickle.dumps(step))
    list(step(documents_of(mixed_manifest)))
    assert before < 1000
    assert len(pickle.dumps(step)) < 2000  # with statistics
    for again in (pickle.loads(pickle.dumps(step)), copy.deepcopy(step)):
        check(mixed_manifest, list(again(documents_of(mixed_manifest))), "p_")


def test_nothing_is_opened_without_documents(tmp_path: Path) -> None:
    step = PlaceDocuments(tmp_path / "none")
    assert [*step(None), *step([]), *step(iter(()))] == []


def test_one_thread_places_and_other_steps_keep_theirs(mixed_manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, inside = LexicalEncoder.encode, []

    def watched(self: LexicalEncoder, texts: Sequence[str]) -> Floats:
        inside.extend(library["num_threads"] for library in threadpool_info())
        return encode(self, texts)

    monkeypatch.setattr(LexicalEncoder, "encode", watched)
    with threadpool_limits(2):
        placing = PlaceDocuments(mixed_manifest, batch_size=2)(documents_of(mixed_manifest))
        before = [library["num_threads"] for library in threadpool_info()]
        next(placing)
        assert [library["num_threads"] for library in threadpool_info()] == before
    assert (set(before), set(inside)) == ({2}, {1})


def test_place_that_holds_no_manifest_is_named(tmp_path: Path, mixed_manifest: Path) -> None:
    document = Document("bread", "a")
    with pytest.raises(ManifestError, match=f"{tmp_path} is not a manifest: it has no commits/00000.json"):
        list(PlaceDocuments(tmp_path)([document]))
    with pytest.raises(ManifestError, match=r"@7 does not exist: its commits are 0 to 0"):
        list(PlaceDocuments(f"{mixed_manifest}@7")([document]))
    assert list(PlaceDocuments(f"{mixed_manifest}@0")([document])) == [document]


def test_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="batch_size is 0: choose at least 1"):
        PlaceDocuments("manifest", batch_size=0)


def test_error_of_the_encoder_says_what_the_step_can_be_given(encoded_manifest: Path) -> None:
    with pytest.raises(ConfigurationError, match="this manifest's encoder was a model in a directory") as caught:
        list(PlaceDocuments(encoded_manifest)([Document("bread", "a")]))
    travelled = pickle.loads(pickle.dumps(caught.value))  # as from a worker
    assert travelled.__notes__ == caught.value.__notes__
    assert "In PlaceDocuments: model= names the model's directory" in travelled.__notes__[0]


def test_machine_with_other_bits_is_refused_unless_allowed(
    encoded_manifest: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = SentenceEncoder.probe
    monkeypatch.setattr(SentenceEncoder, "probe", lambda self: np.nextafter(probe(self), np.float32(1)))
    with pytest.raises(ConfigurationError, match="this machine computes other vectors than those pinned") as caught:
        list(PlaceDocuments(encoded_manifest, model=tiny_model)([Document("bread", "a")]))
    assert "exact=False allows other bits than the manifest's" in caught.value.__notes__[0]
    [document] = PlaceDocuments(encoded_manifest, model=tiny_model, exact=False)([Document("bread", "a")])
    assert document.metadata["domain"] is not None
