"""How much faster are two workers than one, on this machine's processes, on Slurm and on Ray?

`lmsplit partition` on the same corpora with 1 and 2 workers, in turn, as often as `--rounds` says. `seconds`: the whole command,
interpreter and imports included. `work s`: the stages that have a task for each unit of input, as the
command reports them, added up; the others (the fit and what gathers) have one task whatever the workers.
`ratio` columns: 1 worker's over 2 workers'. Medians over the rounds. The published commit must be the same in all.

`ceiling`: what the machine has to give, for two cores may share caches, memory and clock: twice the work s of a run with
1 worker, over those of two such runs side by side, on outputs of their own.

- `lexical`: all documents. `minilm`: `--documents` of them, in twelve files of equal numbers.
- `slurm`: Debian's, one node; each stage is an array of jobs, which the scheduler looks at every few seconds. `ray`: started by
  the command on this machine. Both run on the 2 cores that `local` has.

Takes 40 minutes on 2 cores, which nothing else may use.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import polars as pl
from crash_trials import LMSPLIT, RAY, SLURM, slurm
from measure import write_results
from vectors import CORPUS

from lmsplit.manifests.reader import Manifest

EXECUTORS: Final[dict[str, dict[str, Any]]] = {"local": {}, "slurm": SLURM, "ray": RAY}
NUM_FILES: Final = 12


def run(inputs: str, directory: Path, encoder: str, executor: str, workers: int) -> dict[str, Any]:
    """Partition once.

    Returns:
        Seconds of the whole, seconds of each stage, and the commit's digest.

    Raises:
        RuntimeError: the command fails.
    """
    output = directory / f"{encoder}-{executor}-{workers}-{time.monotonic_ns()}"
    config = output.with_suffix(".yaml")
    values = {"input": inputs, "output": str(output), "domains": 12, "encoder": encoder}
    config.write_text(json.dumps(values | {"executor": EXECUTORS[executor] | {"workers": workers}}))
    started = time.monotonic()
    done = subprocess.run([LMSPLIT, "partition", str(config), "--json"], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(done.stderr)
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    stages = [event for event in events if event["event"] == "stage_done" and event["tasks"] > 1]
    return {
        "seconds": seconds,
        "work": sum(event["elapsed_s"] for event in stages),
        "stages": {event["stage"]: event["elapsed_s"] for event in stages},
        "commit": Manifest.open(str(output)).digest,
    }


def subset(corpus: str, directory: Path, num_documents: int) -> str:
    """Write a part of the corpora as twelve files; return their pattern."""
    documents = pl.read_parquet(corpus, columns=["id", "text", "source"]).sample(num_documents, seed=0)
    directory.mkdir()
    for index in range(NUM_FILES):
        documents[index::NUM_FILES].write_parquet(directory / f"{index:02}.parquet", row_group_size=100)
    return f"{directory}/*.parquet"


def ceiling(inputs: str, directory: Path, encoder: str, alone: float) -> float:
    """Return the ratio that two runs side by side reach on this machine.

    Args:
        inputs: the input's pattern.
        directory: for the outputs.
        encoder: the encoder.
        alone: work seconds of a run with one worker.
    """
    with ThreadPoolExecutor(2) as pool:
        pair = list(pool.map(lambda _: run(inputs, directory, encoder, "local", 1), range(2)))
    return 2 * alone / statistics.mean(one["work"] for one in pair)


def row(encoder: str, executor: str, runs: dict[int, list[dict[str, Any]]], most: float | None) -> dict[str, Any]:
    """Return a row of the table."""
    median = {
        key: {workers: statistics.median(one[key] for one in found) for workers, found in runs.items()}
        for key in ("seconds", "work")
    }
    assert len({one["commit"] for found in runs.values() for one in found}) == 1, "the commits differ"
    return {
        "encoder": encoder,
        "executor": executor,
        "seconds, 1 worker": median["seconds"][1],
        "2 workers": median["seconds"][2],
        "ratio": median["seconds"][1] / median["seconds"][2],
        "work s, 1 worker": median["work"][1],
        "work s, 2 workers": median["work"][2],
        "ratio of work": median["work"][1] / median["work"][2],
        "ceiling": most,
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS, help="Parquet files with text")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--documents", type=int, default=2000)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp())
    inputs = {
        "lexical": str(Path(options.corpus).resolve()),
        "minilm": subset(options.corpus, directory / "subset", options.documents),
    }
    rows = []
    with slurm():
        for encoder, paths in inputs.items():
            for executor in EXECUTORS:
                runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
                for _ in range(options.rounds):
                    for workers, found in runs.items():
                        found.append(run(paths, directory, encoder, executor, workers))
                        sys.stderr.write(f"{encoder} {executor} {workers} {found[-1]}\n")
                alone = statistics.median(one["work"] for one in runs[1])
                most = ceiling(paths, directory, encoder, alone) if executor == "local" else None
                rows.append(row(encoder, executor, runs, most))
    write_results("scaling", "One worker and two", __doc__ or "", rows)


if __name__ == "__main__":
    main()
