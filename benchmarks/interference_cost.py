"""What does holding an expert to the seed cost in time?

The same expert of the 1m preset is trained in each way in turn, for the same number of tokens, of which `fraction` are from other
domains: the pass of the seed, its cache and the search for noise are included; the seed is trained and all is packed before.
`over plain`: median over the rounds of seconds ÷ those of `plain` in the same round. Asked for: at most (1 + fraction) · 1.1.

Takes 20 minutes on 2 cores, which nothing else may use.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

from measure import write_results
from vectors import CORPUS, manifest

from lmsplit.manifests.configuration import load
from lmsplit.train import experts
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import Training

WAYS: Final[dict[str, dict[str, Any] | None]] = {
    "plain": None,
    "replay": {"kind": "replay"},
    "hinge by token": {"kind": "hinge"},
    "hinge by document": {"kind": "hinge", "level": "document"},
    "kl": {"kind": "kl"},
}
FRACTION: Final = 0.03


def seconds(output: Path, way: dict[str, Any] | None, tokens: int, bf16: bool) -> float:
    """Train one expert and return how long that took."""
    expert = {"tokens": tokens, "interference": None if way is None else way | {"fraction": FRACTION}}
    values = {
        "manifest": str(output / "manifest"),
        "output": str(output / f"cost-{bf16}"),
        "model": "1m",
        "seed_model": {"tokens": 300_000},
        "expert": expert,
        "evaluation": {"documents": 1},
        "sft": {"bf16": bf16, "save_strategy": "no"},
    }
    path = output / "cost.yaml"
    path.write_text(json.dumps(values))
    campaign = Campaign.open(load(Training, path, ()))
    seed = experts.train_seed(campaign)
    assert seed is not None
    for domain in campaign.manifest.domains:  # packed before: all ways but plain need every domain's rows
        campaign.packed(domain, None)
    for name in ("experts", "references"):
        shutil.rmtree(campaign.output / name, ignore_errors=True)
    began = time.monotonic()
    experts.train_expert(campaign, campaign.manifest.domains[0], seed)
    return time.monotonic() - began


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / ".cache" / "interference")
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    manifest(options.output, options.corpus, 12)
    rows = []
    for bf16 in (False, True):
        found: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(options.rounds):
            for name, way in WAYS.items():
                found[name].append(seconds(options.output, way, options.tokens, bf16))
                sys.stderr.write(f"{bf16} {name} {found[name][-1]:.1f} s\n")
        for name, times in found.items():
            ratios = [time / plain for time, plain in zip(times, found["plain"], strict=True)]
            row = {"precision": "bf16" if bf16 else "fp32", "expert": name, "seconds": statistics.median(times)}
            rows.append(row | {"over plain": statistics.median(ratios), "asked": (1 + FRACTION) * 1.1})
    write_results("interference_cost", "The cost of holding experts to the seed", __doc__ or "", rows)


if __name__ == "__main__":
    main()
