"""Judges a whole training: what the experts are worth, what the router finds of it, and what one model would have done instead.

```
models ─► LossTable ─┬─► cross-loss M, specialization, interference, loss by share misrouted
                     ├─► ways to answer: routed, likelihood, mixtures, own domain, best, any, seed, merged, dense; intervals
prompts ─► Router ───┴─► accuracy by length of the prompt
questions ─► harness ──► accuracy on cloze questions      prompts ─► latency ──► seconds, joules
```

Everything is measured on the same held-out documents. The router's rule for prompts and the temperature of mixtures are fitted on
training documents (see `routing_fit`). Numbers come back as one object of plain values; `evaluate_files` draws and `evaluate_cli`
shows them. Cost: one forward pass of every model over the documents (cached, see `loss_table`), one encoding of every document a
prompt length, and what `routing_fit` costs.
"""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from transformers import PreTrainedModel

from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.manifests.progress import Progress
from lmsplit.train.answers import Comparison, Documents, compare, ways_to_answer
from lmsplit.train.campaign import Campaign
from lmsplit.train.cloze import write_questions
from lmsplit.train.cross_loss import (
    break_even,
    by_domain,
    cross_loss,
    interference,
    misrouting,
    routed_loss,
    specialization,
)
from lmsplit.train.directory import sole_writer, whole_file, write_whole
from lmsplit.train.energy import measured_energy
from lmsplit.train.latency import measure_latency, median_difference
from lmsplit.train.layout import DENSE, EVALUATION, EXPERTS, MERGED, SEED, Matched
from lmsplit.train.loss_table import LossTable, Model, measure, trained_models
from lmsplit.train.mixing import TEMPERATURE, mixture_weights
from lmsplit.train.models import load_model
from lmsplit.train.routed import Routed, routed
from lmsplit.train.router import RoutedBy, Router, Routing
from lmsplit.train.routing_accuracy import accuracy, by_likelihood, majority_labels
from lmsplit.train.routing_fit import fit_routing
from lmsplit.train.text_losses import sums_of_documents

Integers = npt.NDArray[np.int64]

_MIXTURES: Final = (2, 4)
_SHARES: Final = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of misrouted texts."""
_BITS_PER_NAT: Final = 1 / np.log(2)


def evaluate(
    campaign: Campaign,
    model: str | None = None,
    *,
    trust_remote_code: bool = False,
    progress: Progress = lambda _stage, _done, _all: None,
) -> dict[str, Any]:
    """Judge a training.

    Args:
        campaign: whose seed and experts are all trained.
        model: directory of the manifest's encoder, where the manifest knows it by its digests alone.
        trust_remote_code: allow an encoder that needs it to run its own code.
        progress: called with a stage's name, how much of it is done, and how much there is.

    Returns:
        What `<output>/evaluation/evaluation.json` holds.

    Raises:
        ConfigurationError: an expert is missing or was trained with another configuration, a library is missing, or the column of
            labels is missing or empty.
        ConflictError: another process is judging the same training.
        LmsplitError: nothing is held out that is longer than a prompt.
    """
    with sole_writer(campaign.output / EVALUATION):
        return _evaluate(campaign, model, trust_remote_code, progress)


def _evaluate(campaign: Campaign, encoder: str | None, trust_remote_code: bool, progress: Progress) -> dict[str, Any]:
    placing = Routing(by_placement=True, temperature=TEMPERATURE)
    placement = Router.open(campaign.output, encoder, trust_remote_code=trust_remote_code, settings=placing)
    _check(campaign)
    models = trained_models(campaign)
    table = measure(campaign, models, lambda done, total: progress("losses", done, total))
    settings = campaign.configuration.evaluation
    lengths = sorted({settings.prompt_tokens, *settings.prefix_tokens})
    fitted = fit_routing(campaign, placement, progress=lambda done, total: progress("prompts", done, total))
    router = placement.fitted_with(fitted)
    by = RoutedBy.PLACEMENT if fitted.prompt_rule is None else RoutedBy.PROMPTS
    routers = {RoutedBy.PLACEMENT: placement, by: router}
    routes = {}
    for number, length in enumerate(lengths):
        prompts = campaign.encoder.beginnings(table.texts, length)
        vectors_ND = placement.vectors(prompts)
        routes[length] = {rule: routed(each, prompts, vectors_ND, table.domains) for rule, each in routers.items()}
        progress("routes", number + 1, len(lengths))
    found: dict[str, Any] = {
        "manifest": campaign.manifest.digest,
        "encoder": campaign.manifest.encoder_name,
        "documents": len(table.texts),
        "prompt_tokens": settings.prompt_tokens,
        "routed_by": by.value,
        "temperature": {"placement": fitted.placement_temperature, "prompts": fitted.prompt_temperature},
        "prompt_max_characters": None if fitted.prompt_rule is None else fitted.prompt_rule.max_characters,
        "domains": [{"domain": each.domain, "label": each.label} for each in campaign.manifest.domains],
        "models": [_about(each) for each in models],
        "missing": _missing(models),
    }
    found |= cross_losses(table, routes[settings.prompt_tokens][by].domain_N)
    found |= answers(campaign, table, routes[settings.prompt_tokens], by)
    found["routing"] = routing(campaign, table, routes, by)
    if settings.cloze is not None:
        found["cloze"] = _cloze(campaign, table, router, progress)
    if settings.latency is not None:
        found["latency"] = latencies(campaign, table, router)
    directory = campaign.output / EVALUATION
    fitted.write(directory)
    write_whole(directory / "evaluation.json", json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return found


def cross_losses(table: LossTable, routed_N: Integers) -> dict[str, Any]:
    """Return M in both units, and what follows from it; whole documents count.

    Args:
        table: the losses.
        routed_N: where each document's prompt is routed to, for where misrouted texts go.
    """
    sums_MN = np.stack([sums_of_documents(nats_T, table.tokens_N) for nats_T in table.nats_MT])
    losses = {
        "nats_per_token": by_domain(sums_MN, table.tokens_N, table.domain_N, table.num_experts),
        "bits_per_byte": by_domain(sums_MN, table.bytes_N, table.domain_N, table.num_experts) * _BITS_PER_NAT,
    }
    of_experts = slice(1, 1 + table.num_experts)
    matrices = {unit: cross_loss(each[of_experts], each[0]) for unit, each in losses.items()}
    m_KK = matrices["nats_per_token"]
    seen_J = ~np.isnan(losses["nats_per_token"][0])
    found: dict[str, Any] = {"cross_loss": {unit: _rows(each) for unit, each in matrices.items()}}
    found["losses"] = {
        unit: {model.name: _row(row) for model, row in zip(table.models, each, strict=True)} for unit, each in losses.items()
    }
    m_KK = m_KK[np.ix_(seen_J, seen_J)]  # a domain without held-out documents is left out
    elsewhere_JK = _elsewhere(table.domain_N, routed_N, seen_J)
    shares = _SHARES if len(m_KK) > 1 else _SHARES[:1]
    return found | {
        "specialization": specialization(m_KK),
        "interference": interference(m_KK),
        "seed_is_better_above": _finite(break_even(m_KK, np.zeros_like(m_KK), elsewhere_JK)),
        "misrouting": [
            {"share": share, "above_seed": routed_loss(m_KK, misrouting(m_KK, share, elsewhere_JK))} for share in shares
        ],
    }


def answers(campaign: Campaign, table: LossTable, routes: Mapping[RoutedBy, Routed], by: RoutedBy) -> dict[str, Any]:
    """Return the loss of every way to answer, with intervals, and how far each is above `routed`; write them by document.

    Args:
        campaign: the training.
        table: the losses.
        routes: where each document's prompt is routed to, by each rule.
        by: the router's rule.
    """
    prompts = routes[by]
    documents = Documents(table.tokens_N, table.domain_N, campaign.configuration.evaluation.prompt_tokens)
    judged_N = documents.num_judged()
    if not judged_N.any():
        raise LmsplitError(
            f"no held-out document is longer than the prompt of {documents.prompt} tokens: lower evaluation.prompt_tokens"
        )
    mixtures = {
        f"mixture of {count}": mixture_weights(prompts.scores_NK, 1.0, count)
        for count in (*_MIXTURES, table.num_experts)
        if 1 < count <= table.num_experts
    }
    routed_N = {"routed": prompts} | {each.value: routes[each] for each in routes if each is not by}
    experts_N = {name: np.maximum(0, each.domain_N) for name, each in routed_N.items()}
    ways = ways_to_answer(documents, table.of_experts(), table.of_others(), experts_N, mixtures)
    for name, each in (routed_N | dict.fromkeys(mixtures, prompts)).items():
        ways[name] = np.where(each.domain_N < 0, ways[SEED], ways[name])
    seen_N = np.array([len(text.encode()) for text in campaign.encoder.beginnings(table.texts, documents.prompt)])
    bytes_N = np.where(judged_N > 0, table.bytes_N - seen_N, 0)
    _write_documents(campaign, table, prompts.domain_N, judged_N, bytes_N, ways)
    by_token = compare(ways, judged_N, table.domain_N, table.num_experts, table.groups)
    by_byte = compare(ways, bytes_N, table.domain_N, table.num_experts, table.groups)
    return {
        "judged_documents": int((judged_N > 0).sum()),
        "judged_tokens": int(judged_N.sum()),
        "answers": [_answer(name, by_token, by_byte, table.domains) for name in by_token.names],
        "differences": _differences(by_token),
    }


def routing(
    campaign: Campaign, table: LossTable, routes: Mapping[int, Mapping[RoutedBy, Routed]], by: RoutedBy
) -> list[dict[str, Any]]:
    """Return how often prompts are routed to where their documents belong, by length; to their labels, by the router's rule.

    Without labels where none of the measured documents has one.
    """
    labels = _labels(campaign, table)
    shares = np.bincount(table.domain_N, minlength=table.num_experts) / len(table.domain_N)
    groups_N = np.array(table.groups)
    rows = []
    for length, found in routes.items():
        row: dict[str, Any] = {"tokens": length, "shorter_documents": int((table.tokens_N <= length).sum())}
        row |= {rule.value: accuracy(each.domain_N, table.domain_N, groups_N) for rule, each in found.items()}
        likeliest_N = by_likelihood(table.of_experts(), table.tokens_N, length)
        row["likelihood"] = accuracy(likeliest_N, table.domain_N, groups_N)
        row["chance"] = float(shares @ shares)
        if labels is not None and (has_N := labels[0] != "").any():
            wanted_N, majority_K = labels
            routed_to_N = np.where(found[by].domain_N < 0, "", majority_K[found[by].domain_N])
            row["labels"] = accuracy(routed_to_N[has_N], wanted_N[has_N], groups_N[has_N])
            row["labels"]["chance"] = float(shares @ [(wanted_N[has_N] == label).mean() for label in majority_K])
        rows.append(row)
    return rows


def latencies(campaign: Campaign, table: LossTable, router: Router) -> list[dict[str, Any]]:
    """Return how long answers take, by way to answer and number of clients; every model is held in memory."""
    settings = campaign.configuration.evaluation
    assert settings.latency is not None
    prompts, tokenize = timed_prompts(campaign, table, settings.latency.requests)
    ways = timed_ways(table, router)
    rows = []
    for clients in settings.latency.clients:
        found = measure_latency(prompts, tokenize, ways, settings.latency.answer_tokens, clients, energy=settings.latency.energy)
        above = median_difference(found["routed"].first_s(), found[SEED].first_s())
        keys = ("first_token_above_seed_s", "first_token_above_seed_low_s", "first_token_above_seed_high_s")
        differences = {"routed": dict(zip(keys, above, strict=True))}
        for name, measured in found.items():
            rows.append({"way": name, "clients": clients} | measured.to_json() | differences.get(name, {}))
    return rows


def timed_prompts(campaign: Campaign, table: LossTable, count: int) -> tuple[list[str], Callable[[str], list[int]]]:
    """Return beginnings of held-out documents, evenly chosen, and what tells what a model sees of one."""
    texts = [table.texts[place] for place in np.linspace(0, len(table.texts) - 1, count).astype(int)]
    prompts = campaign.encoder.beginnings(texts, campaign.configuration.evaluation.prompt_tokens)

    def tokenize(prompt: str) -> list[int]:
        """Return what a model sees of a prompt."""
        return [campaign.encoder.begin_id, *campaign.encoder.encode([prompt])[0]]

    return prompts, tokenize


def timed_ways(table: LossTable, router: Router) -> dict[str, Callable[[str], PreTrainedModel]]:
    """Return the ways to answer that are timed, `routed` and the seed alone; each loaded model has answered once."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    models = {SEED: load_model(table.models[0].directory).to(device)}
    for model in table.models[1 : 1 + table.num_experts]:
        models[f"{EXPERTS}/{model.name}"] = load_model(model.directory).to(device)
    for model in models.values():  # a model's first answer is slower than its others
        measure_latency(["."], lambda _prompt: [0], {"": partial(_always, model)}, 2)
    return {"routed": lambda prompt: models[str(router.route([prompt])[0].expert)], SEED: partial(_always, models[SEED])}


def _always(model: PreTrainedModel, _prompt: str) -> PreTrainedModel:
    return model


def _write_documents(
    campaign: Campaign,
    table: LossTable,
    routed_N: Integers,
    judged_N: Integers,
    bytes_N: Integers,
    ways: Mapping[str, npt.NDArray[np.float64]],
) -> None:
    """Write what each document contributes: where it is placed and routed, what is judged of it, and nats by way."""
    facts = {
        "doc_id": table.doc_ids,
        "domain": [table.domains[number] for number in table.domain_N],
        "routed_to": [table.domains[number] if number >= 0 else None for number in routed_N],
        "group": table.groups,
        "judged_tokens": judged_N,
        "judged_bytes": bytes_N,
    }
    with whole_file(campaign.output / EVALUATION / "documents.parquet") as partial:
        pl.DataFrame(facts | dict(ways)).write_parquet(partial)


def _cloze(campaign: Campaign, table: LossTable, router: Router, progress: Progress) -> dict[str, Any]:
    from lmsplit.train.harness import judge

    settings = campaign.configuration.evaluation.cloze
    assert settings is not None
    path = campaign.output / EVALUATION / "cloze.jsonl"
    domains = [table.domains[number] for number in table.domain_N]
    documents = list(zip(table.doc_ids, table.texts, domains, strict=True))
    questions = write_questions(documents, campaign, settings, path)
    return judge(campaign, table, router, questions, path, progress)


def _labels(campaign: Campaign, table: LossTable) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.str_]] | None:
    """Return (N,) the label of each document, "" for none, and (K,) the most frequent one of each domain; None: not asked for."""
    column = campaign.configuration.evaluation.labels
    if column is None:
        return None
    label = pl.col(column).cast(pl.String).fill_null("").alias("label")
    rows = campaign.manifest.scan().select("doc_id", "domain", "split", label)
    counts = rows.filter(pl.col("split") == "train", pl.col("label") != "").group_by("domain", "label").len().collect()
    majority = majority_labels(counts["domain"].to_list(), counts["label"].to_list(), counts["len"].to_list())
    wanted = pl.LazyFrame({"doc_id": table.doc_ids}).join(rows, on="doc_id", how="left", maintain_order="left").collect()
    majority_K = np.array([majority.get(name, "") for name in table.domains], dtype=str)
    return np.array(wanted["label"].to_list(), dtype=str), majority_K


def _check(campaign: Campaign) -> None:
    """Refuse now what would fail after long work."""
    settings = campaign.configuration.evaluation
    if settings.cloze is not None:
        importlib.import_module("lmsplit.train.harness")
    if settings.latency is not None:
        with measured_energy(settings.latency.energy):
            pass
    column, names = campaign.configuration.evaluation.labels, campaign.manifest.schema.names
    if column is None:
        return
    if column not in names:
        raise ConfigurationError(f"evaluation.labels: the manifest has no column {column!r}, it has {', '.join(names)}")
    held_out = campaign.manifest.scan().filter(pl.col("split") == "heldout")
    if not held_out.filter(pl.col(column).is_not_null()).head(1).collect().height:
        raise ConfigurationError(f"evaluation.labels: no held-out document has a {column}: name another column, or none")


def _elsewhere(domain_N: Integers, routed_N: Integers, chosen_K: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64] | None:
    """Return (J, K) where misrouted texts of some domains go, as measured; to all alike where none of a domain were."""
    size = int(chosen_K.sum())
    if size == 1:
        return None
    counts_JK = np.zeros((len(chosen_K), len(chosen_K)))
    known_N = routed_N >= 0
    np.add.at(counts_JK, (domain_N[known_N], routed_N[known_N]), 1.0)
    counts_JK = counts_JK[np.ix_(chosen_K, chosen_K)]
    np.fill_diagonal(counts_JK, 0)
    alike_JK = (1 - np.eye(size)) / (size - 1)
    totals_J1 = counts_JK.sum(axis=1, keepdims=True)
    return np.where(totals_J1 > 0, counts_JK / np.maximum(1, totals_J1), alike_JK)


def _answer(name: str, by_token: Comparison, by_byte: Comparison, domains: Sequence[str]) -> dict[str, Any]:
    low, high = by_token.interval(name)
    of_domains = by_token.loss_WJ[by_token.names.index(name)]
    return {
        "way": name,
        "nats_per_token": by_token.loss(name),
        "low": low,
        "high": high,
        "bits_per_byte": by_byte.loss(name) * _BITS_PER_NAT,
        "domains": dict(zip(domains, _row(of_domains), strict=True)),
    }


def _differences(comparison: Comparison) -> list[dict[str, Any]]:
    """Return how far every way is above `routed`."""
    rows = []
    for name in comparison.names:
        if name != "routed":
            difference, low, high = comparison.difference(name, "routed")
            rows.append({"way": name, "above": "routed", "nats_per_token": difference, "low": low, "high": high})
    return rows


def _about(model: Model) -> dict[str, Any]:
    keys = ("num_parameters", "pretraining_tokens", "specialization_tokens", "flops", "weights_sha256")
    return {"name": model.name} | {key: getattr(model.record, key) for key in keys}


def _missing(models: Sequence[Model]) -> dict[str, str]:
    """Return the baselines that are not there, and the option of `lmsplit train` that makes each."""
    wanted = {MERGED: "--merge"} | {f"{DENSE}-{matched}": f"--dense {matched}" for matched in Matched}
    return {name: option for name, option in wanted.items() if name not in {model.name for model in models}}


def _row(values: npt.NDArray[np.float64]) -> list[float | None]:
    return [_finite(value) for value in values.tolist()]


def _rows(values: npt.NDArray[np.float64]) -> list[list[float | None]]:
    return [_row(row) for row in values]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
