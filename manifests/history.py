"""Since which commit a document has been where it is: the opened commit and its ancestors, newest first.

```
opened commit ─► its parent ─► … ─► commit 0
    └ published under this id, with this text?  in this domain, by this rule?  any tombstone of the id?
```

A data file that an ancestor shares with the opened commit answers for both; else the id is looked up there, as any other (see
`lookup`). Cost: every ancestor's commit file is read, one in memory at a time, and at most one look-up in each as long as the
document is found. It does *not* tell what happened between: a document that left and came back is told from its return on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmsplit.manifests.commit import read_commit, versions
from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.explanation import CommitReference
from lmsplit.manifests.layout import commit_path
from lmsplit.manifests.lookup import Lookup
from lmsplit.manifests.reader import Manifest


@dataclass(frozen=True)
class History:
    """What a commit and its ancestors say of an id.

    Attributes:
        added_in: the oldest commit since which it has always been published, with this text; None unless published.
        placed_in: the oldest commit since which it has also been in this domain, by this rule.
        taken_down: its newest tombstone, with `version`, `commit` and `created_at` of the commit that holds it.
        ends: why older commits could not be looked at; None: all were.
    """

    added_in: CommitReference | None
    placed_in: CommitReference | None
    taken_down: dict[str, Any] | None
    ends: str | None


def history(manifest: Manifest, found: Lookup) -> History:
    """Walk back from the opened commit.

    Args:
        manifest: the manifest, at the commit to begin with.
        found: the id, looked up there; with `text_sha256` among its columns where it is published.

    Raises:
        DamagedError: a commit or an index is not what was published, or a commit's parent is another one than before it.
    """
    added = placed = _reference(manifest) if found.status == "published" else None
    is_there = is_placed_so = added is not None
    tombstone, ends, last = None, None, manifest
    for last in _ancestry(manifest):
        tombstone = tombstone or _tombstone(last, found.doc_id)
        if is_there and last is not manifest:
            domain, gone = _domain_in(last, found)
            ends = ends or gone
            is_there = domain is not None
            is_placed_so = is_placed_so and domain == found.domain and _rule(last) == _rule(manifest)
            added = _reference(last) if is_there else added
            placed = _reference(last) if is_placed_so else placed
    missing = None if last.body.parent is None else f"commit {last.version - 1} is not there"
    return History(added, placed, tombstone, ends or missing)


def _ancestry(manifest: Manifest) -> Iterator[Manifest]:
    """Yield the manifest, its parent, and so on, as far as they are there."""
    existing = set(versions(manifest.store))
    child = manifest
    yield child
    while child.body.parent is not None and child.version - 1 in existing:
        parent = Manifest(child.store, *read_commit(child.store, child.version - 1))
        if parent.digest != child.body.parent:
            name = commit_path(child.version)
            said = f"{name} has the parent {child.body.parent}, the commit before it is {parent.digest}"
            raise DamagedError(name, f"{said}: restore both from a copy")
        child = parent
        yield child


def _domain_in(earlier: Manifest, found: Lookup) -> tuple[str | None, str | None]:
    """Return the domain of the same document there, None where it is not, or with another text; and what cannot be read."""
    if any(entry.path == found.path for entry in earlier.body.files):
        return found.domain, None
    try:
        before = earlier.find(found.doc_id, columns=["text_sha256"])
    except DamagedError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        # A commit may drop files of an earlier one, and then they may be removed: no damage to the opened one.
        return None, f"files of commit {earlier.version} are not there"
    assert found.document is not None, "only a published document has a history"
    same = before.document is not None and before.document["text_sha256"] == found.document["text_sha256"]
    return before.domain if same else None, None


def _rule(manifest: Manifest) -> str:
    return next(entry.sha256 for entry in manifest.body.files if entry.path == manifest.body.placement)


def _reference(manifest: Manifest) -> CommitReference:
    return CommitReference(manifest.version, manifest.digest, manifest.commit.created_at)


def _tombstone(manifest: Manifest, doc_id: str) -> dict[str, Any] | None:
    for tombstone in manifest.body.tombstones:
        if tombstone.get("doc_id") == doc_id:
            where = {"version": manifest.version, "commit": manifest.digest, "created_at": manifest.commit.created_at}
            return {"reason": None, "date": None} | tombstone | where
    return None
