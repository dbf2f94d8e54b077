"""Writes the golden manifest of format version 1: run it once for a new format version, never to change an old one.

    python tests/golden/make_golden.py tests/golden/v1

It builds the manifest through the public functions of `lmsplit.manifests` and by hand otherwise, not through the pipeline, so
that every case of the format is in it: two parts of one split, two ranges of ids, all three splits, prices, kept columns,
nulls, quarantine and a duplicate. The encoder's arrays are tiny and random: what matters is that placement follows from them.
"""

import hashlib
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests import schema
from lmsplit.manifests.card import write_card
from lmsplit.manifests.commit import Amount, Body, Counts, FileEntry, canonical, write_commit
from lmsplit.manifests.layout import (
    data_path,
    domain_name,
    domains_path,
    ids_path,
    placement_path,
    plan_path,
    quarantine_path,
)
from lmsplit.manifests.lexical import LexicalEncoder, LexicalFeatures, describe_lexical
from lmsplit.manifests.placement import PLACED_BY_CENTROIDS, PlacementRule, normalised
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.rule_files import store_rule
from lmsplit.manifests.store import LocalStore

BREAD = (
    "Bread begins with flour, water, salt and time. Knead the dough until it is smooth, then let it rest under a cloth.",
    "A sourdough starter is flour and water kept warm and fed each day; the yeast in it lifts the dough without a packet.",
    "The oven must be hot before the loaf goes in. Steam in the first minutes lets the crust stretch before it hardens.",
    "Rye flour holds more water than wheat flour, so a rye dough is sticky and the loaf is dense, dark and keeps for a week.",
    "Salt slows the yeast. Weigh it: two grams of salt for a hundred grams of flour is a good loaf, three is too many.",
    "Fold the dough every half hour instead of kneading it. The gluten lines up by itself while the dough rests.",
    "A loaf is baked when it sounds hollow underneath. Let it cool on a rack, or steam will make the crust soft.",
    "Überbackene Brötchen: Teig, Hefe, Salz — and a hot oven. The rolls want flour on top and twelve minutes. 🍞",
    "Flatbread needs no oven and no yeast: flour, water, salt, a hot pan, and a minute for each side of the dough.",
    "Wholemeal flour drinks slowly. Mix flour and water first, wait an hour, and only then add the salt and the yeast.",
)
SAILING = (
    "A boat cannot sail straight into the wind. It tacks: first one side of the wind, then the other, gaining ground each time.",
    "Reef the mainsail early. When the wind rises, a smaller sail keeps the boat upright and the helm light in your hand.",
    "The keel is heavy and deep. It keeps the boat from sliding sideways and brings it upright when a gust lays it over.",
    "Port is left and red, starboard is right and green. At night the lights tell you which side of a boat you see.",
    "Let the jib out when the wind comes from behind, and pull it in when the boat turns toward the wind.",
    "The tide turns every six hours. Leave the harbour with the ebb and the current carries the boat out to sea.",
    "A bowline makes a loop that never slips. Sailors tie it on the jib, on a mooring ring, and around their own waist.",
    "Anchor where the sea bed is sand, let out chain five times the depth, and watch two marks on the shore at night.",
    "When the boom swings across without warning, duck. A jibe in strong wind has broken masts and heads alike.",
    "The wind shifts right\tbefore the front comes through.\nWatch the water: dark patches are gusts on their way to the boat.",
)
STARS = (
    "A star shines because hydrogen in its core fuses into helium. The light takes thousands of years to reach its surface.",
    "Look for the Plough: two of its stars point to the pole star, which stands still while the others turn around it.",
    "The planets do not twinkle as the stars do, for they are discs and not points, and the air blurs them less.",
    "A telescope gathers light. A mirror twice as wide gathers four times the light and shows fainter stars.",
    "Red stars are cool and blue stars are hot. The colour of its light tells the temperature of a star's surface.",
    "Galaxies hold billions of stars. The nearest large one is a faint smudge of light in autumn, older than our kind.",
    "When a heavy star has burned its fuel the core falls in, the rest flies out, and for a week it outshines its galaxy.",
    "The moon hides faint stars. Go out when it is new, let your eyes grow dark for twenty minutes, then look up. ✨",
    "Comets are ice and dust. Near the sun the ice turns to gas, and the light pushes a tail away from the sun.",
    "A light year is a distance: how far light goes in a year. The nearest star beyond the sun is four of them away.",
)
NEAR_DUPLICATE = STARS[3] + " Fainter stars, too."
WITH_NUL = "The helm\x00and the sail share the wind; a boat in balance steers herself."

NUM_BUCKETS, DIMENSIONS = 1024, 24
KEEP = pa.schema([("license", pa.string()), ("year", pa.int32())])
LABELS = ("bread, dough | *oven*", "boat, wind, sail", "stars, light, sun")
REJECTED = ((3, 412, "malformed_json", b'{"id": "torn", "text": "a line that ends'), (9, 1190, "empty_text", b'{"text": ""}'))


class Golden:
    """Writes one golden manifest into `directory`."""

    def __init__(self, directory: Path) -> None:
        self.store = LocalStore(directory)
        self.files: list[FileEntry] = []

    def write(self) -> None:
        """Write every file, then the commit, then the card."""
        documents = _documents()
        rule = self._rule([row["text"] for row in documents])
        rows = self._placed(documents, rule)
        shards = self._data(rows)
        self._ids(shards)
        self._quarantine(rows[0])
        paths = {"plan": self._plan(), "domains": self._domains(rows), "placement": self.placement_path}
        read = Amount(records=len(rows) + 3, bytes=sum(row["num_bytes"] for row in rows) + self.aside_bytes)
        body = Body(
            parent=None,
            run_id="0" * 15 + "1",
            files=tuple(sorted(self.files, key=lambda entry: entry.path)),
            configuration={"domains": 3, "encoder": "lexical", "max_bad_fraction": 0.1, "seed": 0},
            **paths,
            encoder={"kind": "lexical", "placement_sha256": self.placement_sha256},
            columns={field.name: str(field.type) for field in KEEP},
            counts=Counts(
                read=read,
                published=Amount(records=len(rows), bytes=sum(row["num_bytes"] for row in rows)),
                quarantined=self.quarantined,
                duplicates=self.duplicates,
                text_bytes=sum(row["num_bytes"] for row in rows),
                tokens=None,
            ),
            splits={split: sum(row["split"] == split for row in rows) for split in schema.SPLITS},
            software={name: importlib.metadata.version(name) for name in ("lmsplit", "numpy", "pyarrow")},
            tier="fit: reproducible on one CPU type; placement: byte-identical",
        )
        write_card(Manifest(self.store, 0, write_commit(self.store, body, 0)))

    def _put(self, data: bytes, path: Any, rows: int | None = None) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        name: str = path(sha256)
        self.store.put_bytes(data, name)
        self.files.append(FileEntry(path=name, bytes=len(data), rows=rows, sha256=sha256))
        return name

    def _put_table(self, table: pa.Table, path: Any) -> str:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        return self._put(sink.getvalue().to_pybytes(), path, table.num_rows)

    def _rule(self, texts: list[str]) -> tuple[PlacementRule, LexicalEncoder]:
        features = LexicalFeatures(NUM_BUCKETS, 2_000)
        buckets = np.concatenate([features.count(text)[0] for text in texts])
        idf_B = (np.log((1 + len(texts)) / (1 + np.bincount(buckets, minlength=NUM_BUCKETS))) + 1).astype(np.float32)
        projection_BD = np.random.default_rng(0).standard_normal((NUM_BUCKETS, DIMENSIONS)).astype(np.float16)
        encoder = LexicalEncoder(features, idf_B, projection_BD)
        groups = (BREAD, SAILING, STARS)
        centroids_KD = normalised(np.stack([encoder.encode(group).mean(axis=0) for group in groups]))
        rule = PlacementRule(centroids_KD, np.array([0.0, 0.015625, 0.0]))
        arrays = {"idf_B": idf_B, "projection_BD": projection_BD}
        stored = store_rule(rule, describe_lexical(features, DIMENSIONS), arrays)
        self._put(stored.arrays, lambda sha256: placement_path(sha256, "safetensors"))
        self.placement_path = self._put(stored.description, lambda sha256: placement_path(sha256, "json"))
        self.placement_sha256 = self.files[-1].sha256
        self.prices_K = rule.prices_K
        return rule, encoder

    def _placed(self, documents: list[dict[str, Any]], fitted: tuple[PlacementRule, LexicalEncoder]) -> list[dict[str, Any]]:
        rule, encoder = fitted
        placed = rule.place(encoder.encode([row["text"] for row in documents]))
        return [
            row
            | {
                "text_sha256": hashlib.sha256(row["text"].encode()).hexdigest(),
                "domain": domain_name(int(placed.domain[n])),
                "distance": placed.distance[n],
                "second_domain": domain_name(int(placed.second_domain[n])),
                "second_distance": placed.second_distance[n],
                "margin": placed.margin[n],
                "placed_by": PLACED_BY_CENTROIDS,
                "confidence": None,
                "num_bytes": len(row["text"].encode()),
                "num_tokens": None,
            }
            for n, row in enumerate(documents)
        ]

    def _data(self, rows: list[dict[str, Any]]) -> list[tuple[str, int, list[dict[str, Any]]]]:
        """Write the data files; the training split of the first domain as two parts."""
        shards = []
        columns = schema.documents(KEEP, placement_sha256=self.placement_sha256)
        for domain in map(domain_name, range(3)):
            part = 0
            for split in schema.SPLITS:
                own = [row for row in rows if (row["domain"], row["split"]) == (domain, split)]
                halves = (own[:4], own[4:]) if (domain, split) == ("d00000", "train") else (own,)
                for half in filter(None, halves):
                    table = pa.Table.from_pylist(half, columns)
                    self._put_table(table, lambda sha256, d=domain, p=part: data_path(d, p, sha256))
                    shards.append((domain, part, half))
                    part += 1
        return shards

    def _ids(self, shards: list[tuple[str, int, list[dict[str, Any]]]]) -> None:
        index = [
            {"id_hash": _id_hash(row["doc_id"]), "doc_id": row["doc_id"], "domain": domain, "part": part, "row": number}
            for domain, part, rows in shards
            for number, row in enumerate(rows)
        ]
        index.sort(key=lambda row: (row["id_hash"], row["doc_id"]))
        for upper in (False, True):
            own = [row for row in index if (row["id_hash"] >= 2**63) == upper]
            self._put_table(pa.Table.from_pylist(own, schema.IDS), lambda sha256, r=int(upper): ids_path(r, sha256))

    def _quarantine(self, first: dict[str, Any]) -> None:
        rows = [_aside("notes.jsonl", row, offset, reason, raw, None) for row, offset, reason, raw in REJECTED]
        rows.append(_aside("books.parquet", 31, None, "duplicate_id", b"Another text, an old id.", first["doc_id"]))
        self._put_table(pa.Table.from_pylist(rows, schema.QUARANTINE), lambda sha256: quarantine_path(0, sha256))
        self.quarantined = {row["reason"]: Amount(records=1, bytes=row["num_bytes"]) for row in rows[:2]}
        self.duplicates = {"duplicate_id": Amount(records=1, bytes=rows[2]["num_bytes"])}
        self.aside_bytes = sum(row["num_bytes"] for row in rows)

    def _plan(self) -> str:
        files = [{"path": "books.parquet", "rows": 32}, {"path": "notes.jsonl", "rows": None}]
        return self._put(canonical({"version": 1, "files": files}) + b"\n", plan_path)

    def _domains(self, rows: list[dict[str, Any]]) -> str:
        table = []
        for k, label in enumerate(LABELS):
            own = sorted((row for row in rows if row["domain"] == domain_name(k)), key=lambda row: row["distance"])
            table.append(
                {
                    "domain": domain_name(k),
                    "path": [k],
                    "label": label,
                    "keywords": label.split(", "),
                    "representatives": [row["doc_id"] for row in own[:2]],
                    "excerpts": [row["text"][:60] for row in own[:2]],
                    "num_documents": len(own),
                    "num_bytes": sum(row["num_bytes"] for row in own),
                    "num_tokens": None,
                    **{f"num_{split}": sum(row["split"] == split for row in own) for split in schema.SPLITS},
                    "mean_distance": float(np.mean([row["distance"] for row in own], dtype=np.float64)),
                    "price": float(self.prices_K[k]),
                }
            )
        return self._put_table(pa.Table.from_pylist(table, schema.DOMAINS), domains_path)


def _documents() -> list[dict[str, Any]]:
    """Return 32 documents: of each subject two are held out, and the near-duplicate of one of these is excluded."""
    rows = []
    for number, text in enumerate([*BREAD, *SAILING, *STARS, NEAR_DUPLICATE, WITH_NUL]):
        heldout, jsonl = number % 10 in {3, 6} and number < 30, number >= 24
        rows.append(
            {
                "doc_id": f"notes.jsonl:{number - 24}" if jsonl else f"book-{number:02d}",
                "text": text,
                "source": None if jsonl else "books",
                "group": f"chapter-{number // 2}" if number < 10 and not heldout else None,
                "source_path": "notes.jsonl" if jsonl else "books.parquet",
                "source_row": number - 24 if jsonl else number,
                "split": "heldout" if heldout else "excluded" if text == NEAR_DUPLICATE else "train",
                "license": None if number % 3 == 0 else "CC0-1.0",
                "year": None if jsonl else 1990 + number,
            }
        )
    return rows


def _aside(path: str, row: int, offset: int | None, reason: str, raw: bytes, doc_id: str | None) -> dict[str, Any]:
    return {
        "source_path": path,
        "source_row": row,
        "byte_offset": offset,
        "reason": reason,
        "detail": None,
        "num_bytes": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
        "record": raw,
        "doc_id": doc_id,
    }


def _id_hash(doc_id: str) -> int:
    return int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:8], "big")


if __name__ == "__main__":
    os.environ["LOGNAME"] = "golden"
    Golden(Path(sys.argv[1])).write()
