"""Packing documents into rows: this package and TRL, beside the tokenizer alone, on the same documents in one run.

The documents of the corpora become a manifest of one domain; a byte-level BPE tokenizer is trained on it. In every round, one
after the other, in an order that turns by one each round: `encode_batch` is the tokenizer alone, on all cores, over the texts
already in memory, a million characters at a time, and `encode_batch_fast` the same without the tokens' places in the text;
`lmsplit` is `pack_split` with each strategy, from the manifest to the published directory; `TRL` is what `SFTTrainer` does to a
data set before it trains (`_prepare_dataset` with `packing`, 2 processes, from a data set that is already mapped from the disk),
with each strategy. Medians over the rounds.

- `tokens/s`: tokens in, over the seconds. `ratio`: to `encode_batch`.
- `tokens in`: of the documents, begin and end tokens included. `kept`: in the rows. `dropped`: in none.
- `filled`: share of the rows' positions that hold a token. `cut`: documents that are not in one piece (bfd: that lost their end).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
from measure import write_results
from trl import SFTConfig, SFTTrainer

from lmsplit.manifests.reader import Manifest
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from lmsplit.train.pack import Packing, pack_split
from lmsplit.train.token_files import batches
from lmsplit.train.tokenizer import TRAINING_BYTES_PER_TOKEN, DocumentEncoder, train_tokenizer, training_texts

DOMAIN = "d00000"
BATCH_CHARACTERS = 1 << 20

Outcome = dict[str, Any]


class Contest:
    """The documents of a manifest, a tokenizer, and everything that packs them."""

    def __init__(self, manifest: Manifest, vocabulary: int, max_length: int) -> None:
        self.manifest = manifest
        self.max_length = max_length
        texts = training_texts(manifest, vocabulary * TRAINING_BYTES_PER_TOKEN)
        self.encoder = DocumentEncoder(train_tokenizer(texts, vocabulary))
        columns = manifest.documents(domain=DOMAIN, split="train", columns=["doc_id", "text"])
        self.documents = [(row["doc_id"], row["text"]) for batch in columns for row in batch.to_pylist()]
        encoded = self.encoder.encode([text for _, text in self.documents])
        self.lengths = np.array([len(ids) + 2 for ids in encoded])

    def contenders(self) -> dict[str, Callable[[Path], Outcome]]:
        """Return what runs, by name; each is given an empty directory."""
        ours = {f"lmsplit {name}": lambda path, name=name: self.pack(path, name) for name in ("wrapped", "bfd_split")}
        theirs = {f"TRL {name}": lambda path, name=name: self.prepare(path, name) for name in ("wrapped", "bfd_split", "bfd")}
        alone = {name: lambda _path, name=name: self.tokenize(name) for name in ("encode_batch", "encode_batch_fast")}
        return {**alone, **ours, **theirs}

    def tokenize(self, method: str) -> Outcome:
        """Encode the texts by a method of the tokenizer."""
        encode = getattr(self.encoder.tokenizer.backend_tokenizer, method)
        texts = [[text for _, text in batch] for batch in batches(self.documents, BATCH_CHARACTERS)]
        since = time.perf_counter()
        for batch in texts:
            encode(batch)
        return {"seconds": time.perf_counter() - since}

    def pack(self, directory: Path, strategy: Any) -> Outcome:
        """Pack with this package."""
        since = time.perf_counter()
        packed = pack_split(self.manifest, self.encoder, Packing(self.max_length, strategy), DOMAIN, "train", directory)
        seconds = time.perf_counter() - since
        pieces = np.unique(packed.spans()["doc_id"].to_numpy(), return_counts=True)[1]
        facts = {"kept": packed.num_tokens, "rows": packed.num_rows, "cut": int(np.sum(pieces > 1))}
        return {"seconds": seconds, **facts}

    def prepare(self, directory: Path, strategy: str) -> Outcome:
        """Pack as SFTTrainer does when it is made."""
        pl.DataFrame({"text": [text for _, text in self.documents]}).write_parquet(directory / "texts.parquet")
        given = datasets.Dataset.from_parquet(str(directory / "texts.parquet"), cache_dir=str(directory / "cache"))
        config = SFTConfig(
            output_dir=str(directory / "run"),
            max_length=self.max_length,
            packing=True,
            packing_strategy=strategy,
            dataset_num_proc=2,
            use_cpu=True,
            bf16=False,
            report_to="none",
        )
        trainer = object.__new__(SFTTrainer)  # its constructor wants a model, of which preparing needs nothing
        trainer.chat_template, trainer.completion_only_loss, trainer._tokenizer = None, False, self.encoder.tokenizer
        since = time.perf_counter()
        with redirect_stderr(StringIO()):
            rows = trainer._prepare_dataset(given, self.encoder.tokenizer, config, True, None, "train")
        seconds = time.perf_counter() - since
        kept = sum(map(len, rows.with_format("numpy")["input_ids"][:]))
        long = None if strategy == "wrapped" else int(np.sum(self.lengths > self.max_length))
        return {"seconds": seconds, "kept": kept, "rows": len(rows), "cut": long}

    def row(self, name: str, outcomes: list[Outcome], tokenizer_s: float) -> dict[str, Any]:
        """Make a row of the table from the rounds of one contender."""
        seconds = statistics.median(outcome["seconds"] for outcome in outcomes)
        tokens, last = int(self.lengths.sum()), outcomes[-1]
        kept, rows = last.get("kept"), last.get("rows")
        return {
            "vocabulary": len(self.encoder.tokenizer),
            "contender": name,
            "documents": len(self.documents),
            "seconds": seconds,
            "tokens/s": tokens / seconds,
            "ratio": tokenizer_s / seconds,
            "tokens in": tokens,
            "kept": kept,
            "dropped": None if kept is None else tokens - kept,
            "rows": rows,
            "filled": None if kept is None else kept / (rows * self.max_length),
            "cut": last.get("cut"),
        }


def compete(contest: Contest, rounds: int) -> list[dict[str, Any]]:
    """Run every contender once a round, and return their rows."""
    contenders = contest.contenders()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    names = [*contenders]
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with tempfile.TemporaryDirectory() as directory:
                outcomes[name].append(contenders[name](Path(directory)))
            sys.stderr.write(f"{turn} {name} {outcomes[name][-1]}\n")
    tokenizer_s = statistics.median(outcome["seconds"] for outcome in outcomes["encode_batch"])
    return [contest.row(name, found, tokenizer_s) for name, found in outcomes.items()]


def make_manifest(corpus: str, num_documents: int, directory: Path) -> Manifest:
    """Publish documents of a corpus, chosen at random, as a manifest of one domain."""
    documents = pl.read_parquet(corpus, columns=["id", "text", "source"])
    chosen = documents.sample(min(num_documents, len(documents)), shuffle=True, seed=0)
    (directory / "corpus").mkdir()
    chosen.write_parquet(directory / "corpus" / "documents.parquet")
    options = {"input": str(directory / "corpus"), "output": str(directory / "manifest"), "domains": 1, "encoder": "lexical"}
    partition(Partition.model_validate(options))
    return Manifest.open(directory / "manifest")


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet", help="Parquet files with text, id and source")
    parser.add_argument("--documents", type=int, default=1_000_000, help="at most so many, chosen at random")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[4096, 32_768])
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        manifest = make_manifest(arguments.corpus, arguments.documents, Path(directory))
        for vocabulary in arguments.vocabularies:
            rows += compete(Contest(manifest, vocabulary, arguments.max_length), arguments.rounds)
    write_results("packing", "Packing", __doc__ or "", rows)
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
