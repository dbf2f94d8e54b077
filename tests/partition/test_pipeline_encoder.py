"""Whole runs with a sentence encoder: the same bytes for any workers and kills, nothing encoded twice, no path of a machine."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from lmsplit.manifests.errors import ConfigurationError, ConflictError, InputError
from lmsplit.manifests.placement import Floats
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.sentence import SentenceEncoder
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition import units
from lmsplit.partition.engine import run_stage
from lmsplit.partition.ids import Settle
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.run import Run
from lmsplit.partition.sample import Sample
from lmsplit.partition.scan import Scan
from tests.models import MAX_TOKENS, change, copied
from tests.partition.corpora import HERE, configuration, rows, topical, tree, write

SAMPLE = 150


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoded")
    documents = topical(400)
    for index in range(4):
        write(directory / f"{index}.jsonl", documents[100 * index : 100 * index + 100])
    return directory


@pytest.fixture(scope="module")
def published(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("encoded-published") / "manifest"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "MIN_UNIT_BYTES", 5_000)
        partition(configuration(corpus, output, encoder={"model": str(tiny_model)}, sample_size=SAMPLE))
    return output


def test_two_workers_and_a_model_elsewhere_give_the_same_bytes(
    corpus: Path, published: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 5_000)
    moved = copied(tiny_model, tmp_path / "the same model elsewhere")
    asked = configuration(corpus, tmp_path / "out", encoder={"model": str(moved)}, sample_size=SAMPLE)
    commit = partition(asked.model_copy(update={"executor": asked.executor.model_copy(update={"workers": 2})}))
    assert tree(tmp_path / "out") == tree(published)
    assert commit.body_sha256 == Manifest.open(published).digest


def test_every_document_is_encoded_once(corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 5_000)
    seen: list[str] = []
    encode = SentenceEncoder.encode

    def counting(self: SentenceEncoder, texts: Sequence[str]) -> Floats:
        seen.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(SentenceEncoder, "encode", counting)
    partition(configuration(corpus, tmp_path / "out", encoder={"model": str(tiny_model)}, sample_size=SAMPLE))
    published = [row["text"] for row in rows(tmp_path / "out")]
    encoded = [text for text in seen if text in set(published)]  # without the probe
    assert sorted(encoded) == sorted(published)


def test_manifest_is_sound_and_its_rows_are_what_its_encoder_gives_alone(published: Path, tiny_model: Path) -> None:
    assert verify_manifest(published, deep=True, model=str(tiny_model)) == []
    manifest = Manifest.open(published)
    encoder, rule = manifest.encoder(exact=True, model=str(tiny_model)), manifest.rule()
    for row in rows(published)[:40]:  # one text at a time, though they were placed in batches and some from the sample
        placed = rule.place(encoder.encode([row["text"]]))
        assert (f"d{placed.domain[0]:05d}", placed.distance[0], placed.margin[0]) == (
            row["domain"], np.float32(row["distance"]), np.float32(row["margin"]),
        )  # fmt: skip


def test_verify_without_the_model_says_what_to_name(published: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"weights of sha256 .* name such a directory \(--model\).*--deep --sample 0"):
        verify_manifest(published, deep=True)
    assert verify_manifest(published, deep=True, sample=0) == []


def test_manifest_names_no_path_of_this_machine(published: Path, tiny_model: Path, corpus: Path) -> None:
    text = b"".join(path.read_bytes() for folder in ("commits", "plans", "placement") for path in published.glob(f"{folder}/*"))
    for place in (tiny_model, corpus, published):
        assert str(place).encode() not in text
    encoder = json.loads(next(published.glob("placement/*.json")).read_text())["encoder"]
    assert (encoder["model"], encoder["max_tokens"], encoder["device"]) == (None, MAX_TOKENS, "cpu")
    name = Manifest.open(published).encoder_name
    assert name == f"weights {encoder['weights_sha256'][:12]} ({encoder['precision']}, {MAX_TOKENS} tokens)"
    assert f"\n{name}: weights `" in (published / "README.md").read_text()


def test_model_that_changed_under_a_run_is_another_run(
    corpus: Path, tiny_model: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 5_000)
    other = copied(tiny_model, tmp_path / "model")
    change(other / "tokenizer.json", version="1.0 ")
    with pytest.raises(ConflictError, match="holds the manifest of run"):
        partition(configuration(corpus, published, encoder={"model": str(other)}, sample_size=SAMPLE))


def test_resume_on_a_machine_that_computes_otherwise_is_refused(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    asked = configuration(corpus, tmp_path / "out", encoder={"model": str(tiny_model)}, sample_size=SAMPLE)
    plan = make_plan(asked)
    run = Run(str(tmp_path / "out"), plan.run_id)
    run.start(plan.content, plan.here)
    for stage in (Scan(run), Settle(run), Sample(run)):
        run_stage(stage, HERE)
    receipt = next((tmp_path / "out").glob("_work/*/sample/00000.json"))
    pinned = json.loads(receipt.read_text())
    pinned["probe"][0][0] += 1e-3
    receipt.unlink()
    receipt.write_text(json.dumps(pinned))
    with pytest.raises(ConfigurationError, match="this machine computes other vectors than those pinned"):
        partition(asked)
    assert not (tmp_path / "out" / "commits").exists()


def test_tokenizer_that_changed_under_a_run_stops_it(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes((tiny_model / "tokenizer.json").read_bytes())
    asked = configuration(corpus, tmp_path / "out", tokenizer=str(tokenizer))
    plan = make_plan(asked)
    change(tokenizer, added_tokens=[])
    with pytest.raises(InputError, match=r"has digest .*, planned was .*: restore it, or run the same command again"):
        partition(asked, plan)


def test_settings_of_a_model_in_a_directory_determine_the_run(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = copied(tiny_model, tmp_path / "model")
    first = make_plan(configuration(corpus, tmp_path / "out", encoder={"model": str(other)})).run_id
    change(other / "1_Pooling" / "config.json", pooling_mode="cls")
    assert make_plan(configuration(corpus, tmp_path / "out", encoder={"model": str(other)})).run_id != first


def test_tokens_are_counted_to_the_last_one(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    commit = partition(configuration(corpus, tmp_path / "out", tokenizer=str(tiny_model / "tokenizer.json")))
    published = rows(tmp_path / "out")
    expected = [len(tokenizer.encode(row["text"], add_special_tokens=False)) for row in published]
    assert [row["num_tokens"] for row in published] == expected
    manifest = Manifest.open(tmp_path / "out")
    assert commit.body.counts.tokens == sum(expected) == sum(domain.num_tokens or 0 for domain in manifest.domains)
    assert verify_manifest(tmp_path / "out", deep=True) == []
    assert str(tiny_model).encode() not in (tmp_path / "out" / "commits" / "00000.json").read_bytes()
