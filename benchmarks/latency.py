"""What routing costs beside the model that answers: time to the first token and for each one after it, joules.

Models of each preset with fresh weights, which are as fast as trained ones; prompts are the first `--prompt` tokens of held-out
documents of the corpora, answers are 32 tokens, greedy. The router is that of twelve domains, by encoder, with the rule for
prompts that `lmsplit evaluate` fits; `none` knows the expert without one. Twelve experts are held in memory; a prompt is answered
by the same one in all ways, which take turns. `router's share`: of the time to the first token, the median. `above none`: how
much later than without a router the first token of the same prompt is there, the median with its 95 % interval, and that over
the median without one. Times are milliseconds; joules are the machine's per answer, by codecarbon, an estimate from rated power
where the column says so. With `--no-energy` the ways take turns prompt by prompt, else a tenth of the prompts at a time. Clients
ask at the same time and share the threads.
"""

import argparse
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from measure import write_results
from paired import shown
from routing import routers as fitted
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from vectors import CORPUS, manifest

from lmsplit.manifests.reader import Manifest
from lmsplit.train.latency import measure_latency, median_difference
from lmsplit.train.presets import PRESETS
from lmsplit.train.router import Router
from lmsplit.train.tokenizer import DocumentEncoder, train_tokenizer

DOMAINS: Final = 12
ANSWER: Final = 32
VOCABULARY: Final = 4096
"""Of the tokenizer; each preset has its own number of embeddings all the same."""


def routers(output: Path, corpus: str, encoders: Sequence[str]) -> dict[str, Router]:
    """Return a router of each encoder; the experts that it names are not there, which costs it nothing."""
    found = {}
    for encoder in encoders:
        manifest(output / encoder, corpus, DOMAINS, encoder, keep_embeddings=True)
        found[encoder] = fitted(f"{output / encoder / 'manifest'}@0", output / encoder / f"training-{DOMAINS}")["prompts"]
    return found


def prompts_of(opened: Manifest, encoder: DocumentEncoder, length: int, count: int) -> list[str]:
    """Return the beginnings of held-out documents that are long enough."""
    texts = opened.scan().filter(pl.col("split") == "heldout").select("text").collect()["text"].to_list()
    long = [text for text, ids in zip(texts, encoder.encode(texts), strict=True) if len(ids) >= length]
    return encoder.beginnings(long[:: max(1, len(long) // count)][:count], length)


def model_of(name: str) -> PreTrainedModel:
    """Return a model of a preset's shape."""
    torch.manual_seed(0)
    config = PRESETS[name].model_config(PRESETS[name].vocabulary_size)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.eval().to(device)


def main() -> None:
    """Time every size, router and number of clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / ".cache" / "routing")
    parser.add_argument("--models", nargs="*", default=["1m", "5m", "30m", "125m"])
    parser.add_argument("--clients", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--routers", nargs="*", default=["lexical", "minilm"])
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--no-energy", action="store_true", help="results go to …_turns")
    options = parser.parse_args()
    found = routers(options.output, options.corpus, options.routers)
    opened = Manifest.open(options.output / options.routers[0] / "manifest@0")
    texts = opened.scan().filter(pl.col("split") == "train").select("text").head(4000).collect()["text"].to_list()
    encoder = DocumentEncoder(train_tokenizer([texts], VOCABULARY))
    prompts = prompts_of(opened, encoder, options.prompt, options.requests)
    ids = {prompt: [encoder.begin_id, *tokens] for prompt, tokens in zip(prompts, encoder.encode(prompts), strict=True)}
    for name in options.models:
        rows: list[dict[str, Any]] = []
        model = model_of(name)
        experts = [model, *(deepcopy(model) for _ in range(DOMAINS - 1))]
        expert_of = {prompt: experts[number % DOMAINS] for number, prompt in enumerate(prompts)}

        def route(router: Router | None, prompt: str, expert_of: dict[str, PreTrainedModel] = expert_of) -> PreTrainedModel:
            """Ask the router, and let the prompt's expert answer, whatever it says."""
            if router is not None:
                router.route([prompt])
            return expert_of[prompt]

        ways = {kind: partial(route, router) for kind, router in {"none": None, **found}.items()}
        for clients in options.clients:
            measured = measure_latency(prompts, ids.__getitem__, ways, ANSWER, clients, energy=not options.no_energy)
            without_s = measured["none"].first_s()
            for kind, latency in measured.items():
                values = latency.to_json()
                times = {
                    f"{label}, {p}": 1e3 * values[f"{key}_{p}_s"]
                    for label, key in (("first token", "first_token"), ("token", "token"), ("answer", "answer"))
                    for p in ("p50", "p95")
                }
                facts = {"model": name, "clients": clients, "router": kind, "router, p50": 1e3 * values["route_p50_s"]}
                above = median_difference(latency.first_s(), without_s)
                facts |= {"router's share": values["route_share"], "above none": shown(tuple(1e3 * each for each in above))}
                facts |= {"above none, share": above[0] / float(np.median(without_s))}
                rows.append(facts | times | {"joules": values["joules_per_answer"], "estimate": values["energy_is_an_estimate"]})
        file = f"latency_{name}_{options.prompt}" + ("_turns" if options.no_energy else "")
        write_results(file, "What routing costs beside the answer", __doc__ or "", rows)


if __name__ == "__main__":
    main()
