"""Fixtures that the tests of training share: a tiny manifest with licenses, the command line, one thread."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from tests.partition.corpora import topical, write
from tests.train.runs import Command, Result, Watched, write_configuration

LICENSES = ("mit", "cc0", "gpl")


@pytest.fixture(scope="session")
def licensed_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published manifest of 216 short documents in three domains, with a column of licenses; one domain has no `gpl`.

    Read it; copy it before you change it.
    """
    directory = tmp_path_factory.mktemp("licensed")
    rows = topical(216, words=20)
    for number, row in enumerate(rows):
        row["license"] = LICENSES[number // 3 % (2 if number % 3 == 0 else 3)]
    write(directory / "corpus.jsonl", rows)
    keys = {
        "input": {"paths": str(directory / "corpus.jsonl"), "group": "group", "keep": ["license"]},
        "output": str(directory / "manifest"),
        "domains": 3,
        "heldout_fraction": 0.1,
        "near_duplicate_threshold": None,
        "encoder": "lexical",
        "executor": {"workers": 0},
    }
    partition(Partition.model_validate(keys))
    return directory / "manifest"


@pytest.fixture
def path(tmp_path: Path, licensed_manifest: Path) -> Path:
    """A configuration of its own for the test, over `licensed_manifest`."""
    return write_configuration(tmp_path, licensed_manifest)


@pytest.fixture
def lmsplit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process."""
    from lmsplit.manifests.cli import main

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["lmsplit", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        return Result(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: with another number there may be other bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Watch the trainers that runs make."""
    return Watched(monkeypatch)
