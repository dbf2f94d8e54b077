"""Plans a run: surveys the corpus, freezes the configuration, and names the run by all that determines its content.

The run id digests relative paths, content digests, content keys of the configuration and library versions. It does not digest
where the input or the output lie, the executor, times or hosts. Cost: one read of the whole input, for the digests.
"""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

from lmsplit.manifests.errors import InputError
from lmsplit.manifests.lexical import LEXICAL
from lmsplit.manifests.model_files import find_model, settings_sha256
from lmsplit.manifests.sentence import check_installed
from lmsplit.manifests.store import Store, open_store
from lmsplit.partition.config import Partition
from lmsplit.partition.corpus import Corpus, survey
from lmsplit.partition.reading import read_unit
from lmsplit.partition.records import Batch, Columns, Limits
from lmsplit.partition.run import Run, run_id
from lmsplit.partition.tokens import TokenCounter, open_counter
from lmsplit.partition.units import Segment, WorkUnit

DETERMINING: Final = ("lmsplit", "numpy", "polars", "pyarrow", "scipy", "scikit-learn", "zstandard", "orjson")
DETERMINING_VECTORS: Final = ("torch", "transformers", "sentence-transformers", "tokenizers")


@dataclass(frozen=True)
class Plan:
    """A surveyed corpus and the run that partitions it."""

    corpus: Corpus
    content: dict[str, Any]
    here: dict[str, Any]

    @property
    def run_id(self) -> str:
        """The run's id."""
        return run_id(self.content)


def make_plan(configuration: Partition, progress: Callable[[int], None] | None = None) -> Plan:
    """Survey the corpus and plan the run.

    Args:
        configuration: the validated configuration.
        progress: called with the number of input bytes digested since the last call.

    Returns:
        The plan; nothing is written.

    Raises:
        ConfigurationError: the input names no file, or a scheme that is not supported.
        InputError: a file cannot be read, or files disagree about a column.
    """
    corpus = survey(
        configuration.input.paths,
        columns(configuration),
        output=configuration.output,
        progress=progress,
    )
    content = {
        "version": 1,
        "files": [asdict(file) for file in corpus.files],
        "units": [[asdict(segment) for segment in unit.segments] for unit in corpus.units],
        "estimated_documents": corpus.estimated_documents,
        "keep": [list(pair) for pair in corpus.keep_types],
        "configuration": configuration.content() | _digests(configuration),
        "software": software(configuration),
    }
    here: dict[str, Any] = {
        "root": corpus.root,
        "paths": list(configuration.input.paths),
        "executor": configuration.executor.model_dump(mode="json"),
        "encoder": configuration.encoder.model_dump(mode="json"),
        "tokenizer": configuration.tokenizer,
        "gate": configuration.gate,
        "versions": corpus.versions,
    }
    return Plan(corpus, content, here)


def columns(configuration: Partition) -> Columns:
    """Return the columns that a configuration names, as the reader wants them."""
    given = configuration.input
    keep = tuple((column.name, column.type) for column in given.keep)
    return Columns(text=given.text, id=given.id, source=given.source, group=given.group, keep=keep)


def software(configuration: Partition) -> dict[str, str]:
    """Return the versions of what determines a manifest's bytes."""
    names = [*DETERMINING]
    if configuration.encoder.model != LEXICAL:
        names += DETERMINING_VECTORS
    elif configuration.tokenizer:
        names.append("tokenizers")
    versions = {name: importlib.metadata.version(name) for name in names}
    return versions | {"python": ".".join(map(str, sys.version_info[:2]))}


def _digests(configuration: Partition) -> dict[str, Any]:
    """Return the digests of the encoder's and the tokenizer's files, which stand for their names on this machine."""
    encoder = configuration.encoder
    digests: dict[str, Any] = {"encoder": encoder.content(), "tokenizer": None}
    if encoder.model != LEXICAL:
        check_installed()
        files = find_model(encoder.model, encoder.revision)
        digests["encoder"] |= {"weights_sha256": files.weights_sha256, "tokenizer_sha256": files.tokenizer_sha256}
        if files.name is None:  # a hub's revision pins the rest
            digests["encoder"]["settings_sha256"] = settings_sha256(files.directory)
    if configuration.tokenizer:
        digests["tokenizer"] = open_counter(configuration.tokenizer).digest
    return digests


UNIT_STAGES: Final = frozenset({"scan", "rescan", "heldout", "place"})
"""Stages with one task per work unit."""


def describe_task(run: Run, stage: str, task: int) -> str:
    """Say what a task works on, for people."""
    if stage not in UNIT_STAGES:
        return f"task {task}"
    first, *others = (Segment(**segment) for segment in run.plan["units"][task])
    rows = "" if first.num_rows is None else f" rows {first.first_row} to {first.first_row + first.num_rows - 1}"
    more = f" and {len(others)} more files" if others else ""
    return f"unit {task} ({first.path}{rows}{more})"


@dataclass(frozen=True)
class Planned:
    """What the stages read of a run's plan."""

    run: Run

    @cached_property
    def configuration(self) -> Partition:
        """The frozen configuration."""
        content = dict(self.run.plan["configuration"])
        content["input"] = content["input"] | {"paths": self.run.here["paths"]}
        elsewhere = {key: self.run.here[key] for key in ("executor", "encoder", "tokenizer", "gate")}
        return Partition.model_validate(content | elsewhere | {"output": self.run.output})

    @property
    def num_units(self) -> int:
        """Work units of the corpus."""
        return len(self.run.plan["units"])

    @property
    def estimated_documents(self) -> int:
        """Documents of the corpus, exact but for compressed JSONL."""
        return int(self.run.plan["estimated_documents"])

    @property
    def keep(self) -> tuple[tuple[str, str], ...]:
        """Kept columns and their Arrow types."""
        return tuple((name, kind) for name, kind in self.run.plan["keep"])

    def open_counter(self) -> TokenCounter | None:
        """Open the tokenizer as it was planned; None without one.

        Raises:
            InputError: it is another one by now.
        """
        if (location := self.configuration.tokenizer) is None:
            return None
        counter, planned = open_counter(location), self.run.plan["configuration"]["tokenizer"]
        if counter.digest != planned:
            raise InputError(
                f"tokenizer {location} has digest {counter.digest}, planned was {planned}: "
                "restore it, or run the same command again"
            )
        return counter

    def read(self, unit: int) -> Iterator[Batch]:
        """Read a work unit.

        Raises:
            InputError: a file of it changed after the plan was made, or is damaged.
        """
        segments = tuple(Segment(**segment) for segment in self.run.plan["units"][unit])
        limits = Limits(max_record_bytes=self.configuration.max_record_bytes)
        root = open_store(self.run.here["root"])
        self._check_unchanged(root, segments)
        yield from read_unit(root, WorkUnit(unit, segments), columns(self.configuration), self.keep, limits)
        self._check_unchanged(root, segments)

    def _check_unchanged(self, root: Store, segments: tuple[Segment, ...]) -> None:
        for path in {segment.path for segment in segments}:
            try:
                version = root.version(path)
            except OSError as error:
                why = error.strerror or error
                raise InputError(f"{path} cannot be read any more ({why}): restore it, or plan anew") from error
            if version != self.run.here["versions"][path]:
                raise InputError(f"{path} changed after it was planned: run the same command again to plan it anew")
