"""The quickstart: from the documentation inside the installed packages to domains, experts and routed prompts.

```
docstrings (or CORPUS) ─► lmsplit partition ─► lmsplit verify --deep ─► lmsplit train --all ─► lmsplit route
```

It runs the same commands that a user would, and prints each. `make quickstart` calls it; `python quickstart.py --help` says more.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("networkx", "numpy", "pandas", "polars", "scipy", "sklearn", "sympy", "torch")
MIN_CHARACTERS = 300
DOCUMENTS_PER_PACKAGE = 1_000
LMSPLIT = str(Path(sys.executable).parent / "lmsplit")

PARTITION = """\
input: {{paths: {corpus}, group: {group}}}
output: {output}/manifest
domains: {domains}
encoder: minilm
"""
TRAIN = """\
manifest: {output}/manifest
output: {output}/experts
model: 1m
seed_model: {{tokens: {seed_tokens}}}
expert: {{tokens: {expert_tokens}}}
"""
PROMPTS = (
    "Compute the shortest path between two nodes of a weighted graph",
    "Join two dataframes on a column and filter the rows of the resulting dataframe",
)


def docstrings(package: str, limit: int) -> Iterator[dict[str, str]]:
    """Yield the long docstrings of an installed package as documents, without importing it.

    Args:
        package: name of a package in this environment's site-packages; an absent one yields nothing.
        limit: how many at most.

    Yields:
        Records with id, text, source (the package) and group (the file, so that no file is torn between splits).
    """
    root = Path(sysconfig.get_paths()["purelib"])
    left = limit
    for path in sorted((root / package).rglob("*.py")):
        if "tests" in path.parts or left <= 0:
            continue
        name = path.relative_to(root).as_posix()
        for qualified, text in _long_docstrings(ast.parse(path.read_text(encoding="utf-8"))):
            if left > 0:
                left -= 1
                yield {"id": f"{name}:{qualified}", "text": text, "source": package, "group": name}


def _long_docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            text = ast.get_docstring(node)
            if text and len(text) >= MIN_CHARACTERS:
                yield f"{getattr(node, 'name', 'module')}@{getattr(node, 'lineno', 0)}", text


def write_corpus(directory: Path, packages: tuple[str, ...], limit: int) -> int:
    """Write one JSONL file of docstrings a package; return how many documents there are."""
    directory.mkdir(parents=True, exist_ok=True)
    count = 0
    for package in packages:
        with (directory / f"{package}.jsonl").open("w", encoding="utf-8") as stream:
            for record in docstrings(package, limit):
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    return count


def run(*arguments: str) -> str:
    """Run an lmsplit command as a user would, show it, and return what it printed; stop when it fails."""
    sys.stderr.write(f"\n$ lmsplit {' '.join(arguments)}\n")
    done = subprocess.run([LMSPLIT, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout)
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    """Run the quickstart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="your own text: Parquet or JSONL with a text column (file, glob or directory)")
    parser.add_argument("--output", help="directory for all that is made [quickstart-output, and one a corpus below it]")
    parser.add_argument("--domains", type=int, default=6)
    parser.add_argument("--seed-tokens", type=int, default=800_000)
    parser.add_argument("--expert-tokens", type=int, default=100_000)
    arguments = parser.parse_args()
    started = time.monotonic()
    output = Path(arguments.output or Path("quickstart-output", _folder(arguments.corpus, arguments.domains)))
    corpus = arguments.corpus or str(output / "corpus")
    if not arguments.corpus:
        count = write_corpus(output / "corpus", PACKAGES, DOCUMENTS_PER_PACKAGE)
        sys.stderr.write(f"gathered {count:,} docstrings of {', '.join(PACKAGES)}\n")
    group = "null" if arguments.corpus else "group"
    values = vars(arguments) | {"corpus": json.dumps(corpus), "output": output, "group": group}
    (output / "partition.yaml").parent.mkdir(parents=True, exist_ok=True)
    (output / "partition.yaml").write_text(PARTITION.format(**values))
    (output / "train.yaml").write_text(TRAIN.format(**values))
    sys.stderr.write(run("partition", str(output / "partition.yaml")))
    sys.stderr.write(run("verify", str(output / "manifest"), "--deep"))
    run("train", str(output / "train.yaml"), "--all")
    for prompt in PROMPTS:
        routed = json.loads(run("route", str(output / "experts"), "--text", prompt, "--json"))
        why = f"; {routed['reason']}" if routed["fallback"] else ""
        sys.stderr.write(f"{prompt!r} -> {routed['expert']} ({routed['label']}){why}\n")
    _print_table(output, time.monotonic() - started)


def _folder(corpus: str | None, domains: int) -> str:
    """Name a folder for a corpus and a number of domains: a manifest is written once, so another corpus needs another one."""
    name = re.sub(r"[^0-9A-Za-z]+", "-", corpus or "docstrings").strip("-")
    return f"{name}-{domains}"


def _print_table(output: Path, elapsed_s: float) -> None:
    shown = json.loads(run("show", str(output / "manifest"), "--json"))
    table = Table(title=f"seed and experts on their domains' held-out text ({elapsed_s:.0f} s)", title_justify="left", box=None)
    for name in ("domain", "label", "keywords", "documents", "tokens", "seed loss", "expert loss"):
        table.add_column(name, justify="left" if name in {"domain", "label", "keywords"} else "right")
    worse = []
    for domain in shown["domains"]:
        losses = expert_losses(output / "experts", domain["domain"])
        seed, expert = losses["seed"], losses["expert"]
        if None not in (seed, expert) and expert >= seed:
            worse.append(domain["domain"])
        shown_losses = ("none held out" if loss is None else f"{loss:.3f}" for loss in (seed, expert))
        cells = (f"{domain['documents']:,}", f"{losses['tokens']:,}", *shown_losses)
        table.add_row(domain["domain"], domain["label"], ", ".join(domain["keywords"][3:6]), *cells)
    Console(width=max(Console().width, 120)).print(table)
    if worse:
        sys.exit(f"these experts are no better than the seed on their own held-out text: {', '.join(worse)}")


def expert_losses(experts: Path, domain: str) -> dict[str, Any]:
    """Read a domain's training tokens, and the seed's and the expert's held-out loss (nats per token), from the run record."""
    record = json.loads((experts / "experts" / domain / "run.json").read_text())
    losses = record["losses"][domain]
    return {
        "tokens": record["domains"][domain]["num_tokens"],
        "seed": losses["before"]["nats_per_token"],
        "expert": losses["after"]["nats_per_token"],
    }


if __name__ == "__main__":
    main()
