import json
from pathlib import Path
from typing import Any

import pytest

from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.reader import Domain
from lmsplit.train.card import render_card
from lmsplit.train.loss import HeldOutLoss
from lmsplit.train.record import (
    RECORD,
    DomainLosses,
    DomainTokens,
    Evaluation,
    Loss,
    ManifestReference,
    RunRecord,
    read_record,
    weights_sha256,
)

DOMAIN = Domain(
    domain="d00001",
    path=(1,),
    label="<script> | sums",
    keywords=("sum", "a*b*"),
    representatives=(),
    excerpts=(),
    documents=12,
    num_bytes=99,
    num_tokens=None,
    splits={"train": 10, "heldout": 2, "excluded": 0},
    mean_distance=0.5,
    price=0.0,
)


def domain_tokens(repetitions: float) -> DomainTokens:
    return DomainTokens(
        pack="p",
        num_documents=10,
        num_filtered=3,
        num_tokens=70,
        trained_tokens=105,
        not_reached_tokens=0,
        repetitions=repetitions,
    )


def record(**fields: Any) -> RunRecord:
    losses = DomainLosses(
        before=Loss(nats_per_token=5.0, bits_per_byte=2.0),
        after=Loss.of(HeldOutLoss(2, 10, 40, 42.5)),
        num_documents=2,
        num_tokens=10,
        num_bytes=40,
    )
    values: dict[str, Any] = {
        "kind": "expert",
        "domain": "d00001",
        "label": DOMAIN.label,
        "manifest": ManifestReference(path="manifest/", digest="ab" * 32),
        "tokenizer_digest": "t",
        "configuration_digest": "c",
        "configuration": {"tokens": 100},
        "num_parameters": 1000,
        "num_parameters_non_embedding": 600,
        "pretraining_tokens": 5000,
        "specialization_tokens": 123_456,
        "where": {"license": ["mit", "cc0"], "gold": [True]},
        "domains": {"d00001": domain_tokens(1.5), "d00000": domain_tokens(0.25)},
        "num_steps": 4,
        "batch_rows": 8,
        "max_length": 16,
        "losses": {"d00001": losses},
        "evaluations": [Evaluation(step=2, tokens=50, losses={"d00001": losses.after})],
        "train_loss": 4.4,
        "flops": 6e5,
        "wall_time_s": 2.0,
        "tokens_per_s": 50.0,
        "data_wait_fraction": 0.125,
        "model_flops_utilization": None,
        "energy_kwh": None,
        "num_processes": 1,
        "num_threads": 2,
        "precision": "fp32",
        "device": "cpu",
        "weights_sha256": "w",
        "seed_weights_sha256": "s",
    }
    return RunRecord(**(values | fields))


def test_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(record().to_json())
    assert read_record(tmp_path) == record()
    assert json.loads((tmp_path / RECORD).read_text())["schema_version"] == 2
    loss = record().loss("d00001")
    assert loss is not None
    assert (loss.nats_per_token, loss.bits_per_byte) == (4.25, pytest.approx(1.5328, abs=1e-4))
    assert record().loss("d00000") is None


def test_record_never_holds_a_loss_that_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"train_loss\s+Input should be a finite number"):
        record(train_loss=float("nan"))


@pytest.mark.parametrize("text", ["", "{}", record().to_json().replace('"schema_version": 2', '"schema_version": 1')])
def test_unreadable_record_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ManifestError, match=f"remove {tmp_path} to train it again"):
        read_record(tmp_path)


def test_weights_digest_sees_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"one")
    digests = {weights_sha256(tmp_path)}
    (tmp_path / "model-1.safetensors").write_bytes(b"two")
    digests.add(weights_sha256(tmp_path))
    (tmp_path / "model-1.safetensors").rename(tmp_path / "model-2.safetensors")
    digests.add(weights_sha256(tmp_path))
    (tmp_path / "README.md").write_text("not a weight")
    digests.add(weights_sha256(tmp_path))
    assert len(digests) == 3


def test_card_names_commit_domain_tokens_and_losses() -> None:
    card = render_card(record(), [DOMAIN])
    for text in ("ab" * 32, "`d00001`", "123,456", "5,000", "| 5.0000 | 4.2500 |", "10 training documents"):
        assert text in card


def test_card_of_an_expert_says_how_often_it_saw_its_own_documents() -> None:
    card = render_card(record(), [DOMAIN])
    assert "| passes over the documents | 1.50 |" in card
    assert "| only documents with | license mit or cc0; gold True |" in card
    assert "no filter" in render_card(record(where=None), [DOMAIN])
    seed = record(kind="seed", domain=None, label=None, seed_weights_sha256=None)
    assert "| passes over the documents | 0.25 to 1.50, by domain |" in render_card(seed, [DOMAIN])


def test_card_of_an_average_says_so() -> None:
    merged = record(kind="merged", domain=None, label=None, domains={}, evaluations=[], where=None)
    assert "# Average of the experts of 1 domains" in render_card(merged, [DOMAIN])


def test_card_escapes_the_row_filter() -> None:
    assert "source a\\|b\\*" in render_card(record(where={"source": ["a|b*"]}), [DOMAIN])


def test_card_escapes_what_comes_from_the_corpus() -> None:
    card = render_card(record(), [DOMAIN])
    assert "<script>" not in card
    assert "&lt;script&gt; \\| sums" in card
    assert "a\\*b\\*" in card


def test_card_of_a_seed_lists_every_domain() -> None:
    seed = record(kind="seed", domain=None, label=None, specialization_tokens=0, seed_weights_sha256=None)
    card = render_card(seed, [DOMAIN])
    assert "# Seed model of 1 domains" in card
    assert "tokens, expert" not in card
    assert "| d00001 | &lt;script&gt;" in card
