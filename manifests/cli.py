"""The `lmsplit` command: its own subcommands, and lazy imports of those of the other two packages.

Asking for a command whose package is not installed says which extra to install. Exit codes: 0 done, 1 a check failed,
2 bad usage or configuration, 3 bad input past its limit, 4 conflict with another writer.
"""

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from lmsplit.manifests import audit_cli
from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.manifests.findings import Finding
from lmsplit.manifests.options import JsonOption, ManifestArgument, ModelOption, TrustOption, print_json
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.show import render, summary
from lmsplit.manifests.verify import verify_manifest

_ELSEWHERE: Final = {
    "partition": ("partition", "Cluster a corpus into domains and publish the manifest."),
    "publish": ("partition", "Publish a run whose stages are all done."),
    "status": ("partition", "Show how far a run is, of partitioning or of training."),
    "gc": ("partition", "Remove the work files of published runs."),
    "train": ("train", "Pretrain the seed, or continue it into one expert per domain."),
    "trace": ("train", "Trace a run: steps, documents, checkpoints, and an audit of all it has seen."),
    "plan": ("train", "Recommend model size and tokens for a budget, from small runs."),
    "evaluate": ("train", "Compare the routed experts with every other way to answer."),
    "route": ("train", "Place a text and name its expert."),
}
"""Commands of the other packages: name → (package and extra, one-line help)."""


def _options(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log details to standard error")] = False) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )


def show(
    manifest: ManifestArgument,
    domain: Annotated[str | None, typer.Option(help="only this domain, with the documents nearest its centroid")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a manifest holds: domains, sizes, splits, what was set aside."""
    opened = Manifest.open(manifest)
    if as_json:
        print_json(summary(opened, domain))
    else:
        console = Console()
        console.print(render(opened, domain, width=console.width))


def verify(
    manifest: ManifestArgument,
    deep: Annotated[bool, typer.Option(help="read every file: digests, ids, splits, leaks, a sample placed again")] = False,
    sample: Annotated[int, typer.Option(min=0, help="documents whose text --deep checks and places again")] = 1000,
    texts: Annotated[bool, typer.Option(help="with --deep: check every document's text")] = False,
    model: ModelOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a manifest against its commit; exit 1 when anything is wrong."""
    if texts and not deep:
        raise ConfigurationError("--texts goes with --deep: lmsplit verify M --deep --texts")
    findings = verify_manifest(manifest, deep=deep, sample=sample, texts=texts, model=model, trust_remote_code=trust_remote_code)
    if as_json:
        print_json({"ok": not findings, "findings": [finding._asdict() for finding in findings]})
    else:
        _print_findings(manifest, findings, deep)
    if findings:
        raise typer.Exit(1)


def _print_findings(manifest: str, findings: list[Finding], deep: bool) -> None:
    console = Console()
    if not findings:
        extent = "every file read" if deep else "files and footers; --deep reads every byte"
        console.print(f"{manifest}: ok ({extent})", markup=False)
    for finding in findings:
        console.print(f"[red]{finding.code}[/red]", end=" ")
        console.print(f"{finding.where}: expected {finding.expected}, found {finding.found}. {finding.remedy}", markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the entry point of `lmsplit`.

    Args:
        arguments: instead of the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    wanted = next((argument for argument in given if not argument.startswith("-")), None)
    try:
        _application(wanted, wanted == "status" and _is_training(given))(given, prog_name="lmsplit")
    except LmsplitError as error:
        sys.stderr.write(f"lmsplit: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a missing permission: the user's to mend, not ours to trace
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"lmsplit: {where}{error.strerror or error}. Mend it and run the same command again\n")
        sys.exit(1)


def _is_training(given: Sequence[str]) -> bool:
    """Whether an argument is a directory that `lmsplit train` wrote: its runs have a status of their own."""
    return any((Path(argument) / "config.yaml").is_file() and (Path(argument) / "placement").is_dir() for argument in given)


def _application(wanted: str | None, training: bool) -> typer.Typer:
    """Build the commands; of the other packages', only the wanted one is imported."""
    app = typer.Typer(
        help="Split a corpus into semantic domains, audit the result, and train one expert per domain.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_options)
    for command in (show, verify, audit_cli.explain, audit_cli.diff, audit_cli.report, audit_cli.export):
        app.command()(command)
    for name, (package, help_line) in _ELSEWHERE.items():
        package = "train" if name == "status" and training else package
        app.command(name, help=help_line)(_imported(package, name) if name == wanted else _not_imported)
    return app


def _not_imported() -> None:
    """Stand for a command of another package in the list of commands; never run."""


def _imported(package: str, name: str) -> Callable[..., None]:
    try:
        module = importlib.import_module(f"lmsplit.{package}.cli")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("lmsplit."):
            raise
        raise ConfigurationError(
            f"lmsplit {name} needs {error.name}, which is not installed: pip install 'lmsplit[{package}]'"
        ) from error
    command: Callable[..., None] = getattr(module, name)
    return command


if __name__ == "__main__":
    main()
