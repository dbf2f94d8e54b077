"""The quickstart's own parts, and (slow) the whole of it with small budgets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quickstart import MIN_CHARACTERS, PACKAGES, docstrings, write_corpus

ROOT = Path(__file__).parent.parent


def test_docstrings_are_long_unique_and_always_the_same():
    first = list(docstrings("networkx", 100))
    assert first == list(docstrings("networkx", 100))
    assert len(first) == len({record["id"] for record in first}) == 100
    assert min(len(record["text"]) for record in first) >= MIN_CHARACTERS


def test_docstrings_are_none_when_the_package_is_absent():
    assert list(docstrings("no_such_package", 10)) == []


@pytest.mark.slow
def test_quickstart_runs_on_a_users_own_corpus(tmp_path):
    corpus, output = tmp_path / "corpus", tmp_path / "out"
    write_corpus(corpus, PACKAGES[:3], 110)
    command = [sys.executable, str(ROOT / "quickstart.py"), "--corpus", str(corpus), "--output", str(output)]
    small = ["--domains", "3", "--seed-tokens", "150000", "--expert-tokens", "60000"]
    done = subprocess.run([*command, *small], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(name in done.stdout for name in ("domain", "seed loss", "expert loss", "d00002"))
    record = json.loads((output / "experts/experts/d00000/run.json").read_text())
    losses = record["losses"]["d00000"]
    assert losses["after"]["nats_per_token"] < losses["before"]["nats_per_token"]
