"""The seed, and one expert per domain: what `lmsplit train` runs.

Everything runs in this process, one after the other. What is done under the same configuration is skipped; a
failing expert does not stop the others, and is named at the end. An expert starts from the seed's weights
with a fresh optimizer and a learning-rate schedule of its own. A domain with fewer tokens than its budget is
repeated, and the record says how often.

This does *not* spread work over machines.
"""

import gc
import logging
from dataclasses import dataclass

from lmsplit.manifests.errors import ConfigurationError, LmsplitError, ManifestError
from lmsplit.manifests.reader import Domain
from lmsplit.train.campaign import Campaign
from lmsplit.train.evaluate import evaluate_domain
from lmsplit.train.models import build_model, has_given_weights, load_model
from lmsplit.train.phase import Start, finished_record, known_losses, run_phase
from lmsplit.train.record import Loss, RunRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one expert."""

    domain: Domain
    record: RunRecord | None
    """None where it failed."""
    error: str | None
    """Why it failed; None where it did not."""


def train_seed(campaign: Campaign) -> RunRecord:
    """Train the seed on the mixture of all domains, or return its record where that was done before.

    Raises:
        LmsplitError: see `phase.run_phase` and `phase.finished_record`.
    """
    run = campaign.seed_run()
    if (record := finished_record(run)) is not None:
        logger.info("%s is done already", run.directory)
        return record
    configuration = campaign.configuration
    model = build_model(configuration.model, campaign.encoder.tokenizer, configuration.seed)
    packs = [campaign.packed(domain) for domain in campaign.manifest.domains if domain.splits["train"]]
    before: dict[str, Loss | None] = dict.fromkeys(domain.domain for domain in campaign.manifest.domains)
    if has_given_weights(configuration.model):
        for domain in before:
            before[domain] = Loss.of(evaluate_domain(model, campaign.encoder, campaign.manifest, domain, campaign.max_length))
    return run_phase(campaign, run, Start(model, 0, None, before), packs)


def seed_record(campaign: Campaign) -> RunRecord:
    """Return the record of the seed that experts continue.

    Raises:
        ConfigurationError: there is no seed yet, or it was trained with another configuration.
    """
    run = campaign.seed_run()
    if (record := finished_record(run)) is None:
        raise ConfigurationError(f"there is no seed in {run.directory}: train it first with --seed-model")
    return record


def train_expert(campaign: Campaign, domain: Domain, seed: RunRecord) -> RunRecord:
    """Continue a copy of the seed on one domain, or return its record where that was done before.

    Args:
        campaign: what the runs share.
        domain: the domain.
        seed: the seed's record.

    Raises:
        LmsplitError: see `phase.run_phase` and `phase.finished_record`.
    """
    run = campaign.expert_run(domain, seed.weights_sha256)
    if (record := finished_record(run)) is not None:
        logger.info("%s is done already", run.directory)
        return record
    model = load_model(campaign.seed_run().directory)
    start = Start(model, seed.pretraining_tokens, seed.weights_sha256, known_losses(seed, [domain]))
    return run_phase(campaign, run, start, [campaign.packed(domain)])


def train_all(campaign: Campaign) -> tuple[RunRecord, list[Outcome]]:
    """Train the seed where it is missing, then every expert; one that fails does not stop the others.

    Returns:
        The seed's record, and the outcome of each domain in their order.

    Raises:
        LmsplitError: the seed cannot be trained.
    """
    seed = train_seed(campaign)
    return seed, [_attempt(campaign, domain, seed) for domain in campaign.manifest.domains]


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


def find_domain(campaign: Campaign, name: str) -> Domain:
    """Return the domain called `name`.

    Raises:
        ConfigurationError: the manifest has none of that name.
    """
    try:
        return campaign.manifest.domain(name)
    except ManifestError as error:
        raise ConfigurationError(f"--domain {name}: {error}") from error
