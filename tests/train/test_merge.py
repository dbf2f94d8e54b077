"""The average of the experts, against a mean computed here."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmsplit.manifests.configuration import load
from lmsplit.manifests.reader import Manifest
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import Training
from lmsplit.train.experts import train_all
from lmsplit.train.record import Loss, read_record
from lmsplit.train.text_losses import evaluate_domain
from lmsplit.train.tokenizer import DocumentEncoder
from tests.train.runs import Command, tensors, weights, write_configuration

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

DOMAINS = ("d00000", "d00001", "d00002")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, licensed_manifest: Path) -> Path:
    """An output whose seed and experts are trained; read it."""
    path = write_configuration(tmp_path_factory.mktemp("trained"), licensed_manifest)
    train_all(Campaign.open(load(Training, str(path), [])))
    return path.parent / "out"


@pytest.fixture
def path(tmp_path: Path, trained: Path, licensed_manifest: Path) -> Path:
    """A configuration whose seed and experts are trained."""
    shutil.copytree(trained, tmp_path / "out")
    return write_configuration(tmp_path, licensed_manifest)


def test_average_is_the_mean_of_the_experts(path: Path, lmsplit: Command, licensed_manifest: Path) -> None:
    result = lmsplit("train", str(path), "--merge")
    assert result.code == 0, result.err
    assert "merged loss" in result.out
    output = path.parent / "out"
    experts = [tensors(output / "experts" / name) for name in DOMAINS]
    merged = tensors(output / "merged")
    assert set(merged) == set(experts[0])
    for name, tensor in merged.items():
        mean = sum(expert[name].double() for expert in experts) / len(experts)
        assert torch.equal(tensor, mean.float())
        assert tensor.dtype == torch.float32
        assert not any(torch.equal(tensor, expert[name]) for expert in experts)
    check_record(output, licensed_manifest)


def check_record(output: Path, manifest: Path) -> None:
    record, seed = read_record(output / "merged"), read_record(output / "seed")
    experts = {name: read_record(output / "experts" / name) for name in DOMAINS}
    assert (record.kind, record.domain, record.seed_weights_sha256) == ("merged", None, seed.weights_sha256)
    assert record.configuration["experts"] == {name: each.weights_sha256 for name, each in experts.items()}
    assert record.specialization_tokens == sum(each.specialization_tokens for each in experts.values())
    model = AutoModelForCausalLM.from_pretrained(output / "merged")
    encoder = DocumentEncoder(AutoTokenizer.from_pretrained(output / "merged"))
    assert list(record.losses) == list(DOMAINS)
    for name, losses in record.losses.items():
        assert losses.after == Loss.of(evaluate_domain(model, encoder, Manifest.open(manifest), name, 32))
        assert losses.before == seed.loss(name) != losses.after
    assert "# Average of the experts of 3 domains" in (output / "merged" / "README.md").read_text()


def test_merging_twice_skips(path: Path, lmsplit: Command) -> None:
    first = lmsplit("train", str(path), "--merge")
    merged = path.parent / "out" / "merged"
    before = {entry: entry.stat().st_mtime_ns for entry in merged.iterdir()}
    second = lmsplit("train", str(path), "--merge")
    assert (second.code, second.out) == (0, first.out)
    assert {entry: entry.stat().st_mtime_ns for entry in merged.iterdir()} == before


def test_missing_expert_is_a_clear_error(path: Path, lmsplit: Command) -> None:
    shutil.rmtree(path.parent / "out" / "experts" / "d00001")
    result = lmsplit("train", str(path), "--merge")
    assert result.code == 2
    assert "there is no expert of d00001: train them first with --all" in result.err
    assert not list((path.parent / "out").glob("*merged*"))


def test_missing_seed_is_a_clear_error(path: Path, lmsplit: Command) -> None:
    shutil.rmtree(path.parent / "out" / "seed")
    result = lmsplit("train", str(path), "--merge")
    assert result.code == 2
    assert "train it first with --seed-model" in result.err


def test_average_of_other_experts_is_refused(path: Path, lmsplit: Command) -> None:
    assert lmsplit("train", str(path), "--merge").code == 0
    before = weights(path.parent / "out" / "merged")
    shutil.rmtree(path.parent / "out" / "experts" / "d00002")
    other = ("--set", "expert.domain_tokens={d00002: 1500}")
    assert lmsplit("train", str(path), "--domain", "d00002", *other).code == 0
    result = lmsplit("train", str(path), "--merge", *other)
    assert result.code == 2
    assert "is the average of other experts: remove it to average these" in result.err
    assert weights(path.parent / "out" / "merged") == before
    shutil.rmtree(path.parent / "out" / "merged")
    assert lmsplit("train", str(path), "--merge", *other).code == 0
    assert weights(path.parent / "out" / "merged") != before


def test_average_is_shown_by_status(path: Path, lmsplit: Command) -> None:
    assert lmsplit("train", str(path), "--merge").code == 0
    rows = json.loads(lmsplit("status", str(path.parent / "out"), "--json").out)["runs"]
    assert [(row["run"], row["state"]) for row in rows] == [(name, "done") for name in ("seed", *DOMAINS, "merged")]
