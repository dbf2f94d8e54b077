"""The commands `lmsplit train`, `status`, `trace`, `plan`, `evaluate` and `route`; `lmsplit.manifests.cli` registers them.

Importing this costs nothing heavy: torch and TRL are imported once a configuration has been read. Results go
to standard output, progress and logs to standard error.
"""

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lmsplit.manifests.configuration import load
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.options import ModelOption, TrustOption, print_json, screen
from lmsplit.manifests.reader import Domain
from lmsplit.manifests.store import local_path
from lmsplit.train.config import Training
from lmsplit.train.cross_loss import from_records, interference, specialization
from lmsplit.train.evaluate_cli import evaluate as evaluate
from lmsplit.train.layout import Matched
from lmsplit.train.libraries import engine, quiet_libraries
from lmsplit.train.plan_cli import plan as plan
from lmsplit.train.record import Loss, RunRecord
from lmsplit.train.router import Route, Router, Routing
from lmsplit.train.status import run_rows
from lmsplit.train.trace_cli import trace as trace


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="the training configuration")],
    seed_model: Annotated[bool, typer.Option("--seed-model", help="pretrain the seed on all domains")] = False,
    domain: Annotated[str | None, typer.Option(help="continue the seed on this domain, such as d00000")] = None,
    everything: Annotated[bool, typer.Option("--all", help="the seed where it is missing, then every expert")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="average the experts, as a baseline")] = False,
    dense: Annotated[
        Matched | None, typer.Option(help="continue the seed as one model, for the tokens of one expert or of all, as a baseline")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="a.b=c: override a key; may be repeated")] = None,
) -> None:
    """Pretrain the seed, continue it into one expert per domain, or make a baseline: their average, or one dense model."""
    if seed_model + (domain is not None) + everything + merge + (dense is not None) != 1:
        raise ConfigurationError("lmsplit train needs exactly one of --seed-model, --domain D, --all, --merge and --dense WHICH")
    kind = "dense" if dense else "merged" if merge else "expert"
    configuration = load(Training, config, overrides or [])
    experts, campaigns, processes = engine("experts"), engine("campaign"), engine("processes")
    quiet_libraries()
    with processes.main_first():
        campaign = campaigns.Campaign.open(configuration)
    domains: tuple[Domain, ...] = campaign.manifest.domains
    if everything:
        _train_all(domains, *experts.train_all(campaign))
        return
    if domain is not None:
        chosen = experts.find_domain(campaign, domain)
        seed = experts.seed_record(campaign)
        record = experts.train_expert(campaign, chosen, seed)
        domains = (chosen,)
    elif seed_model:
        record = seed = experts.train_seed(campaign)
    else:
        seed = experts.seed_record(campaign)
        record = experts.train_dense(campaign, dense, seed) if dense else engine("merge").merge_experts(campaign)
    if record is not None:  # another process than the main one has none
        _show(domains, seed, {} if seed_model else {each.domain: record for each in domains}, {}, kind)


def _train_all(domains: tuple[Domain, ...], seed: RunRecord, outcomes: list[Any]) -> None:
    failed = {outcome.domain.domain: outcome.error for outcome in outcomes if outcome.record is None}
    done = {outcome.domain.domain: outcome.record for outcome in outcomes if outcome.record is not None}
    _show(domains, seed, done, failed)
    if failed:
        raise typer.Exit(1)


def status(
    experts: Annotated[str, typer.Argument(metavar="EXPERTS", help="the output directory of lmsplit train")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")] = False,
) -> None:
    """Show how far every run is, from another terminal too."""
    rows = run_rows(local_path(experts))
    if as_json:
        print_json({"runs": rows})
        return
    table = Table(pad_edge=False)
    for name in ("run", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("steps", "loss", "tokens/s", "seconds left"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        steps = "" if row["steps"] is None else f"{row['step']:,} of {row['steps']:,}"
        numbers = [("loss", ".3f"), ("tokens_per_s", ",.0f"), ("remaining_s", ",.0f")]
        table.add_row(
            row["run"], row["state"], steps, *("" if row[key] is None else format(row[key], kind) for key, kind in numbers)
        )
    screen().print(table)


def route(
    experts: Annotated[str, typer.Argument(metavar="EXPERTS", help="the output directory of lmsplit train")],
    text: Annotated[list[str], typer.Option(help="a text to route; may be repeated")],
    num_experts: Annotated[int, typer.Option("--mix", help="how many experts answer together; their weights are shown")] = 1,
    min_margin: Annotated[
        float, typer.Option(help="the seed answers where the runner-up is nearer than this: in cost by placement, else in nats")
    ] = 0.0,
    by_likelihood: Annotated[
        bool, typer.Option("--by-likelihood", help="to the expert that finds the text least surprising; runs every expert")
    ] = False,
    by_placement: Annotated[
        bool, typer.Option("--by-placement", help="by the manifest's own rule, even where lmsplit evaluate fitted one to prompts")
    ] = False,
    model: ModelOption = None,
    trust_remote_code: TrustOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")] = False,
) -> None:
    """Name the experts of texts: by the rule that was fitted to prompts, the manifest's own, or the experts' likelihoods."""
    settings = Routing(num_experts=num_experts, min_margin=min_margin, by_placement=by_placement)
    if by_likelihood:
        if by_placement:
            raise ConfigurationError("--by-placement and --by-likelihood are two ways to route: choose one")
        if model is not None or trust_remote_code:
            raise ConfigurationError("--model and --trust-remote-code are the encoder's, which --by-likelihood does without")
        quiet_libraries()
        router = engine("likelihood_router").LikelihoodRouter.open(experts, settings=settings)
    else:
        router = Router.open(experts, model, trust_remote_code=trust_remote_code, settings=settings)
    routes = router.route(text)
    if as_json:
        print_json(routes[0].to_json() if len(routes) == 1 else {"routes": [each.to_json() for each in routes]})
    else:
        screen().print(_routes_table(text, routes))


def _show(
    domains: tuple[Domain, ...] | list[Domain],
    seed: RunRecord,
    experts: dict[str, RunRecord],
    failed: dict[str, str | None],
    kind: str = "expert",
) -> None:
    table = Table(title=f"held-out loss, nats per token; {seed.num_parameters:,} parameters", pad_edge=False)
    table.add_column("domain", no_wrap=True)
    for name in ("label", "keywords"):
        table.add_column(name)
    for name in ("documents", "tokens", "seed loss", f"{kind} loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for domain in domains:
        record = experts.get(domain.domain)
        table.add_row(
            domain.domain,
            Text(domain.label),
            Text(", ".join(domain.keywords[:4])),
            f"{domain.splits['train']:,}",
            _tokens(record, domain.domain),
            _number(seed.loss(domain.domain)),
            Text("failed", "red") if domain.domain in failed else _number(record.loss(domain.domain) if record else None),
        )
    console = screen()
    console.print(table)
    if kind == "expert" and (line := _summary(seed, experts)):
        console.print(line)
    for name, error in failed.items():
        console.print(f"{name} failed: {error}", markup=False, style="red")


def _summary(seed: RunRecord, experts: dict[str, RunRecord]) -> str | None:
    """Say what the experts are worth on their own domains and cost on each other's; None where there are none to compare."""
    losses = {domain: _losses(record) for domain, record in experts.items()}
    of_seed = _losses(seed)
    if len(losses) < 2 or not all(set(losses) <= set(each) for each in (of_seed, *losses.values())):
        return None
    table, _ = from_records(losses, of_seed)
    return f"specialization {specialization(table):.3f}, interference {interference(table):.3f} nats per token"


def _losses(record: RunRecord) -> dict[str, float]:
    found = {name: each.after.nats_per_token for name, each in record.losses.items()}
    return {name: loss for name, loss in found.items() if loss is not None}


def _tokens(record: RunRecord | None, domain: str) -> str:
    own = record.domains.get(domain) if record else None
    return f"{own.num_tokens:,}" if own else ""


def _number(loss: Loss | None) -> str:
    return "" if loss is None or loss.nats_per_token is None else f"{loss.nats_per_token:.3f}"


def _routes_table(texts: list[str], routes: list[Route]) -> Table:
    table = Table()
    for name in ("text", "domain", "label", "by", "margin", "runner-up", "model", "remark"):
        table.add_column(name, overflow="fold")
    for text, each in zip(texts, routes, strict=True):
        margin = "" if each.margin is None else f"{each.margin:.4f}"
        shown = Text(text if len(text) <= 60 else text[:59] + "…")
        model = each.expert
        if len(each.weights) > 1:
            model = ", ".join(f"{name} {weight:.0%}" for name, weight in sorted(each.weights.items(), key=lambda item: -item[1]))
        row = (shown, each.domain, Text(each.label or ""), each.routed_by, margin, each.runner_up, model, Text(each.reason or ""))
        table.add_row(*row)
    return table
