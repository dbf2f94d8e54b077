"""What every benchmark says beside its figures: date, commit, command, hardware; and how it writes them."""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_DESCRIBE = ["git", "describe", "--always", "--dirty"]
COMMIT = subprocess.run(_DESCRIBE, capture_output=True, text=True, check=False).stdout.strip()
"""Asked for when a benchmark starts: the tree may move on while it runs."""


def circumstances() -> dict[str, Any]:
    """Return date, commit, command, processor and library versions of this run."""
    from importlib.metadata import version

    libraries = (
        "lmsplit",
        "numpy",
        "pyarrow",
        "faiss-cpu",
        "scikit-learn",
        "torch",
        "sentence-transformers",
        "transformers",
        "trl",
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": COMMIT,
        "command": " ".join(["python", *sys.argv]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "software": {name: version(name) for name in libraries},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_results(name: str, title: str, explanation: str, rows: list[dict[str, Any]]) -> None:
    """Write `results/<name>.json` and a Markdown table of the same rows beside it.

    Args:
        name: of the files.
        title: heading of the Markdown.
        explanation: what was done, and what the columns mean.
        rows: one dictionary a row, all with the same keys.
    """
    RESULTS.mkdir(exist_ok=True)
    facts = circumstances()
    (RESULTS / f"{name}.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    keys = list(rows[0])
    lines = [f"# {title}", "", explanation, "", "| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(_cell(row[key]) for key in keys) + " |" for row in rows]
    software = ", ".join(f"{key} {value}" for key, value in facts["software"].items())
    lines += ["", f"{facts['date']}, commit {facts['commit']}, {facts['cores']} cores of {facts['processor']}; {software}."]
    lines += [f"`{facts['command']}`", ""]
    (RESULTS / f"{name}.md").write_text("\n".join(lines))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
