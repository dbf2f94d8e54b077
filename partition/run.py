"""One run's folder: its plan, its pieces and its receipts. Receipts, and nothing else, decide what is done.

```
<manifest>/_work/<run id>/
  plan.json                      what determines content; the same bytes are published as plans/<sha>.json
  here.json                      where things are on this machine (input root, workers); determines nothing
  configuration.yaml             the resolved configuration, for people
  <stage>/00012.json             receipt of task 12: written last, create-only, the first one wins
  <stage>/00012-<name>-<sha>     the pieces that the receipt names
  failures/<stage>/00012-<id>.json    why a try of task 12 failed; means nothing once there is a receipt
  logs/<stage>/…                 what the executor says
```

A task that is killed leaves no receipt and is done again; a task done twice leaves the same pieces, and the second
receipt is ignored.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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
from lmsplit.manifests.parquet import read_rows
from lmsplit.manifests.store import Store, file_sha256, open_store

PLAN = "plan.json"
HERE = "here.json"
CONFIGURATION = "configuration.yaml"
FAILURES = "failures"
_READS_AT_ONCE = 32
"""Of receipts on an object store, where each takes a round trip (assumption)."""


@dataclass(frozen=True)
class Run:
    """A run in a manifest's directory.

    Args:
        output: the manifest's location, absolute.
        run_id: 16 hexadecimal digits.
    """

    output: str
    run_id: str

    @cached_property
    def store(self) -> Store:
        """Where the manifest is."""
        return open_store(self.output)

    def __reduce__(self) -> tuple[type["Run"], tuple[str, str]]:
        """Travel to another process as names alone."""
        return Run, (self.output, self.run_id)

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
        """Create the folder, or check that the one there has the same plan.

        Raises:
            ConfigurationError: the output cannot be written to, or not each name once.
        """
        self.store.check()
        self.store.put_bytes(canonical(plan) + b"\n", self._name(PLAN))
        assert self.plan == plan, "a run id names one plan"
        self.store.replace(canonical(here) + b"\n", self._name(HERE))

    def write_configuration(self, configuration: dict[str, Any]) -> None:
        """Write the resolved configuration, for people; no stage reads it."""
        resolved = yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True)
        self.store.replace(resolved.encode(), self._name(CONFIGURATION))

    def note(self, name: str, data: bytes) -> None:
        """Write what may change and determines nothing, such as the ids of the jobs that do the run."""
        self.store.replace(data, self._name(name))

    def noted(self, name: str) -> bytes | None:
        """Return what was noted under a name; None where nothing was."""
        try:
            return self.store.read(self._name(name))
        except FileNotFoundError:
            return None

    def _name(self, name: str) -> str:
        return f"{work_path(self.run_id)}/{name}"

    def where(self, name: str) -> str:
        """Return the path or URL of a file or folder of the run, for people and logs."""
        return self.store.where(self._name(name))

    def done(self, stage: str) -> dict[int, float]:
        """Return the tasks of a stage that have a receipt, with the time of each in seconds since 1970."""
        entries = self.store.entries(self._name(stage))
        return {int(name[:-5]): facts.modified_s for name, facts in entries.items() if name[:-5].isdigit()}

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
        if self.store.is_local:
            yield from (self.receipt(stage, task) for task in range(num_tasks))
            return
        with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
            yield from threads.map(lambda task: self.receipt(stage, task), range(num_tasks))

    def fail(self, stage: str, task: int, facts: Mapping[str, Any]) -> None:
        """Leave word of a failed try; whoever watches the run finds it."""
        name = f"{FAILURES}/{stage}/{task:05d}-{uuid.uuid4().hex}.json"
        self.store.put_bytes(canonical(facts) + b"\n", self._name(name))

    def failures(self, stage: str) -> dict[int, dict[str, Any]]:
        """Return the last failure of every task of a stage that failed and has no receipt."""
        folder = self._name(f"{FAILURES}/{stage}")
        by_time = sorted(self.store.entries(folder).items(), key=lambda entry: entry[1].modified_s)
        done = self.done(stage)
        last = {task: name for name, _ in by_time if (task := int(name[:5])) not in done}
        return {task: json.loads(self.store.read(f"{folder}/{name}")) for task, name in sorted(last.items())}

    def table(self, receipt: Mapping[str, Any], name: str) -> pa.Table:
        """Read a piece that a receipt names; pages are checked against their checksums."""
        return read_rows(self.store, piece(receipt, name))

    def local(self, receipt: Mapping[str, Any], name: str) -> Path:
        """Return a local path of a piece that a receipt names, to be mapped into memory."""
        return self.store.local(piece(receipt, name))

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


def piece(receipt: Mapping[str, Any], name: str) -> str:
    """Return where a piece that a receipt names lies in the store."""
    return str(receipt["pieces"][name]["path"])


def describe(spooled: Path, path: str, sha256: str) -> dict[str, Any]:
    """Say what a written file is: path, bytes, sha256, and the rows of a Parquet file, which is opened again for it."""
    rows = pq.read_metadata(spooled).num_rows if path.endswith(".parquet") else None
    return {"path": path, "bytes": spooled.stat().st_size, "rows": rows, "sha256": sha256}


def run_id(plan: dict[str, Any]) -> str:
    """Return the id of the run that does `plan`: the same work has the same id."""
    return digest(plan)[:SHA_DIGITS]
