"""A run that was cut off goes on bit for bit, what another configuration began is refused, and what is kept at the end."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lmsplit.train import experts
from lmsplit.train.lineage import checkpoint_steps
from lmsplit.train.record import RunRecord, read_record
from tests.train.runs import Command, StepsSeen, Watched, campaign_of, train, weights

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

EVERY_3 = ("sft.save_steps=4", "evaluation.every_steps=3")
CLOCK = {"wall_time_s", "tokens_per_s", "data_wait_fraction", "model_flops_utilization"}


def without_clock(record: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in record.model_dump().items() if key not in CLOCK}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_run_that_was_cut_off_goes_on_bit_for_bit(path: Path, watched: Watched, error: type[BaseException]) -> None:
    undisturbed = train(path, *EVERY_3, f"output={path.parent / 'undisturbed'}")
    log = watched.log()
    watched.cut_off(6, lambda: train(path, *EVERY_3), error)
    assert checkpoint_steps(path.parent / "out" / ".seed.partial") == [4]
    assert not (path.parent / "out" / "seed").exists()
    watched.cut_off(13, lambda: train(path, *EVERY_3), error)
    assert checkpoint_steps(path.parent / "out" / ".seed.partial") == [12]
    watched.callbacks = [seen := StepsSeen()]
    resumed = train(path, *EVERY_3)
    assert seen.steps == list(range(13, resumed.num_steps + 1))
    assert without_clock(resumed) == without_clock(undisturbed)
    assert [each.step for each in resumed.evaluations] == [*range(3, 16, 3), 16]
    assert weights(path.parent / "out" / "seed") == weights(path.parent / "undisturbed" / "seed")
    assert watched.log() == log
    assert [line["step"] for line in log] == [3, 4, 6, 8, 9, 12, 15, 16]


def test_expert_that_was_cut_off_goes_on_bit_for_bit(path: Path, watched: Watched) -> None:
    keys = (
        "sft.save_steps=2",
        "evaluation.every_steps=3",
        "expert.optimizer_state=kept",
        "expert.interference={kind: replay, fraction: 0.3}",
    )
    seed = train(path, *keys)
    shutil.copytree(path.parent / "out", path.parent / "undisturbed")
    ours, theirs = campaign_of(path, *keys), campaign_of(path, *keys, f"output={path.parent / 'undisturbed'}")
    undisturbed = experts.train_expert(theirs, theirs.manifest.domains[1], seed)
    watched.cut_off(5, lambda: experts.train_expert(ours, ours.manifest.domains[1], seed))
    resumed = experts.train_expert(ours, ours.manifest.domains[1], seed)
    assert undisturbed is not None
    assert resumed is not None
    assert without_clock(resumed) == without_clock(undisturbed)
    assert [each.step for each in resumed.evaluations] == [0, 3, 6, resumed.num_steps]


def test_half_written_checkpoint_is_dropped_and_the_one_before_used(path: Path, watched: Watched) -> None:
    keys = ("sft.save_steps=2", "sft.save_total_limit=3")
    expected = train(path, *keys, f"output={path.parent / 'undisturbed'}").weights_sha256
    watched.cut_off(9, lambda: train(path, *keys))
    scratch = path.parent / "out" / ".seed.partial"
    assert sorted(checkpoint_steps(scratch)) == [4, 6, 8]
    (scratch / "checkpoint-8" / "trainer_state.json").unlink()
    watched.cut_off(7, lambda: train(path, *keys))
    assert watched.trainers[-1].state.global_step == 7
    assert sorted(checkpoint_steps(scratch)) == [4, 6]
    assert not (scratch / "checkpoint-8").exists()
    assert train(path, *keys).weights_sha256 == expected


def test_run_without_a_checkpoint_begins_anew(path: Path, watched: Watched) -> None:
    expected = train(path, f"output={path.parent / 'undisturbed'}").weights_sha256
    watched.cut_off(1, lambda: train(path))
    assert not list((path.parent / "out" / ".seed.partial").glob("checkpoint-*"))
    assert train(path).weights_sha256 == expected


OTHERS = [
    (["seed_model.tokens=2100"], "tokens"),
    (["seed_model.learning_rate=0.02", "seed=1"], "learning_rate, seed"),
    (["seed_model.mixture=uniform"], "mixture"),
    (["seed_model.max_repetitions=2"], "max_repetitions"),
    (["where={license: [mit]}"], "where"),
    (["sft.weight_decay=0.2"], "sft"),
    (["sft.packing_strategy=wrapped"], "sft"),
    (["sft.max_length=16"], "sft"),
    (["executor.processes=2"], "processes"),
    (["model={config: {model_type: llama, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1}}"], "model"),
]


def test_unfinished_run_with_another_configuration_is_refused(
    path: Path, watched: Watched, lmsplit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.cut_off(5, lambda: train(path, "sft.save_steps=2"))
    scratch = path.parent / "out" / ".seed.partial"
    before = {entry: entry.stat().st_mtime_ns for entry in scratch.rglob("*") if entry.name != ".lock"}
    monkeypatch.setattr(experts, "_needs_launcher", lambda _campaign: False)  # as if a launcher had started two processes
    for overrides, changed in OTHERS:
        options = [option for each in overrides for option in ("--set", each)]
        result = lmsplit("train", str(path), "--seed-model", "--set", "sft.save_steps=2", *options)
        assert result.code == 2, overrides
        assert f"holds an unfinished run with another {changed}: go back to that configuration" in result.err, overrides
        found = {entry: entry.stat().st_mtime_ns for entry in scratch.rglob("*") if entry.name != ".lock"}
        assert found == before, overrides
    train(path, "sft.save_steps=5", "sft.logging_steps=1", "evaluation.every_steps=4")  # what does not change the model goes on
    assert watched.trainers[-1].state.global_step == read_record(path.parent / "out" / "seed").num_steps


def test_unfinished_run_with_another_manifest_or_tokenizer_is_refused(
    path: Path, watched: Watched, lmsplit: Command, manifest_path: Path
) -> None:
    watched.cut_off(5, lambda: train(path, "sft.save_steps=2"))
    content = path.parent / "out" / ".seed.partial" / "content.json"
    before = json.loads(content.read_text())
    manifest = lmsplit("train", str(path), "--seed-model", "--set", f"manifest={manifest_path}", "--set", "tokenizer=null")
    assert manifest.code == 2
    assert "choose another output" in manifest.err
    tokenizer = lmsplit("train", str(path), "--seed-model", "--set", "tokenizer={vocabulary_size: 400}")
    assert tokenizer.code == 2
    assert "the configuration asks for" in tokenizer.err
    for changed in ("manifest", "tokenizer"):
        content.write_text(json.dumps(before | {changed: "0" * 64}))
        result = lmsplit("train", str(path), "--seed-model", "--set", "sft.save_steps=2")
        assert result.code == 2
        assert f"holds an unfinished run with another {changed}: go back" in result.err


def test_unfinished_run_without_a_checkpoint_is_overwritten(path: Path, watched: Watched) -> None:
    watched.cut_off(1, lambda: train(path))
    content = json.loads((path.parent / "out" / ".seed.partial" / "content.json").read_text())
    assert content["tokens"] == 2_000
    assert train(path, "seed_model.tokens=500").configuration["tokens"] == 500


def test_checkpoints_are_removed_unless_they_are_asked_for(path: Path, lmsplit: Command) -> None:
    train(path, "sft.save_steps=4")
    assert not list((path.parent / "out" / "seed").glob("checkpoint-*"))
    for each in ("content.json", "evaluations.json", "progress.json", "training_args.bin", ".lock"):
        assert not (path.parent / "out" / "seed" / each).exists()
    kept = path.parent / "kept" / "seed"
    train(path, "sft.save_steps=5", "sft.save_total_limit=2", f"output={kept.parent}")
    assert sorted(checkpoint_steps(kept)) == [15, 16]
    assert weights(kept) == weights(path.parent / "out" / "seed")
    for step, checkpoint in ((1, "checkpoint-15"), (16, "checkpoint-16")):
        spans = json.loads(lmsplit("trace", str(kept), "--step", str(step), "--json").out)["spans"]
        assert {span["checkpoint"] for span in spans} == {checkpoint}
    spans = json.loads(lmsplit("trace", str(path.parent / "out" / "seed"), "--step", "1", "--json").out)["spans"]
    assert {span["checkpoint"] for span in spans} == {"final"}
