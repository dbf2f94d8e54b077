"""Experts behind their router as one model of lm-evaluation-harness, and the cloze questions as its tasks.

    RoutedModel ─prompt─► Router ─► HFLM of that expert            any task of the harness can be run on it

The harness asks, a request is answered by the model that its context is routed to; each expert is loaded when it is first
asked, and is the harness's own `HFLM`. Needs the extra `evaluate`. This does *not* choose what is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.progress import Progress
from lmsplit.train.answers import compare
from lmsplit.train.campaign import Campaign
from lmsplit.train.cloze import Question
from lmsplit.train.directory import whole_file
from lmsplit.train.libraries import without_bars
from lmsplit.train.loss_table import LossTable
from lmsplit.train.models import load_model
from lmsplit.train.router import Router
from lmsplit.train.text_losses import document_losses
from lmsplit.train.tokenizer import DocumentEncoder

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ModuleNotFoundError as error:
    raise ConfigurationError(
        f"evaluation.cloze needs {error.name}, which is not installed: pip install 'lmsplit[evaluate]', or remove the key"
    ) from error

_BATCH: Final = 16
_METRIC: Final = "acc_bytes"
"""Accuracy by log-likelihood per byte."""

Choose = Callable[[Sequence[str]], list[str]]


class RoutedModel(LM):
    """The experts of a training, behind a router, as one model.

    Args:
        directory: the training's output.
        choose: names the model's directory in it for each of some contexts; see `by_router`.
        encoder: the models' tokenizer.
        max_length: tokens that a model sees at once.
    """

    def __init__(self, directory: Path, choose: Choose, encoder: DocumentEncoder, max_length: int) -> None:
        super().__init__()
        self._directory = directory
        self._choose = choose
        self._encoder = encoder
        self._max_length = max_length
        self._models: dict[str, HFLM] = {}
        self.routes: dict[str, str] = {}
        """Which model each context went to."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the greedy one."""
        return self._delegate("loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text."""
        return self._delegate("loglikelihood_rolling", requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what follows each context."""
        return self._delegate("generate_until", requests, disable_tqdm)

    def _delegate(self, method: str, requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        contexts = [str(request.args[0]) for request in requests]
        new = sorted(set(contexts) - set(self.routes))
        self.routes |= dict(zip(new, self._choose(new), strict=True))
        names = [self.routes[context] for context in contexts]
        answers: list[Any] = [None] * len(requests)
        for name in sorted(set(names)):
            places = [place for place, other in enumerate(names) if other == name]
            found = getattr(self._model(name), method)([requests[place] for place in places], disable_tqdm=disable_tqdm)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers

    def _model(self, name: str) -> HFLM:
        if name not in self._models:
            self._models[name] = open_model(self._directory / name, self._encoder, self._max_length)
        return self._models[name]


def by_router(router: Router) -> Choose:
    """Return what names the model that a router's routes do.

    Args:
        router: of the training.
    """

    def choose(contexts: Sequence[str]) -> list[str]:
        """Return the models' directories."""
        routes = router.route(contexts)
        for route in routes:
            if route.expert is None:
                raise ConfigurationError(f"no model can answer: {route.reason}")
        return [str(route.expert) for route in routes]

    return choose


class _Model(HFLM):
    """One model, which sees texts as in training: the begin token first, and no special token for what only looks like one."""

    def __init__(self, model: PreTrainedModel, encoder: DocumentEncoder, max_length: int) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=encoder.tokenizer,
            max_length=max_length,
            batch_size=_BATCH,
            device=str(model.device),
            prefix_token_id=encoder.begin_id,
        )
        self._encoder = encoder

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_keys: Any
    ) -> list[int]:
        """Return a text's tokens after the begin token."""
        begin = [] if add_special_tokens is False else [self._encoder.begin_id]
        return [*begin, *self._encoder.encode([string])[0]][-(left_truncate_len or 0) :]

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **_keys: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of several texts, padded to one length, and which are theirs."""
        rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self._encoder.end_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            place = slice(longest - len(row), None) if padding_side == "left" else slice(len(row))
            ids[number, place], mask[number, place] = torch.tensor(row), 1
        return ids, mask

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Return the log-likelihood of each text."""
        texts = [str(request.args[0]) for request in requests]
        found = document_losses(self.model, self._encoder, [texts], self.max_length)
        return [-nats for nats in found.nats_N.tolist()]


def open_model(directory: Path, encoder: DocumentEncoder, max_length: int) -> HFLM:
    """Open one model as the harness's.

    Args:
        directory: the model's.
        encoder: its tokenizer.
        max_length: tokens that it sees at once.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return _Model(load_model(directory).to(device), encoder, max_length)


def judge(
    campaign: Campaign, table: LossTable, router: Router, questions: Sequence[Question], path: Path, progress: Progress
) -> dict[str, Any]:
    """Ask the routed experts, each document's own expert and every other model the cloze questions.

    Args:
        campaign: the tokenizer, the output.
        table: names the models, and the group of each document.
        router: routes the contexts.
        questions: what is asked.
        path: their JSON lines; beside it is written, under `.parquet`, whether each was answered right: doc_id, domain, group,
            and a column for each way to answer.
        progress: called with `cloze`, how many ways to answer were asked, and how many there are.

    Returns:
        `questions`, `chance`, `domains` {domain: questions}, and for each way to answer its `accuracy` (by the log-likelihood per
        byte of each choice, a mean over domains that count alike) with its 95 % interval, how far it is above `routed`, and by
        domain.
    """
    if not questions:
        return {"questions": 0, "answers": []}
    counts = {name: sum(each.domain == name for each in questions) for name in table.domains}
    tasks = {name: _task(name, path) for name, count in counts.items() if count}
    size = campaign.packing.max_length
    of_experts = {model.name: model.directory for model in table.models[1 : 1 + table.num_experts]}
    others = {model.name: model.directory for model in table.models if model.name not in of_experts}
    total = 2 + len(others)
    right = {"routed": _ask(RoutedModel(campaign.output, by_router(router), campaign.encoder, size), tasks)}
    progress("cloze", 1, total)
    right["own domain"] = {
        doc_id: answer
        for name, task in tasks.items()
        for doc_id, answer in _ask(open_model(of_experts[name], campaign.encoder, size), {name: task}).items()
    }
    progress("cloze", 2, total)
    for name, directory in others.items():
        right[name] = _ask(open_model(directory, campaign.encoder, size), tasks)
        progress("cloze", len(right), total)
    groups = dict(zip(table.doc_ids, table.groups, strict=True))
    columns = {name: [answers[each.doc_id] for each in questions] for name, answers in right.items()}
    about = {"doc_id": [each.doc_id for each in questions], "domain": [each.domain for each in questions]}
    answered = pl.DataFrame(about | {"group": [groups[each.doc_id] for each in questions]} | columns)
    with whole_file(path.with_suffix(".parquet")) as partial:
        answered.write_parquet(partial)
    answers = _answers(answered, list(right), table)
    return {"questions": len(questions), "chance": 1 / len(questions[0].choices), "domains": counts, "answers": answers}


def _task(domain: str, path: Path) -> dict[str, Any]:
    """Return a task of the harness: the questions of one domain."""
    return {
        "task": f"cloze_{domain}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "process_docs": lambda rows: rows.filter(lambda row: row["domain"] == domain),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": _METRIC, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _ask(model: LM, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Return whether the question of each document was answered right, by the document's id."""
    asked = [dict(task) for task in tasks.values()]
    with without_bars():
        results = simple_evaluate(model=model, tasks=asked, bootstrap_iters=0, log_samples=True, task_manager=TaskManager())
    assert results is not None
    return {sample["doc"]["doc_id"]: bool(sample[_METRIC]) for each in results["samples"].values() for sample in each}


def _answers(answered: pl.DataFrame, ways: Sequence[str], table: LossTable) -> list[dict[str, Any]]:
    """Return each way's accuracy and how far it is above `routed`, with intervals."""
    found = compare(
        {name: answered[name] for name in ways},
        np.ones(len(answered)),
        np.array([table.domains.index(name) for name in answered["domain"]]),
        table.num_experts,
        answered["group"],
    )
    rows = []
    for number, name in enumerate(found.names):
        low, high = found.interval(name)
        above, above_low, above_high = found.difference(name, "routed")
        of_domains = zip(table.domains, found.loss_WJ[number].tolist(), strict=True)
        rows.append(
            {
                "way": name,
                "accuracy": found.loss(name),
                "low": low,
                "high": high,
                "above_routed": above,
                "above_routed_low": above_low,
                "above_routed_high": above_high,
                "domains": {domain: value for domain, value in of_domains if not np.isnan(value)},
            }
        )
    return rows
