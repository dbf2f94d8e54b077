"""The whole evaluation of a small training through the command line, against numbers computed here from the models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from lmsplit.manifests.reader import Manifest
from lmsplit.train.directory import sole_writer
from lmsplit.train.models import load_model
from lmsplit.train.router import Router, Routing
from lmsplit.train.tokenizer import DocumentEncoder, open_tokenizer
from tests.train.runs import Command, write_configuration

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]

DOMAINS = ("d00000", "d00001", "d00002")
EVALUATION = {"prompt_tokens": 6, "prefix_tokens": [2, 6], "labels": "license"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, licensed_manifest: Path) -> Path:
    """A configuration whose seed, experts and baselines are trained; read it."""
    from lmsplit.manifests.configuration import load
    from lmsplit.train import experts
    from lmsplit.train.campaign import Campaign
    from lmsplit.train.config import Training
    from lmsplit.train.layout import Matched
    from lmsplit.train.merge import merge_experts

    path = write_configuration(tmp_path_factory.mktemp("trained"), licensed_manifest, evaluation=EVALUATION)
    campaign = Campaign.open(load(Training, str(path), []))
    seed, _ = experts.train_all(campaign)
    merge_experts(campaign)
    for matched in Matched:
        experts.train_dense(campaign, matched, seed)
    return path


@pytest.fixture
def found(trained: Path, lmsplit: Command) -> dict[str, Any]:
    result = lmsplit("evaluate", str(trained), "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


@torch.no_grad()
def losses_after_prompt(output: Path, name: str, texts: list[str], prompt: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each text's nats after its prompt, and its tokens there, one text at a time."""
    encoder = DocumentEncoder(open_tokenizer(str(output / "tokenizer")))
    model = load_model(output / name)
    nats, counts = [], []
    for ids in encoder.encode(texts):
        total = 0.0
        sequence = [encoder.begin_id, *ids]
        for start in range(0, len(ids), 31):
            window = torch.tensor([sequence[start : start + 32]])
            log_p = torch.log_softmax(model(input_ids=window).logits[0, :-1].double(), -1)
            for place, token in enumerate(window[0, 1:].tolist()):
                if start + place >= prompt:
                    total -= float(log_p[place, token])
        nats.append(total)
        counts.append(max(0, len(ids) - prompt))
    return np.array(nats), np.array(counts)


def test_answers_are_those_of_the_models(found: dict[str, Any], trained: Path, licensed_manifest: Path) -> None:
    output = trained.parent / "out"
    manifest = Manifest.open(licensed_manifest)
    held_out = {
        name: [row for batch in manifest.documents(name, "heldout", ["text"]) for row in batch["text"].to_pylist()]
        for name in DOMAINS
    }
    ways = {row["way"]: row for row in found["answers"]}
    losses: dict[str, list[float]] = {"seed": [], "dense-total": [], "own domain": [], "best expert": [], "any expert": []}
    judged = 0
    for name, texts in held_out.items():
        experts = np.stack([losses_after_prompt(output, f"experts/{each}", texts, 6)[0] for each in DOMAINS])
        seed, counts = losses_after_prompt(output, "seed", texts, 6)
        dense, _ = losses_after_prompt(output, "dense/total", texts, 6)
        total = counts.sum()
        judged += total
        losses["seed"].append(seed.sum() / total)
        losses["dense-total"].append(dense.sum() / total)
        losses["own domain"].append(experts[DOMAINS.index(name)].sum() / total)
        losses["best expert"].append(experts.min(axis=0).sum() / total)
        losses["any expert"].append(experts.mean(axis=0).sum() / total)
    assert found["judged_tokens"] == judged
    for way, of_domains in losses.items():
        assert ways[way]["nats_per_token"] == pytest.approx(np.mean(of_domains), rel=1e-5)
        assert list(ways[way]["domains"].values()) == pytest.approx(of_domains, rel=1e-5)
        assert ways[way]["low"] <= ways[way]["nats_per_token"] <= ways[way]["high"]
    assert found["missing"] == {}
    assert {"merged", "dense-per-model", "mixture of 2", "mixture of 3", "likelihood", "routed", "another expert"} <= set(ways)


def test_cross_loss_is_of_whole_documents(found: dict[str, Any], trained: Path, licensed_manifest: Path) -> None:
    output = trained.parent / "out"
    texts = [
        row
        for batch in Manifest.open(licensed_manifest).documents("d00001", "heldout", ["text"])
        for row in batch["text"].to_pylist()
    ]
    nats, counts = losses_after_prompt(output, "experts/d00002", texts, 0)
    seed, _ = losses_after_prompt(output, "seed", texts, 0)
    wanted = (nats.sum() - seed.sum()) / counts.sum()
    assert found["cross_loss"]["nats_per_token"][2][1] == pytest.approx(wanted, abs=1e-5)
    in_bits = (nats.sum() - seed.sum()) / sum(len(text.encode()) for text in texts) / np.log(2)
    assert found["cross_loss"]["bits_per_byte"][2][1] == pytest.approx(in_bits, abs=1e-5)
    m_KK = np.array(found["cross_loss"]["nats_per_token"])
    assert found["specialization"] == pytest.approx(-np.diag(m_KK).mean())
    assert found["misrouting"][0] == {"share": 0.0, "above_seed": pytest.approx(-found["specialization"])}


def test_routing_is_that_of_the_command(found: dict[str, Any], trained: Path, licensed_manifest: Path) -> None:
    output = trained.parent / "out"
    encoder = DocumentEncoder(open_tokenizer(str(output / "tokenizer")))
    rows = [
        row
        for batch in Manifest.open(licensed_manifest).documents(split="heldout", columns=["text", "domain"])
        for row in batch.to_pylist()
    ]
    router, placement = Router.open(output), Router.open(output, settings=Routing(by_placement=True))
    for length, row in zip((2, 6), found["routing"], strict=True):
        prompts = [encoder.decode(encoder.encode([each["text"]])[0][:length]) for each in rows]
        assert row["tokens"] == length
        for by, each_router in ((found["routed_by"], router), ("placement", placement)):
            routes = each_router.route(prompts)
            right = [route.domain == each["domain"] for route, each in zip(routes, rows, strict=True)]
            assert {route.routed_by for route in routes} == {by}
            assert row[by]["accuracy"] == pytest.approx(np.mean(right))
            assert row[by]["low"] <= row[by]["accuracy"] <= row[by]["high"]
        assert 0 <= row["labels"]["accuracy"] <= 1


def test_the_fitted_temperature_is_the_routers(found: dict[str, Any], trained: Path) -> None:
    output = trained.parent / "out"
    text = ["a few words"]
    fitted = Router.open(output, settings=Routing(num_experts=3)).route(text)[0].weights
    given = (
        Router.open(output, settings=Routing(num_experts=3, temperature=found["temperature"][found["routed_by"]]))
        .route(text)[0]
        .weights
    )
    assert fitted == given
    (output / "evaluation" / "routing.npz").write_text("{}")
    from lmsplit.manifests.errors import ManifestError

    with pytest.raises(ManifestError, match="run lmsplit evaluate again"):
        Router.open(output)


def test_files_and_tables(found: dict[str, Any], trained: Path, lmsplit: Command) -> None:
    directory = trained.parent / "out" / "evaluation"
    before = {path.name: path.stat().st_mtime_ns for path in (directory / "losses").iterdir()}
    picture = (directory / "evaluation.svg").read_bytes()
    result = lmsplit("evaluate", str(trained))
    assert result.code == 0, result.err
    assert {path.name: path.stat().st_mtime_ns for path in (directory / "losses").iterdir()} == before  # nothing measured again
    assert (directory / "evaluation.svg").read_bytes() == picture
    assert json.loads((directory / "evaluation.json").read_text()) | {"picture": found["picture"]} == found
    documents = pl.read_parquet(directory / "documents.parquet")
    nats = documents.group_by("domain").agg(pl.col("routed").sum() / pl.col("judged_tokens").sum())["routed"].mean()
    assert nats == pytest.approx(next(row["nats_per_token"] for row in found["answers"] if row["way"] == "routed"))
    for shown in ("way to answer", "dense-total", "manifest's own rule", "to its label", "specialization", "evaluation.svg"):
        assert shown in result.out
    lines = [json.loads(line) for line in result.err.splitlines() if line.startswith("{")]
    assert lines[-1] == {"event": "progress", "stage": "routes", "done": 2, "of": 2}


def test_answers_are_timed(trained: Path, lmsplit: Command) -> None:
    keys = ("--set", "evaluation.latency={requests: 5, answer_tokens: 3, clients: [1, 2], energy: true}")
    result = lmsplit("evaluate", str(trained), "--json", *keys)
    assert result.code == 0, result.err
    rows = json.loads(result.out)["latency"]
    assert [(row["way"], row["clients"]) for row in rows] == [("routed", 1), ("seed", 1), ("routed", 2), ("seed", 2)]
    for row in rows:
        assert row["requests"] == 5
        assert 0 < row["first_token_p50_s"] < row["answer_p50_s"]
        assert row["route_p50_s"] < row["first_token_p50_s"]
        assert row["joules_per_answer"] > 0
        assert ("first_token_above_seed_s" in row) == (row["way"] == "routed")
    result = lmsplit("evaluate", str(trained), *keys)
    assert "5 answers, milliseconds" in result.out


def test_missing_expert_is_a_clear_error(tmp_path: Path, licensed_manifest: Path, lmsplit: Command) -> None:
    path = write_configuration(tmp_path, licensed_manifest, evaluation=EVALUATION)
    result = lmsplit("evaluate", str(path))
    assert (result.code, "train it first with --seed-model" in result.err) == (2, True)
    assert lmsplit("train", str(path), "--seed-model").code == 0
    result = lmsplit("evaluate", str(path))
    assert (result.code, "there is no expert of d00000, d00001, d00002: train them first with --all" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluation.labels=colour", "evaluation.labels: the manifest has no column 'colour', it has doc_id"),
        (
            "evaluation.labels=num_tokens",
            "no held-out document has a num_tokens: name another column, or none",
        ),
        ("evaluation.prompt_tokens=100000", "no held-out document is longer than the prompt of 100000 tokens"),
    ],
)
def test_bad_settings_are_clear_errors(trained: Path, lmsplit: Command, setting: str, message: str) -> None:
    result = lmsplit("evaluate", str(trained), "--set", setting)
    assert result.code in (1, 2)
    assert message in result.err


def test_a_part_of_the_domains_is_judged_alone(tmp_path: Path, licensed_manifest: Path, lmsplit: Command) -> None:
    part = tmp_path / "part"
    chosen = ("--domain", "d00000", "--domain", "d00002")
    assert lmsplit("export", str(licensed_manifest), "--to", "manifest", *chosen, "-o", str(part)).code == 0
    evaluation = EVALUATION | {"latency": {"requests": 3, "answer_tokens": 2}}
    path = write_configuration(tmp_path, part, evaluation=evaluation)
    assert lmsplit("train", str(path), "--all").code == 0
    result = lmsplit("evaluate", str(path), "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [each["domain"] for each in found["domains"]] == ["d00000", "d00002"]
    assert np.array(found["cross_loss"]["nats_per_token"]).shape == (2, 2)
    assert all(set(row["domains"]) == {"d00000", "d00002"} for row in found["answers"])
    documents = pl.read_parquet(tmp_path / "out" / "evaluation" / "documents.parquet")
    elsewhere = documents.filter(pl.col("routed_to").is_null())
    assert (elsewhere["routed"] == elsewhere["seed"]).all()


def test_one_at_a_time(trained: Path, lmsplit: Command) -> None:
    with sole_writer(trained.parent / "out" / "evaluation"):
        result = lmsplit("evaluate", str(trained))
    assert result.code == 4
    assert "is being built by another process" in result.err


def test_other_baselines_are_refused_or_named(tmp_path: Path, licensed_manifest: Path, lmsplit: Command) -> None:
    path = write_configuration(tmp_path, licensed_manifest, evaluation=EVALUATION)
    assert lmsplit("train", str(path), "--all").code == 0
    found = json.loads(lmsplit("evaluate", str(path), "--json").out)
    assert found["missing"] == {"merged": "--merge", "dense-per-model": "--dense per-model", "dense-total": "--dense total"}
    assert "not compared with dense-total: train it with lmsplit train --dense total" in lmsplit("evaluate", str(path)).out
