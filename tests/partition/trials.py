"""What the crash trials share: a small run that writes all that a run can, in forked processes, and what must hold after it."""

import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lmsplit.manifests.commit import read_commit
from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import LocalStore
from lmsplit.manifests.verify import verify_manifest
from tests.partition import failpoints
from tests.partition.corpora import topical, tree, write

FORKING = get_context("forkserver")


class Undisturbed(NamedTuple):
    """A run that nothing disturbed: its corpus, its bytes, its commit, and the points that it passed."""

    corpus: Path
    tree: dict[str, bytes]
    commit: str
    points: list[str]


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    exit_code: int | None
    said: str


class Started:
    """A process that has been forked, for its imports, from one that has them already; both of its streams go to a file.

    Args:
        log: the file.
        function: what it does.
        arguments: of the function.
    """

    def __init__(self, log: Path, function: Callable[..., None], *arguments: Any) -> None:
        FORKING.set_forkserver_preload(["tests.partition.failpoints"])
        self._log = log
        self.process: ForkServerProcess = FORKING.Process(target=_logged, args=(log, function, arguments))
        self.process.start()

    def end(self) -> Ended:
        """Wait for its end."""
        self.process.join()
        return Ended(self.process.exitcode, self._log.read_text())


def _logged(log: Path, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with log.open("wb") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    function(*arguments)


def command(corpus: Path, output: Path, domains: int = 3) -> list[str]:
    """The command of a run in one process; its configuration is written beside the output."""
    config = output.with_name(f"{output.name}-{domains}.yaml")
    config.write_text(
        f"input: {{paths: {corpus}, group: group}}\noutput: {output}\ndomains: {domains}\nencoder: lexical\n"
        "duplicate_ids: quarantine\nmax_bad_fraction: 0.1\nkeep_embeddings: true\nexecutor: {workers: 0}\n"
    )
    return ["partition", str(config), "--json"]


def start(corpus: Path, output: Path, kind: str = "count", number: int = 0, domains: int = 3) -> Started:
    """Start a run that fails at a point."""
    arguments = [kind, str(number), "--", *command(corpus, output, domains)]
    return Started(output.with_name(f"{output.name}-{kind}-{domains}.log"), failpoints.main, arguments)


def run(corpus: Path, output: Path, kind: str = "count", number: int = 0, domains: int = 3) -> Ended:
    """Run the command, which fails at a point."""
    return start(corpus, output, kind, number, domains).end()


def points_of(ended: Ended) -> list[str]:
    """The points that a run passed, in their order."""
    assert ended.exit_code == 0, ended.said
    return [line.split(maxsplit=2)[2] for line in ended.said.splitlines() if line.startswith(failpoints.PREFIX)]


def write_corpus(directory: Path) -> Path:
    """Three units with a duplicate id, bad lines, and near-duplicates of held-out documents: every stage writes all it can."""
    documents = topical(240, words=1000)
    for index in range(3):
        copies = [row | {"id": f"copy of {row['id']}", "group": "copies"} for row in documents[index::30]]
        path = write(directory / f"{index}.jsonl", [*documents[80 * index : 80 * index + 80], documents[0], *copies])
        with path.open("ab") as file:
            file.write(b"no JSON\n")
    return directory


def commit_of(output: Path) -> str:
    """The digest of a manifest's commit."""
    return read_commit(LocalStore(output))[1].body_sha256


def undisturbed_run(directory: Path) -> Undisturbed:
    """Make a corpus and its manifest."""
    corpus = write_corpus(directory / "in")
    points = points_of(run(corpus, directory / "m"))
    published = tree(directory / "m")
    folders = {name.partition("/")[0] for name in published}
    assert folders == {"README.md", "data", "domains", "embeddings", "exclusions", "ids", "placement", "plans", "quarantine"}
    return Undisturbed(corpus, published, commit_of(directory / "m"), points)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run that nothing disturbed."""
    return undisturbed_run(tmp_path_factory.mktemp("undisturbed"))


def reads_nothing_or_all(output: Path) -> None:
    """What a reader meets before a run is done: no manifest, or the whole of it, the card perhaps not yet."""
    try:
        Manifest.open(output)
    except ManifestError:
        assert not (output / "commits" / "00000.json").exists()
    else:
        assert [finding for finding in verify_manifest(output, deep=True) if finding.code != "card"] == []


def is_like(output: Path, undisturbed: Undisturbed) -> None:
    """The bytes are those of the undisturbed run, and every check is clean."""
    assert tree(output) == undisturbed.tree
    assert commit_of(output) == undisturbed.commit
    assert list((output / "commits").iterdir()) == [output / "commits" / "00000.json"]
    assert verify_manifest(output, deep=True) == []
