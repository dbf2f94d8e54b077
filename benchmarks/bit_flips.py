"""Is every single-bit flip caught? Random bits of a real manifest's files, flipped one at a time; `verify --deep` after each.

The file is drawn at random among all that belong to the manifest (commit and card included), then the bit; so small files, such
as the commit, are met as often as large ones. The placement of a sample is not computed again (`--sample 0`), so that only what
was written is judged. `caught` counts flips after which `verify` finds something, `named` those where a finding names the file,
by kind of file. About 12 minutes for 10,000 flips.
"""

import argparse
import json
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
from measure import write_results

from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition


def make(corpus: str, directory: Path) -> Path:
    """Publish a manifest of 1,000 texts with something in every folder; return where."""
    texts = directory / "corpus"
    texts.mkdir()
    rows = pl.read_parquet(corpus, columns=["id", "text", "source"]).sample(1000, seed=0).to_dicts()
    near = [{**row, "id": f"copy of {row['id']}", "text": row["text"] + " Indeed."} for row in rows]
    lines = [json.dumps(row) for row in [*rows, *near]]
    (texts / "texts.jsonl").write_text("\n".join([*lines, "this is no JSON"]) + "\n")
    settings = {
        "input": {"paths": str(texts)},
        "output": str(directory / "manifest"),
        "domains": 4,
        "encoder": "lexical",
        "max_bad_fraction": 0.1,
        "keep_embeddings": True,
        "executor": {"workers": 1},
    }
    partition(Partition.model_validate(settings))
    return directory / "manifest"


def main() -> None:
    """Flip and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet")
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp())
    root = make(options.corpus, directory)
    shutil.rmtree(root / "_work", ignore_errors=True)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    generator = random.Random(options.seed)  # which bits is no secret
    flips, caught, named = Counter[str](), Counter[str](), Counter[str]()
    assert not verify_manifest(root, deep=True, sample=0)
    for _ in range(options.flips):
        path = generator.choice(files)
        name = path.relative_to(root).as_posix()
        kind = name.split("/")[0]
        data = bytearray(path.read_bytes())
        bit = generator.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        sound = path.read_bytes()
        path.write_bytes(data)
        findings = verify_manifest(root, deep=True, sample=0)
        path.write_bytes(sound)
        flips[kind] += 1
        caught[kind] += bool(findings)
        named[kind] += any(name in finding.where for finding in findings)
        if not findings:
            print(f"missed: {name} bit {bit}")
    assert not verify_manifest(root, deep=True, sample=0)
    rows = [{"files": kind, "flips": flips[kind], "caught": caught[kind], "named": named[kind]} for kind in sorted(flips)]
    rows.append({"files": "all", "flips": flips.total(), "caught": caught.total(), "named": named.total()})
    write_results("bit_flips", "Single-bit flips", f"Seed {options.seed}. " + (__doc__ or ""), rows)


if __name__ == "__main__":
    main()
