"""The whole path through the command line, on a small published manifest and a model of a few thousand parameters."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmsplit.manifests.configuration import load
from lmsplit.manifests.reader import Manifest
from lmsplit.train import experts
from lmsplit.train.campaign import Campaign, Run
from lmsplit.train.config import Training
from lmsplit.train.record import RunRecord, read_record
from lmsplit.train.text_losses import evaluate_domain
from lmsplit.train.tokenizer import DocumentEncoder
from lmsplit.train.trainer import DomainTrainer
from tests.train.runs import MODEL, Command, Result, campaign_of, write_configuration

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

STEP = 4 * 64
"""Tokens in a step at most."""
DOMAINS = ("d00000", "d00001", "d00002", "d00003")


def small_configuration(directory: Path, manifest_path: Path) -> Path:
    """One that experts learn something with."""
    return write_configuration(
        directory,
        manifest_path,
        model={"config": MODEL | {"hidden_size": 32, "intermediate_size": 48}},
        tokenizer={"vocabulary_size": 600},
        seed_model={"tokens": 20_000, "learning_rate": 0.01},
        expert={"tokens": 8_000, "learning_rate": 0.01},
        sft={"max_length": 64, "per_device_train_batch_size": 4},
    )


class Trained(NamedTuple):
    path: Path
    result: Result


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, manifest_path: Path) -> Trained:
    """What `lmsplit train --all` did in a process of its own."""
    directory = tmp_path_factory.mktemp("trained")
    path = small_configuration(directory, manifest_path)
    command = [sys.executable, "-c", "from lmsplit.manifests.cli import main; main()", "train", str(path), "--all"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return Trained(path, Result(done.returncode, done.stdout, done.stderr))


@pytest.fixture(scope="module")
def trained(done: Trained) -> Path:
    """The configuration of what was trained. Copy its directory before changing anything."""
    assert done.result.code == 0, done.result.err
    return done.path


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of what was trained, with a configuration of its own."""
    shutil.copytree(trained.parent / "out", tmp_path / "out")
    path = tmp_path / "train.yaml"
    path.write_text(trained.read_text().replace(str(trained.parent), str(tmp_path)))
    return path


def records(path: Path) -> dict[str, RunRecord]:
    output = path.parent / "out"
    return {"seed": read_record(output / "seed")} | {name: read_record(output / "experts" / name) for name in DOMAINS}


def test_all_trains_a_seed_and_better_experts(done: Trained) -> None:
    path, result = done
    assert result.code == 0, result.err
    assert all(name in result.out for name in ("seed loss", "expert loss", *DOMAINS))
    lines = [json.loads(line) for line in result.err.splitlines()]
    assert [line["run"] for line in lines if line["event"] == "trained"] == ["seed", *DOMAINS]
    for name in DOMAINS:
        losses = records(path)[name].losses[name]
        assert losses.before is not None
        assert losses.after.nats_per_token < losses.before.nats_per_token - 0.02


def test_output_is_laid_out_as_documented(trained: Path) -> None:
    output = trained.parent / "out"
    assert {entry.name for entry in output.iterdir()} == {*("config.yaml", "experts", "packed", "placement", "seed", "tokenizer")}
    for model in (output / "seed", output / "experts" / "d00002"):
        names = {entry.name for entry in model.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "run.json"} <= names
        assert {"lineage.json", "order.parquet"} <= names
        assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl")) or name.startswith((".", "checkpoint"))}
    packs = {entry.name for entry in (output / "packed").iterdir()}
    assert packs == {each.pack for each in records(trained)["seed"].domains.values()}
    for pack in packs:
        assert {entry.name for entry in (output / "packed" / pack).iterdir()} == {"rows.arrow", "spans.parquet", "pack.json"}
    assert load(Training, output / "config.yaml") == load(Training, trained)


def test_records_say_what_was_trained(trained: Path, manifest_path: Path) -> None:
    manifest = Manifest.open(manifest_path)
    found = records(trained)
    seed = found["seed"]
    assert 20_000 <= seed.pretraining_tokens < 20_000 + STEP
    assert (seed.kind, seed.specialization_tokens, set(seed.losses)) == ("seed", 0, set(DOMAINS))
    assert {name: each.num_documents for name, each in seed.domains.items()} == {
        domain.domain: domain.splits["train"] for domain in manifest.domains
    }
    assert {each.before for each in seed.losses.values()} == {None}
    for name in DOMAINS:
        expert = found[name]
        assert expert.manifest.digest == manifest.digest
        assert expert.seed_weights_sha256 == seed.weights_sha256 != expert.weights_sha256
        assert (expert.pretraining_tokens, expert.label) == (seed.pretraining_tokens, manifest.domain(name).label)
        assert 8_000 <= expert.specialization_tokens < 8_000 + STEP
        assert expert.interference is not None
        others = expert.interference.num_tokens
        assert others == pytest.approx(0.03 * 8_000, abs=2 * 64)
        assert expert.flops == expert.num_parameters * (6 * expert.specialization_tokens + 2 * others)
        assert list(expert.domains) == [name, *(other for other in DOMAINS if other != name)]
        own = expert.domains[name]
        assert (own.num_documents, own.num_filtered) == (manifest.domain(name).splits["train"], 0)
        assert own.trained_tokens + others == expert.specialization_tokens <= expert.num_steps * STEP
        assert (expert.batch_rows, expert.max_length) == (4, 64)
        assert set(expert.losses) == set(DOMAINS)
        for other in DOMAINS:
            assert expert.losses[other].num_documents == manifest.domain(other).splits["heldout"]
            assert expert.losses[other].before == seed.loss(other)
        assert [each.step for each in expert.evaluations] == [0, expert.num_steps]


def test_models_open_with_transformers_and_have_the_recorded_loss(trained: Path, manifest_path: Path) -> None:
    directory = trained.parent / "out" / "experts" / "d00001"
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    loss = evaluate_domain(model, DocumentEncoder(tokenizer), Manifest.open(manifest_path), "d00001", 64)
    recorded = read_record(directory).losses["d00001"]
    assert loss.nats_per_token == pytest.approx(recorded.after.nats_per_token, rel=1e-6)
    assert loss.bits_per_byte == pytest.approx(recorded.after.bits_per_byte, rel=1e-6)
    ids = model.generate(**tokenizer("Return the", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).startswith("Return the")
    assert f"`{Manifest.open(manifest_path).digest}`" in (directory / "README.md").read_text()


def test_training_twice_gives_the_same_weights(trained: Path, tmp_path: Path) -> None:
    again = Campaign.open(load(Training, trained, [f"output={tmp_path / 'again'}"]))
    seed = experts.train_seed(again)
    assert seed.weights_sha256 == records(trained)["seed"].weights_sha256
    expert = experts.train_expert(again, again.manifest.domains[0], seed)
    assert expert.weights_sha256 == records(trained)["d00000"].weights_sha256


def test_all_skips_what_is_done(copied: Path, lmsplit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copied.parent / "out" / "experts" / "d00002")
    before = records_times(copied)
    result = lmsplit("train", str(copied), "--all")
    assert result.code == 0, result.err
    trained_now = [json.loads(line)["run"] for line in result.err.splitlines()]
    assert trained_now == ["d00002"]
    after = records_times(copied)
    assert {name: after[name] for name in before} == before


def records_times(path: Path) -> dict[str, int]:
    return {str(record): record.stat().st_mtime_ns for record in (path.parent / "out").rglob("run.json")}


def test_all_goes_on_when_an_expert_fails(copied: Path, lmsplit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("d00001", "d00002"):
        shutil.rmtree(copied.parent / "out" / "experts" / name)
    original = experts.run_phase

    def fail_on_one(campaign: Campaign, run: Run, *rest: object) -> RunRecord:
        if run.name == "d00001":
            raise RuntimeError("no luck with this one")
        return original(campaign, run, *rest)

    monkeypatch.setattr(experts, "run_phase", fail_on_one)
    result = lmsplit("train", str(copied), "--all")
    assert result.code == 1
    assert "d00001 failed: RuntimeError: no luck with this one" in result.out
    done = {entry.name for entry in (copied.parent / "out" / "experts").iterdir()}
    assert done == set(DOMAINS) - {"d00001"}


@pytest.mark.parametrize(
    ("override", "target", "changed"),
    [
        ("seed_model.tokens=20001", "--seed-model", "tokens"),
        ("seed=1", "--seed-model", "seed"),
        ("sft.weight_decay=0.2", "--domain=d00000", "sft"),
        ("expert.learning_rate=0.02", "--domain=d00000", "learning_rate"),
    ],
)
def test_other_configuration_is_refused_where_a_model_is(
    trained: Path, lmsplit: Command, override: str, target: str, changed: str
) -> None:
    result = lmsplit("train", str(trained), target, "--set", override)
    assert result.code == 2
    assert f"was trained with another {changed}: choose another output" in result.err
    assert load(Training, trained.parent / "out" / "config.yaml") == load(Training, trained)


def test_other_tokenizer_is_refused_where_one_is(trained: Path, lmsplit: Command) -> None:
    result = lmsplit("train", str(trained), "--all", "--set", "tokenizer={vocabulary_size: 700}")
    assert result.code == 2
    assert "the configuration asks for" in result.err


def test_expert_without_a_seed_is_a_clear_error(manifest_path: Path, tmp_path: Path, lmsplit: Command) -> None:
    result = lmsplit("train", str(small_configuration(tmp_path, manifest_path)), "--domain", "d00000")
    assert result.code == 2
    assert "there is no seed in" in result.err
    assert "train it first with --seed-model" in result.err


def test_unknown_domain_is_a_clear_error(trained: Path, lmsplit: Command) -> None:
    result = lmsplit("train", str(trained), "--domain", "d00009")
    assert result.code == 2
    assert "has no domain 'd00009': it has d00000 to d00003" in result.err


@pytest.mark.parametrize("options", [[], ["--all", "--seed-model"], ["--domain", "d00000", "--all"], ["--merge", "--all"]])
def test_train_needs_exactly_one_target(trained: Path, lmsplit: Command, options: list[str]) -> None:
    result = lmsplit("train", str(trained), *options)
    assert result.code == 2
    assert "exactly one of --seed-model, --domain D, --all, --merge and --dense WHICH" in result.err


def test_strict_errors_come_before_any_work(manifest_path: Path, tmp_path: Path, lmsplit: Command) -> None:
    path = small_configuration(tmp_path, manifest_path)
    for override, message in (("sft.weigth_decay=0.1", "did you mean"), ("expert.mixture=uniform", "later release")):
        result = lmsplit("train", str(path), "--all", "--set", override)
        assert result.code == 2
        assert message in result.err
    assert not (tmp_path / "out").exists()


def test_diverged_run_publishes_nothing(
    manifest_path: Path, tmp_path: Path, lmsplit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = DomainTrainer.compute_loss
    monkeypatch.setattr(DomainTrainer, "compute_loss", lambda *args, **kwargs: sound(*args, **kwargs) * float("nan"))
    path = small_configuration(tmp_path, manifest_path)
    result = lmsplit("train", str(path), "--seed-model", "--set", "seed_model.tokens=600", "--set", "sft.save_steps=1")
    assert result.code == 1
    assert "the loss is nan after 3 steps: lower its learning_rate" in result.err
    left = {"config.yaml", "packed", "placement", "tokenizer", ".seed.partial"}
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == left
    scratch = {entry.name for entry in (tmp_path / "out" / ".seed.partial").iterdir()}
    assert scratch - {"README.md"} == {".lock", "lineage.json", "order.parquet"}
    monkeypatch.undo()
    assert experts.train_seed(campaign_of(path, "seed_model.tokens=600", "seed_model.learning_rate=0.001")) is not None


def test_users_own_train_module_does_not_matter(
    trained: Path, tmp_path: Path, lmsplit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert lmsplit("train", str(trained), "--domain", "d00000").code == 0


def test_route_names_the_expert_of_a_training_text(trained: Path, manifest_path: Path, lmsplit: Command) -> None:
    output = str(trained.parent / "out")
    rows = next(Manifest.open(manifest_path).documents(domain="d00003")).to_pylist()[:3]
    result = lmsplit("route", output, "--json", *(option for row in rows for option in ("--text", row["text"])))
    assert result.code == 0, result.err
    for route, row in zip(json.loads(result.out)["routes"], rows, strict=True):
        assert (route["domain"], route["expert"], route["fallback"]) == ("d00003", "experts/d00003", False)
        assert route["margin"] == pytest.approx(row["margin"], abs=1e-6)
        assert max(route["scores"], key=route["scores"].__getitem__) == "d00003"


def test_route_prints_one_object_for_one_text(trained: Path, lmsplit: Command) -> None:
    output = str(trained.parent / "out")
    route = json.loads(lmsplit("route", output, "--text", "the shortest path between nodes", "--json").out)
    assert {"domain", "label", "margin", "expert", "fallback", "scores"} <= set(route)
    assert set(route["scores"]) == set(DOMAINS)
    assert route["reason"] is None
    assert route["domain"] in lmsplit("route", output, "--text", "the shortest path between nodes").out


def test_route_falls_back_to_the_seed_and_says_why(copied: Path, lmsplit: Command) -> None:
    output = copied.parent / "out"
    arguments = ["route", str(output), "--text", "the shortest path between nodes", "--json"]
    first = json.loads(lmsplit(*arguments).out)
    weights = output / first["expert"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    tampered = json.loads(lmsplit(*arguments).out)
    assert (tampered["domain"], tampered["expert"], tampered["fallback"]) == (first["domain"], "seed", True)
    assert "has weights with digest" in tampered["reason"]
    shutil.rmtree(weights.parent)
    assert "is missing" in json.loads(lmsplit(*arguments).out)["reason"]
    shutil.rmtree(output / "seed")
    nobody = json.loads(lmsplit(*arguments).out)
    assert (nobody["expert"], nobody["fallback"]) == (None, True)


def test_route_of_a_text_without_words_falls_back(trained: Path, lmsplit: Command) -> None:
    route = json.loads(lmsplit("route", str(trained.parent / "out"), "--text", " ", "--json").out)
    assert (route["domain"], route["margin"], route["expert"], route["fallback"]) == (None, None, "seed", True)


def test_route_mixes_experts_and_puts_the_seed_in_the_place_of_a_missing_one(copied: Path, lmsplit: Command) -> None:
    output = copied.parent / "out"
    text = ("--text", "the shortest path between nodes")
    route = json.loads(lmsplit("route", str(output), *text, "--mix", "3", "--json").out)
    assert len(route["weights"]) == 3
    assert sum(route["weights"].values()) == pytest.approx(1)
    assert max(route["weights"], key=route["weights"].get) == route["expert"] == f"experts/{route['domain']}"
    assert route["runner_up"] == sorted(route["scores"], key=route["scores"].get)[-2]
    shutil.rmtree(output / "experts" / route["runner_up"])
    again = json.loads(lmsplit("route", str(output), *text, "--mix", "3", "--json").out)
    assert again["fallback"]
    assert f"experts/{route['runner_up']} is missing" in again["reason"]
    assert again["weights"]["seed"] == pytest.approx(route["weights"][f"experts/{route['runner_up']}"])
    assert again["expert"] == route["expert"]


def test_route_sends_what_is_near_a_runner_up_to_the_seed(trained: Path, lmsplit: Command) -> None:
    output, text = str(trained.parent / "out"), ("--text", "the shortest path between nodes")
    margin = json.loads(lmsplit("route", output, *text, "--json").out)["margin"]
    route = json.loads(lmsplit("route", output, *text, "--min-margin", str(margin * 1.01), "--json").out)
    assert (route["expert"], route["weights"], route["fallback"]) == ("seed", {"seed": 1.0}, True)
    assert "is below" in route["reason"]
    refused = lmsplit("route", output, *text, "--mix", "0")
    assert refused.code == 2
    assert "num_experts of at least 1" in refused.err


def test_route_refuses_what_is_no_training_output(tmp_path: Path, lmsplit: Command) -> None:
    result = lmsplit("route", str(tmp_path), "--text", "x")
    assert result.code == 1
    assert "is no training output" in result.err


def test_routing_needs_no_torch(trained: Path) -> None:
    code = "import sys; from lmsplit.train import Router; Router.open(sys.argv[1]).route(['some text'])\n"
    code += "assert not {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules), 'heavy import'"
    command = [sys.executable, "-c", code, str(trained.parent / "out")]
    assert subprocess.run(command, check=False, env=os.environ, timeout=60).returncode == 0
