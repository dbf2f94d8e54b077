"""Experts behind their router as one model of lm-evaluation-harness, and the cloze questions as its tasks.

    RoutedModel ─prompt─► Router ─► HFLM of that expert            any task of the harness can be run on it

The harness asks, a request is answered by the model that its context is routed to; each model is loaded once, and is the
harness's own `HFLM`. Needs the extra `evaluate`. This does *not* choose what is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.answers import DRAWS, INTERVAL
from lmsplit.train.campaign import Campaign
from lmsplit.train.cloze import Question
from lmsplit.train.layout import EXPERTS
from lmsplit.train.loss_table import Model
from lmsplit.train.models import load_model
from lmsplit.train.router import Router
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


def open_model(directory: Path, encoder: DocumentEncoder, max_length: int) -> HFLM:
    """Open one model as the harness's.

    Args:
        directory: the model's.
        encoder: its tokenizer.
        max_length: tokens that it sees at once.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return HFLM(
        pretrained=load_model(directory).to(device),
        tokenizer=encoder.tokenizer,
        max_length=max_length,
        batch_size=_BATCH,
        device=str(device),
        prefix_token_id=encoder.begin_id,
        add_bos_token=True,
    )


def judge(
    campaign: Campaign,
    models: Sequence[Model],
    num_experts: int,
    router: Router,
    questions: Sequence[Question],
    path: Path,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Ask the routed experts, each document's own expert and every other model the cloze questions.

    Args:
        campaign: the tokenizer, the output.
        models: the seed, then the experts, then the others.
        num_experts: K.
        router: routes the contexts.
        questions: what is asked.
        path: their JSON lines.
        progress: called with `cloze`, how many models were asked, and how many there are.

    Returns:
        `questions`, `chance`, `domains` {domain: questions}, and for each way to answer its `accuracy` (by the log-likelihood per
        byte of each choice, a mean over domains that count alike) with the 95 % interval over questions, and by domain.
    """
    if not questions:
        return {"questions": 0, "answers": []}
    domains = sorted({each.domain for each in questions})
    tasks = [_task(domain, path) for domain in domains]
    counts = {domain: sum(each.domain == domain for each in questions) for domain in domains}
    max_length = campaign.packing.max_length
    own = {each.context: f"{EXPERTS}/{each.domain}" for each in questions}
    choices = {"routed": by_router(router), "own domain": lambda contexts: [own[context] for context in contexts]}
    asked = {name: RoutedModel(campaign.output, choose, campaign.encoder, max_length) for name, choose in choices.items()}
    correct: dict[str, dict[str, list[bool]]] = {}
    others = [model for number, model in enumerate(models) if number == 0 or number > num_experts]
    total = len(asked) + len(others)
    for name, model in asked.items():
        correct[name] = _ask(model, tasks, domains)
        progress("cloze", len(correct), total)
    for other in others:
        correct[other.name] = _ask(open_model(other.directory, campaign.encoder, max_length), tasks, domains)
        progress("cloze", len(correct), total)
    answers = _answers(correct, domains)
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
        "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _ask(model: LM, tasks: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> dict[str, list[bool]]:
    """Return whether each question was answered right, by domain."""
    results = simple_evaluate(
        model=model, tasks=[dict(task) for task in tasks], bootstrap_iters=0, log_samples=True, task_manager=TaskManager()
    )
    assert results is not None
    samples = results["samples"]
    return {domain: [bool(each["acc_norm"]) for each in _in_order(samples[f"cloze_{domain}"])] for domain in domains}


def _in_order(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda each: each["doc_id"])


def _answers(correct: Mapping[str, Mapping[str, Sequence[bool]]], domains: Sequence[str]) -> list[dict[str, Any]]:
    """Return each way's accuracy and how far it is above `routed`, with intervals; the same questions are drawn for all."""
    generator = np.random.default_rng(0)
    names = list(correct)
    draws, means = [], []
    for domain in domains:
        right_WQ = np.array([correct[name][domain] for name in names], float)
        size = right_WQ.shape[1]
        counts_BQ = generator.multinomial(size, np.full(size, 1 / size), size=DRAWS)
        draws.append(counts_BQ @ right_WQ.T / size)
        means.append(right_WQ.mean(axis=1))
    draws_BW, mean_WJ = np.mean(draws, axis=0), np.stack(means, axis=1)
    tails = [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2]
    rows = []
    for number, name in enumerate(names):
        low, high = np.quantile(draws_BW[:, number], tails)
        below, above = np.quantile(draws_BW[:, number] - draws_BW[:, names.index("routed")], tails)
        rows.append(
            {
                "way": name,
                "accuracy": float(mean_WJ[number].mean()),
                "low": float(low),
                "high": float(high),
                "above_routed": float(mean_WJ[number].mean() - mean_WJ[names.index("routed")].mean()),
                "above_routed_low": float(below),
                "above_routed_high": float(above),
                "domains": dict(zip(domains, mean_WJ[number].tolist(), strict=True)),
            }
        )
    return rows
