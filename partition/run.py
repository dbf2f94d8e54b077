"""One run's folder: its plan, its pieces and its receipts. Receipts, and nothing else, decide what is done.

```
<manifest>/_work/<run id>/
  plan.json                      what determines content; the same bytes are published as plans/<sha>.json
  here.json                      where things are on this machine (input root, workers); determines nothing
  configuration.yaml             the resolved configuration, for people
  <stage>/00012.json             receipt of task 12: written last, create-only, the first one wins
  <stage>/00012-<name>-<sha>     the pieces that the receipt names
```

A task that is killed leaves no receipt and is done again; a task done twice leaves the same pieces, and the second
receipt is ignored.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lmsplit.manifests.commit import canonical, digest
from lmsplit.manifests.errors import LmsplitError
from lmsplit.manifests.layout import SHA_DIGITS, work_path
from lmsplit.manifests.store import Store, file_sha256

PLAN = "plan.json"
HERE = "here.json"
CONFIGURATION = "configuration.yaml"


@dataclass(frozen=True)
class Run:
    """A run in a manifest's directory.

    Args:
        output: the manifest's directory.
        run_id: 16 hexadecimal digits.
    """

    output: str
    run_id: str

    @cached_property
    def store(self) -> Store:
        """The manifest's directory."""
        return Store(Path(self.output))

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What determines content: files, units, configuration, software."""
        plan: dict[str, Any] = json.loads(self.store.read(self._name(PLAN)))
        return plan

    @cached_property
    def here(self) -> dict[str, Any]:
        """Where things are on this machine."""
        here: dict[str, Any] = json.loads(self.store.read(self._name(HERE)))
        return here

    def start(self, plan: dict[str, Any], here: dict[str, Any]) -> None:
        """Create the folder, or check that the one there has the same plan."""
        self.store.put_bytes(canonical(plan) + b"\n", self._name(PLAN))
        assert self.plan == plan, "a run id names one plan"
        self.store.replace(canonical(here) + b"\n", self._name(HERE))

    def write_configuration(self, configuration: dict[str, Any]) -> None:
        """Write the resolved configuration, for people; no stage reads it."""
        resolved = yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True)
        self.store.replace(resolved.encode(), self._name(CONFIGURATION))

    def _name(self, name: str) -> str:
        return f"{work_path(self.run_id)}/{name}"

    def folder(self, name: str) -> Path:
        """Return the local path of a folder of the run."""
        return self.store.path(self._name(name))

    def done(self, stage: str) -> set[int]:
        """Return the tasks of a stage that have a receipt."""
        return {int(name[:-5]) for name in self.store.names(self._name(stage)) if name[:-5].isdigit()}

    def receipt(self, stage: str, task: int) -> dict[str, Any]:
        """Return the receipt of a task.

        Raises:
            LmsplitError: the task has none yet.
        """
        try:
            receipt: dict[str, Any] = json.loads(self.store.read(self._name(f"{stage}/{task:05d}.json")))
        except FileNotFoundError as error:
            raise LmsplitError(f"task {task} of stage {stage} is not done: run the same partition command again") from error
        return receipt

    def receipts(self, stage: str, num_tasks: int) -> Iterator[dict[str, Any]]:
        """Yield the receipts of a stage, in the order of its tasks."""
        return (self.receipt(stage, task) for task in range(num_tasks))

    def table(self, receipt: Mapping[str, Any], name: str) -> pa.Table:
        """Read a piece that a receipt names; pages are checked against their checksums."""
        return pq.read_table(self.piece(receipt, name), page_checksum_verification=True)

    def piece(self, receipt: Mapping[str, Any], name: str) -> Path:
        """Return the local path of a piece that a receipt names."""
        return self.store.path(receipt["pieces"][name]["path"])

    def finish(self, stage: str, task: int, pieces: Mapping[str, Path], facts: Mapping[str, Any]) -> None:
        """Publish a task's pieces, then its receipt.

        Args:
            stage: the stage's name.
            task: the task's number.
            pieces: spooled files by name; Parquet, but for a name with a suffix of its own.
            facts: what else the receipt says; JSON values.
        """
        entries = {}
        for name, spooled in pieces.items():
            sha256 = file_sha256(spooled)
            stem, _, suffix = name.partition(".")
            path = self._name(f"{stage}/{task:05d}-{stem}-{sha256[:SHA_DIGITS]}.{suffix or 'parquet'}")
            entries[name] = describe(spooled, path, sha256)
            self.store.put(spooled, path)
        self.store.put_bytes(canonical({**facts, "pieces": entries}) + b"\n", self._name(f"{stage}/{task:05d}.json"))


def describe(spooled: Path, path: str, sha256: str) -> dict[str, Any]:
    """Say what a written file is: path, bytes, sha256, and the rows of a Parquet file, which is opened again for it."""
    rows = pq.read_metadata(spooled).num_rows if path.endswith(".parquet") else None
    return {"path": path, "bytes": spooled.stat().st_size, "rows": rows, "sha256": sha256}


def run_id(plan: dict[str, Any]) -> str:
    """Return the id of the run that does `plan`: the same work has the same id."""
    return digest(plan)[:SHA_DIGITS]
