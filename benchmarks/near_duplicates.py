"""Which planted near-duplicates of held-out documents are excluded at Jaccard 0.8, beside an exact search.

For each seed 2,000 random documents of at least 50 words are held out and indexed. Of each, one copy a row is planted, in which
that share of the words is edited (a quarter each substituted by a word of the corpus, deleted, inserted, and swapped with its
neighbour); the last row is every other document of the corpus. The exact similarity of every one of them to its most similar
held-out document comes from Python sets of word tuples and an inverted index, with nothing of the module measured.

`>= 0.8` counts documents whose exact similarity is at least 0.8, `recall` the share of those that were excluded (`lowest` of the
seeds), `predicted` what 1 - (1 - s^5)^20 says of the same documents, `false exclusions` the excluded documents below 0.8,
`other similarity` the excluded whose reported similarity is not the exact one. Counts are sums over the seeds. MB/s is UTF-8
text over CPU seconds of shingling and look-up in batches of 4,096. Takes about 2 minutes.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from measure import write_results

from lmsplit.partition.near_duplicates import NearDuplicateIndex, banding, write_index
from lmsplit.partition.shingles import shingle

THRESHOLD = 0.8
NUM_HELDOUT, MIN_WORDS, BATCH = 2_000, 50, 4_096
EDITED_FRACTIONS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.10, 0.15)
UNSPACED = "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
WORD = re.compile(f"[{UNSPACED}]|(?:[^\\W{UNSPACED}]|[\u0300-\u036f])+")
OTHERS = "none: other documents"


def grams(text: str) -> set[tuple[str, ...]]:
    """Return the set of word 5-grams."""
    words = WORD.findall(text.lower()) or [text.strip()]
    return {tuple(words[start : start + 5]) for start in range(max(len(words) - 4, 1))}


class ExactSearch:
    """Finds the most similar of some texts by counting shared 5-grams, without approximation."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.sizes: list[int] = []
        self.holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            found = grams(text)
            self.sizes.append(len(found))
            for gram in found:
                self.holders[gram].append(number)

    def highest(self, text: str) -> float:
        """Return the Jaccard similarity to the most similar text."""
        found = grams(text)
        shared = Counter(number for gram in found for number in self.holders.get(gram, ()))
        return max((count / (len(found) + self.sizes[number] - count) for number, count in shared.items()), default=0.0)


def edit(text: str, fraction: float, words: Sequence[str], draw: random.Random) -> str:
    """Edit a share of a text's words, at least one."""
    pieces = text.split()
    for position in sorted(draw.sample(range(len(pieces)), max(1, round(fraction * len(pieces)))), reverse=True):
        kind = draw.choice(["substitute", "delete", "insert", "swap"])
        if kind == "substitute":
            pieces[position] = draw.choice(words)
        elif kind == "delete":
            del pieces[position]
        elif kind == "insert":
            pieces.insert(position, draw.choice(words))
        else:
            pieces[position : position + 2] = reversed(pieces[position : position + 2])
    return " ".join(pieces)


def build(texts: Sequence[str], seed: int, directory: Path) -> tuple[NearDuplicateIndex, int]:
    """Index texts; return the index and its bytes on disk."""
    files = directory / f"documents{seed}", directory / f"bands{seed}"
    write_index([([str(number) for number in range(len(texts))], shingle(texts))], THRESHOLD, seed, *files)
    return NearDuplicateIndex(*files), sum(file.stat().st_size for file in files)


def look_up(index: NearDuplicateIndex, texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], float]:
    """Return the similarities found, and the CPU seconds."""
    started = time.process_time()
    found = [index.matches(shingle(texts[start : start + BATCH])) for start in range(0, len(texts), BATCH)]
    cpu_s = time.process_time() - started
    return np.concatenate([matches.similarity for matches in found]), cpu_s


def measure(texts: Sequence[str], seed: int, directory: Path) -> list[dict[str, Any]]:
    """Hold out, plant and look up with one seed."""
    draw = random.Random(seed)
    long = [number for number, text in enumerate(texts) if len(text.split()) >= MIN_WORDS]
    chosen = set(draw.sample(long, NUM_HELDOUT))
    heldout = [texts[number] for number in sorted(chosen)]
    words = " ".join(draw.sample(texts, 500)).split()
    index, index_bytes = build(heldout, seed, directory)
    exact = ExactSearch(heldout)
    num_bands, num_rows = banding(THRESHOLD)
    kinds = {f"{fraction:.0%}": [edit(text, fraction, words, draw) for text in heldout] for fraction in EDITED_FRACTIONS}
    kinds[OTHERS] = [text for number, text in enumerate(texts) if number not in chosen]
    rows = []
    for kind, looked_up in kinds.items():
        found, cpu_s = look_up(index, looked_up)
        truth = np.array([exact.highest(text) for text in looked_up])
        near, excluded = truth >= THRESHOLD, found > 0
        rows.append(
            {
                "seed": seed,
                "edited": kind,
                "documents": len(looked_up),
                "similarity": float(truth.mean()),
                "near": int(near.sum()),
                "excluded": int(excluded.sum()),
                "found": int((near & excluded).sum()),
                "predicted": float((1 - (1 - truth[near] ** num_rows) ** num_bands).sum()),
                "false": int((excluded & ~near).sum()),
                "other": int((np.abs(found - truth)[near & excluded] > 1e-6).sum()),
                "bytes": index_bytes / len(index),
                "text_bytes": sum(len(text.encode()) for text in looked_up),
                "cpu_s": cpu_s,
            }
        )
    return rows


def summarise(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum the rows of all seeds for one kind of document."""
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "edited"}
    return {
        "words edited": kind,
        "documents": total["documents"],
        "mean similarity": total["similarity"] / len(rows),
        ">= 0.8": total["near"],
        "excluded": total["excluded"],
        "recall": total["found"] / total["near"] if total["near"] else None,
        "lowest": min((row["found"] / row["near"] for row in rows if row["near"]), default=None),
        "predicted": total["predicted"] / total["near"] if total["near"] else None,
        "false exclusions": total["false"],
        "other similarity": total["other"],
        "index bytes per document": total["bytes"] / len(rows),
        "MB/s": total["text_bytes"] / total["cpu_s"] / 1e6,
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet", help="Parquet files with text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    texts = pl.read_parquet(arguments.corpus, columns=["text"])["text"].to_list()
    with tempfile.TemporaryDirectory() as directory:
        rows = [row for seed in arguments.seeds for row in measure(texts, seed, Path(directory))]
    kinds = dict.fromkeys(row["edited"] for row in rows)
    table = [summarise(kind, [row for row in rows if row["edited"] == kind]) for kind in kinds]
    write_results("near_duplicates", "Near-duplicates of held-out documents", __doc__ or "", table)
    sys.stdout.write(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
