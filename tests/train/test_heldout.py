"""Which held-out documents are measured, when, and that the numbers are those of the weights at that moment."""

import json
from pathlib import Path

import polars as pl
import pytest
from transformers import AutoModelForCausalLM

from lmsplit.manifests.reader import Manifest
from lmsplit.train import experts, heldout
from lmsplit.train.config import Evaluation
from lmsplit.train.heldout import HeldOut
from lmsplit.train.loss import HeldOutLoss
from lmsplit.train.record import Loss
from lmsplit.train.text_losses import evaluate_texts
from tests.train.runs import Watched, campaign_of, heldout_texts

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

DOMAINS = ["d00000", "d00001", "d00002"]


def chosen(manifest: Path, documents: int | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return the texts that are measured of each domain, in order."""
    measured: list[list[str]] = []

    def listed(_model, _encoder, batches, _max_length) -> HeldOutLoss:
        measured.append([text for batch in batches for text in batch])
        return HeldOutLoss(len(measured[-1]), 0, 0, 0.0)

    monkeypatch.setattr(heldout, "evaluate_texts", listed)
    held_out = HeldOut(Manifest.open(manifest), None, 32, Evaluation(documents=documents))
    found = held_out.measure(None)
    assert {name: loss.num_documents for name, loss in found.items()} == held_out.num_documents()
    return dict(zip(found, measured, strict=True))


@pytest.mark.parametrize("documents", [1, 3, 5, 7, 10_000, None])
def test_documents_are_evenly_chosen_from_all_that_are_held_out(
    manifest_path: Path, monkeypatch: pytest.MonkeyPatch, documents: int | None
) -> None:
    for domain, texts in chosen(manifest_path, documents, monkeypatch).items():
        held_out = heldout_texts(manifest_path, domain)
        count = len(held_out) if documents is None else min(documents, len(held_out))
        assert texts == [held_out[int(number * len(held_out) / count)] for number in range(count)]


def test_documents_are_evenly_chosen_from_those_asked_for(licensed_manifest: Path) -> None:
    manifest = Manifest.open(licensed_manifest)
    for domain in DOMAINS:
        rows = manifest.scan().filter(pl.col("domain") == domain, pl.col("split") == "train").select("doc_id", "license")
        wanted = rows.filter(pl.col("license").is_in(["mit", "cc0"])).collect()["doc_id"].to_list()
        batches = heldout.evenly_chosen(manifest, domain, "train", 7, ["doc_id"], {"license": ["mit", "cc0"]})
        found = [doc_id for batch in batches for doc_id in batch.column("doc_id").to_pylist()]
        assert found == [wanted[number * len(wanted) // 7] for number in range(7)]


def test_documents_do_not_depend_on_how_the_manifest_is_read(licensed_manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = chosen(licensed_manifest, 3, monkeypatch)
    read = Manifest.documents

    def one_by_one(self, **named):
        for batch in read(self, **named):
            yield from (batch.slice(row, 1) for row in range(batch.num_rows))

    monkeypatch.setattr(Manifest, "documents", one_by_one)
    assert chosen(licensed_manifest, 3, monkeypatch) == whole
    assert {len(texts) for texts in whole.values()} == {3}


def test_seed_and_experts_are_measured_on_the_same_documents(
    path: Path, licensed_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[list[str]] = []
    measure = evaluate_texts

    def listed(model, encoder, batches, max_length) -> HeldOutLoss:
        texts = [text for batch in batches for text in batch]
        measured.append(texts)
        return measure(model, encoder, [texts], max_length)

    monkeypatch.setattr(heldout, "evaluate_texts", listed)
    campaign = campaign_of(path, "evaluation.documents=3", "evaluation.every_steps=6")
    seed = experts.train_seed(campaign)
    assert seed is not None
    experts.train_expert(campaign, campaign.manifest.domain("d00002"), seed)
    rounds = [measured[start : start + 3] for start in range(0, len(measured), 3)]
    assert len(rounds) == 3 + 2  # after steps 6, 12, 16; after 6 and 8: before its first step an expert is the seed
    assert all(each == rounds[0] for each in rounds)
    assert seed.losses["d00000"].num_documents == 3


@pytest.mark.parametrize("documents", ["2", "null"])
def test_counts_are_those_of_the_documents(path: Path, licensed_manifest: Path, documents: str) -> None:
    campaign = campaign_of(path, f"evaluation.documents={documents}")
    seed = experts.train_seed(campaign)
    assert seed is not None
    for domain, losses in seed.losses.items():
        texts = heldout_texts(licensed_manifest, domain)
        texts = texts if documents == "null" else [texts[0], texts[len(texts) // 2]]
        assert losses.num_documents == len(texts)
        assert losses.num_bytes == sum(len(text.encode()) for text in texts)
        assert losses.num_tokens == sum(map(len, campaign.encoder.encode(texts)))


def test_evaluations_are_those_of_the_checkpoints(path: Path, licensed_manifest: Path) -> None:
    keys = ("evaluation.every_steps=5", "sft.save_steps=5", "sft.save_total_limit=9", "evaluation.documents=null")
    campaign = campaign_of(path, *keys)
    seed = experts.train_seed(campaign)
    assert seed is not None
    assert [each.step for each in seed.evaluations] == [5, 10, 15, 16]
    assert seed.evaluations[-1].tokens == seed.pretraining_tokens
    assert {name: each.after for name, each in seed.losses.items()} == seed.evaluations[-1].losses
    directory = campaign.output / "seed"
    for evaluation in seed.evaluations:
        assert list(evaluation.losses) == DOMAINS
        weights = directory if evaluation.step == 16 else directory / f"checkpoint-{evaluation.step}"
        model = AutoModelForCausalLM.from_pretrained(weights)
        for domain, loss in evaluation.losses.items():
            expected = evaluate_texts(model, campaign.encoder, [heldout_texts(licensed_manifest, domain)], 32)
            assert loss == Loss.of(expected)
    assert len({each.losses["d00000"].nats_per_token for each in seed.evaluations}) == 4


def test_tokens_of_evaluations_are_those_of_the_rows_so_far(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    campaign = campaign_of(path, "evaluation.every_steps=7")
    seed = experts.train_seed(campaign)
    assert seed is not None
    lengths = []
    for each in seed.domains.values():
        with pa.memory_map(str(campaign.output / "packed" / each.pack / "rows.arrow")) as source:
            lengths.append([len(ids) for ids in pa.ipc.open_stream(source).read_all()["input_ids"].to_pylist()])
    order = pq.read_table(campaign.output / "seed" / "order.parquet").to_pylist()
    for evaluation in seed.evaluations:
        rows = [row for row in order if row["step"] <= evaluation.step]
        assert evaluation.tokens == sum(lengths[row["pack"]][row["row"]] for row in rows)


def test_measuring_changes_nothing_in_the_training(path: Path) -> None:
    plain = experts.train_seed(campaign_of(path))
    often = experts.train_seed(campaign_of(path, "evaluation.every_steps=1", f"output={path.parent / 'often'}"))
    assert plain is not None
    assert often is not None
    assert often.weights_sha256 == plain.weights_sha256
    assert [each.step for each in often.evaluations] == list(range(1, 17))


def test_expert_of_a_seed_measured_on_other_documents_is_measured_before(path: Path) -> None:
    seed = experts.train_seed(campaign_of(path, "evaluation.documents=1"))
    assert seed is not None
    campaign = campaign_of(path, "evaluation.documents=null")
    expert = experts.train_expert(campaign, campaign.manifest.domain("d00001"), seed)
    assert expert is not None
    model = AutoModelForCausalLM.from_pretrained(campaign.output / "seed")
    expected = {name: Loss.of(loss) for name, loss in HeldOut.of(campaign).measure(model).items()}
    assert {name: each.before for name, each in expert.losses.items()} == expected == expert.evaluations[0].losses
    assert expected["d00001"] != seed.loss("d00001")


def test_what_was_measured_beyond_the_checkpoint_is_measured_again(path: Path, watched: Watched) -> None:
    """An attempt measured after steps 2 and 4 and then lost what came after its checkpoint of step 3."""
    keys = ("evaluation.every_steps=2", "sft.save_steps=3")
    undisturbed = experts.train_seed(campaign_of(path, *keys, f"output={path.parent / 'undisturbed'}"))
    assert undisturbed is not None
    watched.cut_off(5, lambda: experts.train_seed(campaign_of(path, *keys)))
    kept = path.parent / "out" / ".seed.partial" / "evaluations.json"
    second, fourth = json.loads(kept.read_text())
    assert (second["step"], fourth["step"]) == (2, 4)
    for each, loss in ((second, 2.0), (fourth, 4.0)):
        each["losses"]["d00001"]["nats_per_token"] = loss
    kept.write_text(json.dumps([second, fourth]))
    record = experts.train_seed(campaign_of(path, *keys))
    assert record is not None
    assert [each.step for each in record.evaluations] == list(range(2, 17, 2))
    assert record.evaluations[0].losses["d00001"].nats_per_token == 2.0
    assert record.evaluations[1:] == undisturbed.evaluations[1:]
