"""A datatrove step that says of every document to which domain of a published manifest it belongs.

```
documents ─► batches ─► the manifest's encoder ─► the manifest's rule ─► the same documents, in order, with metadata
```

A document of the partitioned corpus gets, to the last bit, what the manifest's own row says; any other one lands where it would
have. Texts are placed as they arrive: a step before this one that changes them (a formatter, say) changes their place. The
JSONL and Parquet readers of datatrove leave texts as they are, but skip JSON that they cannot parse and records without text,
and give a record without an id one that is not the manifest's.

It does *not* publish anything, drop documents, look for duplicates, or hold documents out: that is `pipeline`.

Cost: encoding, on one core per task (see `lmsplit.manifests.encoder`). Memory: the encoder, and one batch of documents.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from threadpoolctl import threadpool_limits

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.placement import Encoder, PlacementRule, is_unit
from lmsplit.manifests.reader import Manifest

KEYS: Final = ("domain", "label", "distance", "second_domain", "second_distance", "margin")
"""What a document's metadata gains, each after the prefix."""
BATCH_DOCUMENTS: Final = 4096
BATCH_CHARACTERS: Final = 32 * 2**20
"""A batch ends with the document that reaches either: enough for full batches of every length, and bounded (assumption)."""


class PlaceDocuments(PipelineStep):
    """Adds `domain`, `label`, `distance`, `second_domain`, `second_distance` and `margin` to each document's metadata.

    Values are `str` and `float`, equal to the float32 of the manifest. They are None where the manifest has null (there is no
    runner-up with one domain), and all None for a text without a place: one that a manifest would set aside, since it is blank,
    no valid Unicode, or the encoder finds nothing in it. The step's statistics count `total`, `domain_d00000`, … and `no_domain`.

    Pickled, it is its arguments; whatever is heavy is opened by the first batch of each task. A `ParquetWriter` takes its columns
    from the first document of a file: give it a `schema` where that one may have no place.

    Args:
        manifest: its directory; `<directory>@<number>` for one commit, whatever is published while the pipeline runs.
        prefix: put before every key. Metadata that is there already is refused, never overwritten.
        batch_size: documents encoded at once, at least 1; fewer where they are long. No value depends on it.
        model: directory of the encoder's model, where the manifest knows it by its digests alone.
        trust_remote_code: allow a model that needs it to run its own code.
        exact: refuse a machine whose vectors differ from the manifest's in the last bits. Without, distances may be off by the
            encoder's tolerance (0.001 in float32, 0.01 in 16 bits), and a margin below twice that may be another domain's.

    Raises:
        ConfigurationError: `batch_size` is below 1. While it runs: a key is taken, or the model, its library or (if exact) the
            same arithmetic is not to be had here.
        ManifestError: while it runs: there is no manifest, or it is damaged, or the model found is another one than pinned.

    >>> step = PlaceDocuments("tests/golden/v1", prefix="topic_")
    >>> [document] = step([Document("Knead the dough with flour and water.", id="a")])
    >>> document.metadata["topic_domain"], document.metadata["topic_second_domain"]
    ('d00000', 'd00001')
    """

    name = "🧭 lmsplit domains"
    type = "🏷 - PLACE"

    def __init__(
        self,
        manifest: str | Path,
        *,
        prefix: str = "",
        batch_size: int = BATCH_DOCUMENTS,
        model: str | Path | None = None,
        trust_remote_code: bool = False,
        exact: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigurationError(f"batch_size is {batch_size}: choose at least 1")
        self.manifest = str(manifest)  # texts and numbers only: datatrove also writes them down as JSON
        self.prefix = prefix
        self.batch_size = batch_size
        self.model = None if model is None else str(model)
        self.trust_remote_code = trust_remote_code
        self.exact = exact

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the same documents in the same order, placed; which rank it is makes no difference."""
        del rank, world_size
        opened = cache(self._open)
        for batch in _batches(data or (), self.batch_size):
            self._refuse_taken_keys(batch)
            # One thread, as in `engine`, and only meanwhile: other steps run between our documents.
            with self.track_time("batch"), threadpool_limits(1):
                places = opened().places([document.text for document in batch])
            for document, place in zip(batch, places, strict=True):
                document.metadata |= {self.prefix + key: value for key, value in zip(KEYS, place, strict=True)}
                self.stat_update("total", "no_domain" if place[0] is None else f"domain_{place[0]}")
                yield document

    def _open(self) -> "_Placer":
        manifest = Manifest.open(self.manifest)
        try:
            encoder = manifest.encoder(exact=self.exact, model=self.model, trust_remote_code=self.trust_remote_code)
        except ConfigurationError as error:  # its text speaks to users of the commands
            error.add_note(
                "In PlaceDocuments: model= names the model's directory, trust_remote_code=True allows its code, and exact=False "
                "allows other bits than the manifest's."
            )
            raise
        return _Placer(encoder, manifest.rule(), {domain.domain: domain.label for domain in manifest.domains})

    def _refuse_taken_keys(self, batch: Sequence[Document]) -> None:
        keys = [self.prefix + key for key in KEYS]
        for document in batch:
            if taken := [key for key in keys if key in document.metadata]:
                raise ConfigurationError(
                    f"document {document.id!r} has metadata {', '.join(taken)} already, which PlaceDocuments would overwrite: "
                    f"give it another prefix than {self.prefix!r}, such as prefix='lmsplit_'"
                )


class _Placer(NamedTuple):
    """What placing a text takes."""

    encoder: Encoder
    rule: PlacementRule
    labels: dict[str, str]

    def places(self, texts: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return the values of `KEYS` for each text."""
        valid = np.array([_is_valid(text) for text in texts])
        embeddings_ND = self.encoder.encode([text if ok else "" for text, ok in zip(texts, valid, strict=True)])
        rows = np.flatnonzero(valid & is_unit(embeddings_ND))
        placed = self.rule.place(embeddings_ND[rows])
        columns = placed.domain, placed.distance, placed.second_domain, placed.second_distance, placed.margin
        places: list[tuple[Any, ...]] = [(None,) * len(KEYS)] * len(texts)
        for row, *values in zip(rows.tolist(), *(column.tolist() for column in columns), strict=True):
            places[row] = self._described(*values)
        return places

    def _described(self, domain: int, distance: float, second: int, second_distance: float, margin: float) -> tuple[Any, ...]:
        runner_up = (None, None, None) if second < 0 else (domain_name(second), second_distance, margin)
        return domain_name(domain), self.labels.get(domain_name(domain)), distance, *runner_up


def _is_valid(text: str) -> bool:
    """Return whether a manifest would take the text: more than white space, and no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text.strip())


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document.text)
        if len(batch) == size or num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
