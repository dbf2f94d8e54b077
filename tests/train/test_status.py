"""How far every run is, in each state that it can be in, and whose status `lmsplit status` shows."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmsplit.manifests.errors import ManifestError
from lmsplit.train import experts
from lmsplit.train.record import read_record
from lmsplit.train.status import run_rows
from tests.train.runs import Command, Watched, campaign_of, write_configuration

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

HOLD = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); print('held', flush=True); input()"
UNKNOWN = dict.fromkeys(("step", "steps", "loss", "tokens_per_s", "remaining_s"))


@pytest.fixture
def output(tmp_path: Path, licensed_manifest: Path, watched: Watched) -> Path:
    """The seed done, the first expert cut off after a line of progress, the others not begun."""
    campaign = campaign_of(write_configuration(tmp_path, licensed_manifest))
    seed = experts.train_seed(campaign)
    assert seed is not None
    watched.cut_off(6, lambda: experts.train_expert(campaign, campaign.manifest.domains[0], seed))
    line = {"event": "progress", "run": "d00000", "step": 6, "steps": 8, "loss": 4.25, "tokens_per_s": 100.0}
    progress = campaign.output / "experts" / ".d00000.partial" / "progress.json"
    progress.write_text(json.dumps(line | {"elapsed_s": 3.0, "remaining_s": 1.0}))
    return campaign.output


@pytest.fixture
def held(output: Path) -> Iterator[Path]:
    """The same, with the first expert's lock held by another process, as the one that trains it does."""
    lock = output / "experts" / ".d00000.partial" / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield output
        process.communicate("\n", timeout=20)


def test_done_interrupted_and_waiting(output: Path) -> None:
    record = read_record(output / "seed")
    done = {"step": 16, "steps": 16, "loss": record.train_loss, "tokens_per_s": record.tokens_per_s, "remaining_s": 0.0}
    cut_off = {"step": 6, "steps": 8, "loss": 4.25, "tokens_per_s": None, "remaining_s": None}
    assert run_rows(output) == [
        {"run": "seed", "state": "done"} | done,
        {"run": "d00000", "state": "interrupted"} | cut_off,
        {"run": "d00001", "state": "waiting"} | UNKNOWN,
        {"run": "d00002", "state": "waiting"} | UNKNOWN,
    ]


def test_running_is_what_another_process_has_locked(held: Path) -> None:
    row = run_rows(held)[1]
    assert row == {"run": "d00000", "state": "running"} | {
        "step": 6,
        "steps": 8,
        "loss": 4.25,
        "tokens_per_s": 100.0,
        "remaining_s": 1.0,
    }


def test_asking_takes_no_lock_away_and_holds_none(output: Path) -> None:
    run_rows(output)
    campaign = campaign_of(output.parent / "train.yaml")
    assert experts.train_expert(campaign, campaign.manifest.domains[0], experts.seed_record(campaign)) is not None
    assert [row["state"] for row in run_rows(output)] == ["done", "done", "waiting", "waiting"]


def test_second_trainer_of_a_running_run_is_refused(held: Path, lmsplit: Command) -> None:
    result = lmsplit("train", str(held.parent / "train.yaml"), "--domain", "d00000")
    assert result.code == 4
    assert "is being built by another process" in result.err
    assert run_rows(held)[1]["state"] == "running"


def test_run_without_a_line_of_progress_yet(output: Path) -> None:
    (output / "experts" / ".d00000.partial" / "progress.json").unlink()
    assert run_rows(output)[1] == {"run": "d00000", "state": "interrupted"} | UNKNOWN


def test_command_shows_the_rows(output: Path, lmsplit: Command) -> None:
    result = lmsplit("status", str(output), "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"runs": run_rows(output)}
    shown = lmsplit("status", str(output)).out
    assert all(word in shown for word in ("seed", "done", "16 of 16", "d00000", "interrupted", "6 of 8", "4.250", "waiting"))


def test_status_of_a_manifest_is_that_of_partitioning(licensed_manifest: Path, lmsplit: Command) -> None:
    result = lmsplit("status", str(licensed_manifest), "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["published"] is True
    assert {"scan", "place", "gather"} <= {stage["stage"] for stage in found["stages"]}


def test_status_of_what_is_no_training_output_is_refused(output: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is no training output \(.*config\.yaml cannot be read"):
        run_rows(tmp_path)
    shutil.move(output / "config.yaml", output / "config.old")
    (output / "config.yaml").write_text("manifest: [")
    with pytest.raises(ManifestError, match="is no training output"):
        run_rows(output)


def test_status_needs_no_torch(output: Path) -> None:
    code = "import sys; from lmsplit.manifests.cli import main\ntry: main(['status', sys.argv[1]])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules), 'heavy import'"
    done = subprocess.run([sys.executable, "-c", code, str(output)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "interrupted" in done.stdout
