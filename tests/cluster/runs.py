"""Whole runs of the command, on any executor and store: one corpus, one expected commit."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LMSPLIT = str(Path(sys.executable).parent / "lmsplit")
LOCAL: dict[str, Any] = {"kind": "local"}
RAY: dict[str, Any] = {"kind": "ray"}
SLURM: dict[str, Any] = {"kind": "slurm", "partition": "debug", "mem_per_cpu": "1GB", "time": "20"}
DUPLICATES, BAD = 3, 2


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What it printed for programs."""
        return dict(json.loads(self.out))


def lmsplit(*arguments: str | Path, cwd: Path | None = None, timeout_s: int = 600, **environment: str) -> Done:
    """Run a command to its end."""
    done = subprocess.run(
        [LMSPLIT, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        cwd=cwd,
        env=os.environ | environment,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def configured(path: Path, corpus: str | Path, output: str | Path, executor: dict[str, Any], **keys: Any) -> Path:
    """Write a configuration: lexical, three domains, held out by group, duplicates set aside."""
    values = {
        "input": {"paths": str(corpus), "group": "group", "keep": ["lang"]},
        "output": str(output),
        "domains": 3,
        "encoder": "lexical",
        "duplicate_ids": "quarantine",
        "max_bad_fraction": 0.01,
        "executor": executor,
    }
    path.write_text(yaml.safe_dump(values | keys))
    return path


def partition(directory: Path, corpus: str | Path, output: str | Path, executor: dict[str, Any], **keys: Any) -> Done:
    """Partition a corpus by the command."""
    directory.mkdir(parents=True, exist_ok=True)
    config = configured(directory / "partition.yaml", corpus, output, executor, **keys)
    return lmsplit("partition", config, "--json", cwd=directory)
