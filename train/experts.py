"""The seed, one expert per domain, and the dense baselines: what `lmsplit train` runs.

What is done under the same configuration is skipped, what was cut off goes on. `train_all` trains the seed where it is
missing, then the experts, the longest first, one after the other in this process or several at a time in processes of their
own (see `workers`), on a cluster as its jobs; one that fails does not stop the others, and is named at the end.

An expert starts from the seed's weights, with a fresh optimizer or the seed's, and a learning-rate schedule of its own.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmsplit.manifests.errors import ConfigurationError, LmsplitError, ManifestError
from lmsplit.manifests.layout import domain_index
from lmsplit.manifests.reader import Domain
from lmsplit.train.campaign import Campaign, Run
from lmsplit.train.heldout import HeldOut
from lmsplit.train.layout import Matched
from lmsplit.train.models import attention_kind, build_model, has_given_weights, load_model
from lmsplit.train.off_domain import shares_of_others
from lmsplit.train.phase import Start, finished_record, run_phase
from lmsplit.train.processes import is_launched, is_main, main_first, num_processes
from lmsplit.train.record import Loss, RunRecord, read_record
from lmsplit.train.shares import Share
from lmsplit.train.workers import Workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one expert."""

    domain: Domain
    record: RunRecord | None
    """None where it failed."""
    error: str | None
    """Why it failed; None where it did not."""


def train_seed(campaign: Campaign) -> RunRecord | None:
    """Train the seed on the mixture of all domains, or return its record where that was done before.

    Returns:
        The record; None in every process but the main one.

    Raises:
        LmsplitError: see `phase.run_phase` and `phase.finished_record`.
    """
    run = campaign.seed_run()
    if (record := finished_record(run)) is not None:
        logger.info("%s is done already", run.directory)
        return record if is_main() else None
    with main_first():
        shares = _mixture(campaign, run)
    if _needs_launcher(campaign):
        Workers(campaign).train(["--seed-model"], run.name)
        return read_record(run.directory)
    configuration = campaign.configuration
    losses = None
    if has_given_weights(configuration.model):
        given = build_model(configuration.model, campaign.encoder.tokenizer, configuration.seed)
        losses = {name: Loss.of(loss) for name, loss in HeldOut.of(campaign).measure(given).items()}
    attention = attention_kind(configuration.attention)
    model = build_model(configuration.model, campaign.encoder.tokenizer, configuration.seed, attention)
    return run_phase(campaign, run, Start(model, 0, None, losses, None), shares)


def seed_record(campaign: Campaign) -> RunRecord:
    """Return the record of the seed that experts continue.

    Raises:
        ConfigurationError: there is no seed yet, or it was trained with another configuration.
    """
    run = campaign.seed_run()
    if (record := finished_record(run)) is None:
        raise ConfigurationError(f"there is no seed in {run.directory}: train it first with --seed-model")
    return record


def train_expert(campaign: Campaign, domain: Domain, seed: RunRecord) -> RunRecord | None:
    """Continue a copy of the seed on one domain, or return its record where that was done before.

    Args:
        campaign: what the runs share.
        domain: the domain.
        seed: the seed's record.

    Returns:
        The record; None in every process but the main one.

    Raises:
        LmsplitError: see `phase.run_phase` and `phase.finished_record`.
    """
    run = campaign.expert_run(domain, seed.weights_sha256)
    return _continue(campaign, run, seed, ["--domain", domain.domain], lambda: _own_and_others(campaign, run, domain))


def train_dense(campaign: Campaign, matched: Matched, seed: RunRecord) -> RunRecord | None:
    """Continue one copy of the seed on what all experts are trained on, or return its record where that was done before.

    It sees the domains in the ratio in which the experts see them, rows of other domains included: with `total`, as many tokens
    of each domain as all experts together do.

    Args:
        campaign: what the runs share.
        matched: `total` for as many tokens as all experts together, `per-model` for those of one, on average.
        seed: the seed's record.

    Returns:
        The record; None in every process but the main one.

    Raises:
        LmsplitError: see `phase.run_phase` and `phase.finished_record`.
    """
    run = campaign.dense_run(matched, seed.weights_sha256)
    return _continue(campaign, run, seed, ["--dense", matched], lambda: _of_all_experts(campaign, run))


def _continue(
    campaign: Campaign, run: Run, seed: RunRecord, options: list[str], shares: Callable[[], list[Share]]
) -> RunRecord | None:
    """Continue a copy of the seed unless that is done; `options` are what asks the command for it."""
    if (record := finished_record(run)) is not None:
        logger.info("%s is done already", run.directory)
        return record if is_main() else None
    with main_first():
        packed = shares()
    if _needs_launcher(campaign):
        Workers(campaign).train(options, run.name)
        return read_record(run.directory)
    return run_phase(campaign, run, _continued(campaign, seed), packed)


def _of_all_experts(campaign: Campaign, run: Run) -> list[Share]:
    """Return what all experts are trained on, together."""
    tokens: dict[str, float] = {}
    packs = {}
    for domain in campaign.manifest.domains:
        for share in _own_and_others(campaign, run, domain):
            name = share.packed.domain
            packs[name] = share.packed
            tokens[name] = tokens.get(name, 0.0) + share.share * campaign.expert_tokens()[domain.domain]
    return [Share(packs[name], tokens[name]) for name in packs]


def _continued(campaign: Campaign, seed: RunRecord) -> Start:
    """Return a copy of the seed, with its losses."""
    directory = campaign.seed_run().directory
    heldout = HeldOut.of(campaign)
    losses = {name: each.after for name, each in seed.losses.items()}
    if heldout.num_documents() != {name: each.num_documents for name, each in seed.losses.items()}:
        losses = {name: Loss.of(loss) for name, loss in heldout.measure(load_model(directory)).items()}
    model = load_model(directory, attention_kind(campaign.configuration.attention))
    kept = directory if campaign.configuration.expert.optimizer_state == "kept" else None
    return Start(model, seed.pretraining_tokens, seed.weights_sha256, losses, kept)


def train_all(campaign: Campaign) -> tuple[RunRecord, list[Outcome]]:
    """Train the seed where it is missing, then every expert; one that fails does not stop the others.

    Returns:
        The seed's record, and the outcome of each domain in their order.

    Raises:
        ConfigurationError: a launcher started this in several processes.
        LmsplitError: the seed cannot be trained.
    """
    if num_processes() > 1:
        raise ConfigurationError("--all starts processes itself: set executor.processes, and run it without a launcher")
    seed = train_seed(campaign)
    assert seed is not None, "there is one process"
    tokens = campaign.expert_tokens()
    longest_first = sorted(campaign.manifest.domains, key=lambda domain: -tokens[domain.domain])
    executor = campaign.configuration.executor
    if executor.kind == "local" and executor.workers == 1:
        outcomes = [_attempt(campaign, domain, seed) for domain in longest_first]
    else:
        outcomes = _attempt_elsewhere(campaign, longest_first, seed)
    by_name = {outcome.domain.domain: outcome for outcome in outcomes}
    return seed, [by_name[domain.domain] for domain in campaign.manifest.domains]


def _needs_launcher(campaign: Campaign) -> bool:
    executor = campaign.configuration.executor
    return executor.kind != "local" or (executor.processes > 1 and not is_launched())


def _attempt(campaign: Campaign, domain: Domain, seed: RunRecord) -> Outcome:
    try:
        return Outcome(domain, train_expert(campaign, domain, seed), None)
    except LmsplitError as error:  # says all by itself
        return Outcome(domain, None, str(error))
    except Exception as error:  # whatever stops one expert must not take the others with it
        logger.exception("the expert of %s failed", domain.domain)
        return Outcome(domain, None, f"{type(error).__name__}: {error}")
    finally:
        gc.collect()  # a trainer is full of cycles: its model would stay in memory beside the next one


def _attempt_elsewhere(campaign: Campaign, domains: Sequence[Domain], seed: RunRecord) -> list[Outcome]:
    """Train several experts at a time; a killed process takes no other one with it."""
    runs = {domain.domain: campaign.expert_run(domain, seed.weights_sha256) for domain in domains}
    for domain in domains:  # packed before, or several processes would pack the others' documents at once
        _own_and_others(campaign, runs[domain.domain], domain)
    campaign.write_configuration()
    errors = Workers(campaign).train_each([name for name, run in runs.items() if not run.directory.exists()])

    def outcome(domain: Domain) -> Outcome:
        """Return what the run left, or why it left nothing."""
        error = errors.get(domain.domain)
        try:
            record = finished_record(runs[domain.domain]) if error is None else None
        except LmsplitError as refused:
            return Outcome(domain, None, str(refused))
        return Outcome(domain, record, error)

    return [outcome(domain) for domain in domains]


def _mixture(campaign: Campaign, run: Run) -> list[Share]:
    mixture = campaign.configuration.seed_model.mixture
    shares = []
    for domain in campaign.manifest.domains:
        weight = 1.0 if isinstance(mixture, str) else mixture.get(domain.domain, 0.0)
        if not weight:
            continue
        packed = campaign.packed(domain, run.where)
        if not packed.num_rows:
            logger.warning("%s has no training documents for the seed", domain.domain)
        shares.append(Share(packed, float(packed.num_tokens) if mixture == "natural" else weight))
    return shares


def _own_and_others(campaign: Campaign, run: Run, domain: Domain) -> list[Share]:
    phase = campaign.configuration.expert
    if phase.interference is None:
        return [Share(campaign.packed(domain, run.where), 1.0)]
    fraction = phase.interference.fraction
    shares = [Share(campaign.packed(domain, run.where), 1 - fraction)]
    others = [other for other in campaign.manifest.domains if other != domain]
    if others:
        packed = [campaign.packed(other, run.where) for other in others]
        rule = campaign.manifest.rule()
        centroids_KD = rule.centroids_MD[rule.leaf_nodes_K]
        of_others_J = shares_of_others(
            [each.num_tokens for each in packed],
            centroids_KD[[domain_index(other.domain) for other in others]],
            centroids_KD[domain_index(domain.domain)],
            phase.interference.temperature,
        )
        shares += [Share(each, fraction * share) for each, share in zip(packed, of_others_J.tolist(), strict=True)]
    return shares


def find_domain(campaign: Campaign, name: str) -> Domain:
    """Return the domain called `name`.

    Raises:
        ConfigurationError: the manifest has none of that name.
    """
    try:
        return campaign.manifest.domain(name)
    except ManifestError as error:
        raise ConfigurationError(f"--domain {name}: {error}") from error
