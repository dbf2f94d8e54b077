"""The commands that answer an auditor's questions: `explain`, `diff`, `report`, `export`; `cli` registers them.

Results go to standard output, progress and remarks to standard error. What each command alone needs is imported by it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.options import JsonOption, ManifestArgument, ModelOption, TrustOption, print_json, screen
from lmsplit.manifests.placement import Encoder
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import local_path


def explain(
    manifest: ManifestArgument,
    doc_id: Annotated[str | None, typer.Argument(metavar="DOC_ID", help="the id of a document, or of what was set aside")] = None,
    text: Annotated[str | None, typer.Option(help="instead of an id: a text, to be placed by the manifest's rule")] = None,
    recompute: Annotated[bool, typer.Option(help="place the document's text again, and compare")] = False,
    model: ModelOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say where a document is and why: domain, distance, runner-up, source, split, digests, history."""
    from lmsplit.manifests import explain as explaining

    if (doc_id is None) == (text is None):
        raise ConfigurationError('lmsplit explain needs a document\'s id, or --text "…"')
    opened = Manifest.open(manifest)
    needs_encoder = recompute or text is not None
    encoder = opened.encoder(model=model, trust_remote_code=trust_remote_code) if needs_encoder else None
    if text is not None:
        assert encoder is not None
        found = explaining.explain_text(opened, text, encoder)
    else:
        found = explaining.explain(opened, str(doc_id), encoder=encoder)
    _answer(found.to_json(), lambda width: explaining.render(found, width=width), as_json=as_json)
    if found.recomputed is not None and not found.recomputed.matches:
        raise typer.Exit(1)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="a manifest's directory or URL, or <either>@<commit number>")],
    b: Annotated[str, typer.Argument(metavar="B", help="another one, or another commit of it")],
    documents: Annotated[str | None, typer.Option(metavar="OUT.parquet", help="write every document that differs here")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two manifests: which documents moved, were added or removed, and why."""
    from lmsplit.manifests import diff as comparing
    from lmsplit.manifests.difference import render

    path = None if documents is None else local_path(documents)
    first, second = Manifest.open(a), Manifest.open(b)
    with _progress("compared") as progress:
        found = comparing.diff(first, second, documents=path, progress=progress)
    _answer(found.to_json(), lambda width: render(found, width=width), as_json=as_json)


def report(
    manifest: ManifestArgument,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE.html", help="the file to write")],
    diff: Annotated[str | None, typer.Option(metavar="B", help="show what changed between the manifest and this one")] = None,
    model: ModelOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write one HTML file that shows a manifest: domains, map, sources, borderline documents, provenance."""
    from lmsplit.manifests.diff import diff as compare
    from lmsplit.manifests.report import write_report

    path, opened = local_path(output), Manifest.open(manifest)
    difference = None
    if diff is not None:
        with _progress("compared") as progress:
            difference = compare(opened, Manifest.open(diff), progress=progress)
    encoder = _encoder_if_any(opened, model, trust_remote_code)
    num_bytes = write_report(opened, path, encoder=encoder, difference=difference)
    Console(stderr=True).print(f"{output}: {num_bytes / 1e6:.1f} MB", markup=False)


def _encoder_if_any(manifest: Manifest, model: str | None, trust: bool) -> Encoder | None:
    """The map does without the encoder where it cannot be had, and says so."""
    try:
        return manifest.encoder(model=model, trust_remote_code=trust)
    except ConfigurationError as error:
        Console(stderr=True).print(f"the map is drawn from recorded distances: {error}", markup=False)
        return None


def export(
    manifest: ManifestArgument,
    to: Annotated[
        Literal["slim", "croissant", "manifest"],
        typer.Option(help="slim: one Parquet file without texts; croissant: JSON-LD; manifest: some domains as a manifest"),
    ],
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="the file or directory to make")],
    domain: Annotated[list[str] | None, typer.Option(help="only this domain; may be repeated")] = None,
) -> None:
    """Hand a manifest over in another form: without texts, as metadata, or some of its domains."""
    from lmsplit.manifests import croissant, export_slim, handover

    path, opened, domains = local_path(output), Manifest.open(manifest), domain or []
    if to == "croissant" and domains:
        raise ConfigurationError("--to croissant describes the whole manifest: leave out --domain, or export a manifest first")
    if to == "manifest" and not domains:
        raise ConfigurationError("--to manifest hands some domains over: name them with --domain, once for each")
    if to == "croissant":
        croissant.export_croissant(opened, path)
    elif to == "slim":
        total = sum(each.documents for each in opened.domains if not domains or each.domain in domains)
        with _progress("documents") as progress:
            export_slim.export_slim(opened, path, domains, progress=_summing(progress, total))
    else:
        total = sum(entry.bytes for name in domains for entry in opened.data_files(name))
        with _progress("bytes") as progress:
            handover.export_manifest(opened, path, domains, progress=_summing(progress, total))
    Console(stderr=True).print(f"{output}: written", markup=False)


def _summing(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """Return a function that is told how much was done since its last call."""
    done = 0

    def add(more: int) -> None:
        """Add what was done since the last call, and show the sum."""
        nonlocal done
        done += more
        progress(done, total)

    return add


def _answer(found: dict[str, Any], view: Callable[[int], RenderableType], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    console = screen()
    console.print(view(console.width))


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal; nothing elsewhere, as these commands take seconds."""
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task, lock = progress.add_task(what, total=None), threading.Lock()

        def update(done: int, total: int) -> None:
            """Show that so much of the whole is done; from any thread."""
            with lock:
                progress.update(task, completed=done, total=total)

        yield update
