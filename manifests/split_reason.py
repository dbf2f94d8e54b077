"""Why a document has its split, in a sentence: the draw of the keyed hash, computed again, or the exclusion that is recorded.

The specification says who is held out (manifests/README.md, Splits): a function of seed and group alone, so that a reader can
check it. Cost: one hash; for an excluded document, the row groups of `exclusions/` whose statistics admit its id. It does *not*
search for near-duplicates: that a training document has none is what the writer says.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.explanation import ExcludedFor
from lmsplit.manifests.parquet import read_rows
from lmsplit.manifests.reader import Manifest

_RANGE: Final = 2**64
_SEEDS: Final = 2**63


def split_reason(manifest: Manifest, document: Mapping[str, Any]) -> tuple[str, ExcludedFor | None]:
    """Return why a document has its split.

    Args:
        manifest: the manifest.
        document: its columns `doc_id`, `text`, `group` and `split`.

    Returns:
        A sentence, and of an excluded document what it nearly repeats, where the manifest says so.

    Raises:
        DamagedError: a file of `exclusions/` is missing or cannot be read.
    """
    if document["split"] == "excluded":
        found = _exclusion(manifest, document["doc_id"])
        return _excluded(found), found
    whose = "its text, as it has no group," if document["group"] is None else f"its group {document['group']!r}"
    fraction, seed = manifest.body.heldout_fraction, manifest.body.configuration.get("seed")
    if fraction is None or not isinstance(seed, int) or not 0 <= seed < _SEEDS:
        drawn, said = None, f"{whose} was assigned in a way that the commit does not record"
    else:
        hashed = heldout_hash(seed, document["group"], document["text"])
        drawn = hashed < int(fraction * _RANGE)
        below = "below" if drawn else "not below"
        said = f"the keyed hash of {whose} drew {hashed / _RANGE:.6f}, {below} the held-out share of {fraction:.6g}"
    return _drawn(document["split"], drawn, said, manifest), None


def heldout_hash(seed: int, group: str | None, text: str) -> int:
    """Return H(seed, "heldout", key), 0 to 2^64 - 1; key is the group, or without one the text.

    Args:
        seed: of the configuration, 0 to 2^63 - 1.
        group: the document's group.
        text: its text.
    """
    key = f"t{text}" if group is None else f"g{group}"
    state = hashlib.blake2b(key.encode(), digest_size=8, key=seed.to_bytes(8, "big"), person=b"heldout")
    return int.from_bytes(state.digest(), "big")


def _drawn(split: str, drawn: bool | None, said: str, manifest: Manifest) -> str:
    if drawn is not None and drawn != (split == "heldout"):
        return f"{'held out' if split == 'heldout' else split}, though {said}: the manifest does not say why"
    if split == "heldout":
        return f"held out: {said}"
    missing = object()
    threshold = manifest.body.configuration.get("near_duplicate_threshold", missing)
    if manifest.body.heldout_fraction == 0:
        return "train: nothing is held out"
    if threshold is None:
        return f"train: {said}; near-duplicates of held-out documents were not searched for"
    bound = "" if threshold is missing else f", with similarity {threshold} or more"
    return f"train: {said}; no held-out document was found that it nearly repeats{bound}"


def _excluded(found: ExcludedFor | None) -> str:
    if found is None:
        return "excluded: it nearly repeats a held-out document; the manifest does not say which"
    return f"excluded: it nearly repeats the held-out document {found.doc_id!r}, with similarity {found.similarity:.3f}"


def _exclusion(manifest: Manifest, doc_id: str) -> ExcludedFor | None:
    wanted = pc.field("doc_id") == doc_id
    columns = ["doc_id", "heldout_doc_id", "similarity"]
    for entry in manifest.body.files:
        if not entry.path.startswith("exclusions/"):
            continue
        try:
            rows = read_rows(manifest.store, entry.path, columns, wanted).to_pylist()
        except (OSError, pa.ArrowException) as error:
            where = manifest.store.where(entry.path)
            raise DamagedError(entry.path, f"{where} cannot be read ({error}): run lmsplit verify --deep") from error
        if rows:
            return ExcludedFor(rows[0]["heldout_doc_id"], rows[0]["similarity"])
    return None
