"""Several experts at a time: the same weights, one that fails takes no other with it, and what each one said is kept."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsplit.manifests.errors import LmsplitError
from lmsplit.train import experts, launchers, workers
from lmsplit.train.workers import Workers
from tests.train.runs import Command, campaign_of, weights
from tests.train.test_experts_where import domain_without_gpl

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

DOMAINS = ("d00000", "d00001", "d00002")
TWO = ("--set", "executor.workers=2")
LENGTHS = ("--set", "expert.domain_tokens={d00001: 3000, d00002: 2000}")


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_two_workers_give_the_weights_of_one(path: Path, lmsplit: Command) -> None:
    one = lmsplit("train", str(path), "--all", *LENGTHS)
    assert one.code == 0, one.err
    trained = [json.loads(line)["run"] for line in one.err.splitlines() if '"trained"' in line]
    assert trained == ["seed", "d00001", "d00002", "d00000"]  # the longest first
    output = path.parent / "out"
    expected = {name: weights(output / "experts" / name) for name in DOMAINS}
    shutil.rmtree(output / "experts")
    two = lmsplit("train", str(path), "--all", *LENGTHS, *TWO)
    assert two.code == 0, two.err
    assert {name: weights(output / "experts" / name) for name in DOMAINS} == expected
    assert two.out == one.out
    for name in DOMAINS:
        assert '"event": "trained"' in (output / "logs" / f"{name}.log").read_text()
    lines = [json.loads(line) for line in two.err.splitlines()]
    assert (lines[-1]["event"], lines[-1]["stage"], lines[-1]["done"], lines[-1]["of"]) == ("progress", "experts", 3, 3)


@pytest.mark.slow
def test_killed_and_failing_experts_do_not_stop_the_others(
    path: Path, licensed_manifest: Path, lmsplit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = domain_without_gpl(licensed_manifest)
    killed, sound = (name for name in DOMAINS if name != nothing)

    class Killing(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, arguments: list[str], **named: Any) -> None:
            super().__init__(arguments, **named)
            if killed in arguments:
                self.kill()

    monkeypatch.setattr(launchers.subprocess, "Popen", Killing)
    options = ("--all", *TWO, "--set", "expert.where={license: [gpl]}")
    result = lmsplit("train", str(path), *options)
    assert result.code == 1
    output = path.parent / "out"
    shown = " ".join(result.out.split())  # a console breaks long lines
    assert f"{nothing} failed: {nothing} has no training documents that where lets in" in shown
    assert f"{killed} failed: the process ended with -9 (killed: out of memory?) (see" in shown
    assert shown.count(" failed: ") == 2
    assert (output / "experts" / sound / "run.json").exists()
    assert f"logs/{killed}.log" in shown.replace(" ", "")
    monkeypatch.undo()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = weights(output / "experts" / sound)
    again = lmsplit("train", str(path), *options)
    assert again.code == 1
    assert " ".join(again.out.split()).count(" failed: ") == 1
    assert (output / "experts" / killed / "run.json").exists()
    assert weights(output / "experts" / sound) == before


def test_longest_experts_begin_first_and_finished_ones_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = campaign_of(path, *LENGTHS[1::2], *TWO[1::2])
    asked: list[list[str]] = []

    def refuse(_self: Workers, names: list[str]) -> dict[str, str]:
        asked.append(list(names))
        return {name: f"no luck with {name}" for name in names}

    monkeypatch.setattr(Workers, "train_each", refuse)
    seed, outcomes = experts.train_all(campaign)
    assert asked == [["d00001", "d00002", "d00000"]]
    assert [(each.domain.domain, each.record, each.error) for each in outcomes] == [
        (name, None, f"no luck with {name}") for name in DOMAINS
    ]
    experts.train_expert(campaign, campaign.manifest.domain("d00002"), seed)
    assert [each.error for each in experts.train_all(campaign)[1]] == ["no luck with d00000", "no luck with d00001", None]
    assert asked[1] == ["d00001", "d00000"]


@pytest.mark.parametrize(
    ("said", "code", "word"),
    [
        ("lmsplit: first\nlmsplit: there is no seed\n", 2, "there is no seed"),
        ("Traceback (most recent call last):\n  File\nValueError: too small\n", 1, "ValueError: too small"),
        ("[rank1]: torch.OutOfMemoryError: no room\nChildFailedError: x\n", 1, "torch.OutOfMemoryError: no room"),
        ("a line\n", 3, "the process ended with 3"),
        ("", -9, "the process ended with -9 (killed: out of memory?)"),
        ("é" * 100_000 + "\nlmsplit: the end\n", 1, "the end"),
    ],
)
def test_reason_is_what_the_process_said_last(
    path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int, word: str
) -> None:
    def run(_self: Workers, _options: object, _name: str, _slot: int, log: Path) -> int:
        log.write_text(said)
        return code

    monkeypatch.setattr(Workers, "_run", run)
    campaign = campaign_of(path)
    with pytest.raises(LmsplitError) as raised:
        Workers(campaign).train(["--domain", "d00000"], "d00000")
    log = campaign.output / "logs" / "d00000.log"
    assert str(raised.value) == f"{word} (see {log})"
    assert log.read_text() == said


def test_devices_are_shared_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    campaign = campaign_of(path, "executor.workers=2", "executor.processes=2")
    shares = [Workers(campaign)._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)]
    assert shares == ["3,5", "6,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with pytest.raises(LmsplitError, match="asks for 2 × 2 GPUs, there are 2: lower one of them"):
        Workers(campaign)._environment(1)


def test_cores_are_shared_out_where_there_are_no_devices(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 12)
    campaign = campaign_of(path, "executor.workers=2", "executor.processes=3")
    assert Workers(campaign)._environment(0)["OMP_NUM_THREADS"] == "1"  # what the user set stays
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert Workers(campaign)._environment(0)["OMP_NUM_THREADS"] == "2"


def test_interrupt_ends_the_processes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, _arguments: list[str], **named: Any) -> None:
            super().__init__(["sleep", "600"], **named)
            self._waited = 0
            started.append(self)

        def wait(self, timeout: float | None = None) -> int:
            self._waited += 1
            if self._waited == 1:
                raise KeyboardInterrupt
            return super().wait(timeout)

    campaign = campaign_of(path)
    monkeypatch.setattr(launchers.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Workers(campaign).train(["--seed-model"], "seed")
    assert started[0].returncode == -15
