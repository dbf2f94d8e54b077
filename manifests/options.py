"""Arguments and options that several commands share, and how a command prints JSON."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

ModelOption = Annotated[
    str | None, typer.Option("--model", help="directory of the encoder's model, where the manifest knows it by digest alone")
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="let the encoder's model run code of its own repository"),
]
ManifestArgument = Annotated[str, typer.Argument(metavar="M", help="a manifest's directory or URL, or <either>@<commit number>")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1 if sys.stdout.isatty() else None) + "\n")


def screen() -> Console:
    """Return standard output as a console; a file or a pipe has no width of its own and gets one that fits the tables."""
    return Console(width=None if sys.stdout.isatty() else 120)
