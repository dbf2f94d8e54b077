"""What `explain` answers: records for programs, with the same JSON keys whatever became of the document. Holds; finds nothing."""

import dataclasses
import datetime
import math
from dataclasses import dataclass
from typing import Any, Literal

from lmsplit.manifests.lookup import SetAside

Status = Literal["published", "quarantined", "duplicate", "taken_down", "unknown"]
"""What became of an id; `published` wins over all that was set aside under it, `taken_down` over the rest."""


@dataclass(frozen=True)
class ExcludedFor:
    """The held-out document that an excluded one nearly repeats.

    Attributes:
        doc_id: the held-out document.
        similarity: Jaccard similarity of their sets of word 5-grams, 0 to 1.
    """

    doc_id: str
    similarity: float


@dataclass(frozen=True)
class Representative:
    """A document near the centroid of the domain.

    Attributes:
        doc_id: its id.
        excerpt: the beginning of its text.
        similarity: cosine to the document explained; None without an encoder, or where its text is not to be had.
    """

    doc_id: str
    excerpt: str
    similarity: float | None = None


@dataclass(frozen=True)
class Digests:
    """What the answer rests on, as SHA-256.

    Attributes:
        encoder: of the canonical JSON of the rule's description of its encoder.
        rule: of the placement rule's description, which holds the digest of its arrays.
        configuration: of the canonical JSON of the commit's `configuration`.
        plan: of the plan.
        commit: of the commit's body: the manifest's identity.
    """

    encoder: str
    rule: str
    configuration: str
    plan: str
    commit: str


@dataclass(frozen=True)
class CommitReference:
    """A commit of the manifest.

    Attributes:
        version: its number.
        commit: its `body_sha256`.
        created_at: when it was published, UTC.
    """

    version: int
    commit: str
    created_at: str


@dataclass(frozen=True)
class Recomputed:
    """What placing the text again gives.

    Attributes:
        domain: where it belongs now.
        distance: to that domain's centroid.
        second_domain: the runner-up; None with one domain.
        margin: see the column `margin`.
        matches: whether it confirms what is recorded, as `verify --deep` decides it.
        tolerance: by how much distances may differ here.
        difference: by how much the distance differs from the recorded one; None where none is recorded.
    """

    domain: str
    distance: float
    second_domain: str | None
    margin: float | None
    matches: bool
    tolerance: float
    difference: float | None


@dataclass(frozen=True)
class Score:
    """How near a text comes to a domain.

    Attributes:
        domain: the domain.
        label: its label; None of a domain that a hand-over left behind.
        cost: 1 - x·c + price; in a tree, to be compared only with siblings in it.
        distance: 1 - cosine to its centroid.
        margin: by how much the rule prefers its own choice to this one; 0 for the choice. Flat: the difference of the costs. In
            a tree: the largest such difference among siblings, on the way from the root to this domain.
    """

    domain: str
    label: str | None
    cost: float
    distance: float
    margin: float


@dataclass(frozen=True)
class Explanation:
    """Where a document is, and why. What does not apply is None, or empty where it is a list.

    Attributes:
        doc_id: the id that was asked for; None for a text.
        status: what became of it; of a text, `unknown`: it is not searched for.
        text_sha256: digest of the text's UTF-8 bytes.
        excerpt: the beginning of the text on one line, at most 300 characters.
        num_bytes: length of the text in UTF-8 bytes.
        num_tokens: length in tokens, where the manifest counts them.
        domain: the domain; of a text, where the rule places it now. So for the fields down to `margin`.
        label: the domain's label.
        keywords: the domain's keywords.
        distance: 1 - cosine to the domain's centroid; None where a student placed it.
        percentile: 0 to 100, the share of the domain's documents whose distance is smaller, those at the same distance counted
            half (the document itself is one of them); exact: the column `distance` of the domain's data files is read whole.
        second_domain: the runner-up.
        second_label: its label.
        second_distance: 1 - cosine to its centroid.
        margin: see the column `margin`.
        placed_by: which stored rule placed it.
        confidence: the student's.
        source: see the column `source`, as the next two.
        source_path: input file, relative to the input root.
        source_row: row or line in it.
        group: what must not be torn between splits.
        split: train, heldout or excluded.
        split_reason: why, in a sentence.
        excluded_for: of an excluded document, what it nearly repeats.
        path: its data file, relative to the manifest.
        row: its row in that file.
        kept: the columns kept from the input, by name.
        representatives: of the domain: nearest the centroid first, with an encoder nearest the document first.
        scores: of a text, the five nearest domains, nearest first.
        recomputed: with an encoder, what placing the text again gives.
        set_aside: every record that was set aside under the id.
        taken_down: the newest tombstone of the id in this commit and its ancestors, with the commit that holds it.
        digests: what the answer rests on.
        added_in: the oldest commit since which the id has always been published, with this text.
        placed_in: the oldest commit since which it has also been in this domain, by this rule.
        history_ends: why older commits could not be looked at; None: all were.
        nearest_ids: of an unknown id, ids that are there and look like it.
    """

    doc_id: str | None
    status: Status
    digests: Digests
    text_sha256: str | None = None
    excerpt: str | None = None
    num_bytes: int | None = None
    num_tokens: int | None = None
    domain: str | None = None
    label: str | None = None
    keywords: tuple[str, ...] | None = None
    distance: float | None = None
    percentile: float | None = None
    second_domain: str | None = None
    second_label: str | None = None
    second_distance: float | None = None
    margin: float | None = None
    placed_by: str | None = None
    confidence: float | None = None
    source: str | None = None
    source_path: str | None = None
    source_row: int | None = None
    group: str | None = None
    split: str | None = None
    split_reason: str | None = None
    excluded_for: ExcludedFor | None = None
    path: str | None = None
    row: int | None = None
    kept: dict[str, Any] | None = None
    representatives: tuple[Representative, ...] | None = None
    scores: tuple[Score, ...] | None = None
    recomputed: Recomputed | None = None
    set_aside: tuple[SetAside, ...] = ()
    taken_down: dict[str, Any] | None = None
    added_in: CommitReference | None = None
    placed_in: CommitReference | None = None
    history_ends: str | None = None
    nearest_ids: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `explain --json` prints: JSON values only, the same keys for every status.

        Dates are ISO 8601, numbers that JSON lacks are null, and of an id that no UTF-8 can hold the bad part is escaped.
        """
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime.date):  # a datetime is one
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
