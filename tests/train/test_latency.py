"""Timed answers: what is timed, by whom it is answered, and what becomes of it; no test depends on how fast this machine is."""

import threading

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lmsplit.train import latency
from lmsplit.train.latency import Latency, Request, measure_latency, median_difference

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [f"prompt {number}" for number in range(6)]


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.5, **sizes)).eval()


def test_every_prompt_is_routed_and_answered(model: PreTrainedModel) -> None:
    routed = []
    found = measure_latency(PROMPTS, lambda prompt: [len(prompt), 3, 4], {"a": lambda prompt: routed.append(prompt) or model}, 5)[
        "a"
    ]
    assert routed == [*PROMPTS[:2], *PROMPTS]  # the first two warm up
    assert len(found.requests) == len(PROMPTS)
    for request in found.requests:
        assert 0 < request.route_s < request.first_s
        assert len(request.tokens_s) == 4
        assert min(request.tokens_s) > 0


def test_an_end_token_ends_no_answer(model: PreTrainedModel) -> None:
    model.generation_config.eos_token_id = list(range(1, 50))
    found = measure_latency(PROMPTS[:1], lambda _prompt: [7, 8, 9], {"a": lambda _prompt: model}, 5)["a"]
    assert len(found.requests[0].tokens_s) == 4


def test_clients_ask_at_the_same_time(model: PreTrainedModel) -> None:
    meeting = threading.Barrier(3, timeout=60)
    warm = []

    def route(prompt: str) -> PreTrainedModel:
        if len(warm) < 2:
            warm.append(prompt)
        else:
            meeting.wait()  # breaks unless three are here at once
        return model

    assert len(measure_latency(PROMPTS, lambda _prompt: [1], {"a": route}, 1, num_clients=3)["a"].requests) == 6


def test_ways_take_turns(model: PreTrainedModel) -> None:
    asked = []
    ways = {name: lambda prompt, name=name: asked.append((name, prompt)) or model for name in "ab"}
    prompts = [f"prompt {number}" for number in range(30)]
    found = measure_latency(prompts, lambda _prompt: [1], ways, 1)
    assert {name: len(each.requests) for name, each in found.items()} == {"a": 30, "b": 30}
    answered = asked[4:]  # without what warms up
    assert [prompt for name, prompt in answered if name == "a"] == [prompt for name, prompt in answered if name == "b"] == prompts
    assert "".join(name for name, _ in answered)[:8] == "abbaabba"
    asked.clear()
    measure_latency(prompts, lambda _prompt: [1], ways, 1, energy=True)
    assert "".join(name for name, _ in asked[4:])[:18] == "aaabbbbbbaaaaaabbb"


def test_difference_is_of_the_same_prompts() -> None:
    random = np.random.default_rng(0)
    prompt_s, ones = random.random(400), np.ones(400)
    times_s = prompt_s + 0.01 + 0.001 * random.standard_normal(400)
    median, low, high = median_difference(times_s, prompt_s)
    assert low < median < high
    assert low < 0.01 < high
    assert high - low < 0.0005  # prompts that differ by a second do not make it wider
    assert median_difference(ones, ones) == (0, 0, 0)


def test_figures_are_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = tuple(Request(0.01 * number, 0.1 * number, (0.001, 0.003)) for number in range(1, 101))
    monkeypatch.setattr(latency, "has_power_counters", lambda: False)
    found = Latency(requests, 1e-6).to_json()
    assert found["requests"] == 100
    assert found["first_token_p50_s"] == pytest.approx(5.05)
    assert found["first_token_p95_s"] == pytest.approx(9.505)
    assert found["token_p50_s"] == pytest.approx(0.002)
    assert found["answer_p50_s"] == pytest.approx(5.054)
    assert found["route_share"] == pytest.approx(0.1)
    assert found["joules_per_answer"] == pytest.approx(3.6 / 100)
    assert found["energy_is_an_estimate"] is True
    nothing = Latency(requests[:1], None).to_json()
    assert (nothing["joules_per_answer"], nothing["energy_is_an_estimate"]) == (None, None)
    assert Latency((Request(0.1, 0.2, ()),), None).to_json()["token_p50_s"] is None


def test_energy_is_of_the_requests(model: PreTrainedModel) -> None:
    found = measure_latency(PROMPTS[:2], lambda _prompt: [1, 2], {"a": lambda _prompt: model}, 2, energy=True)["a"]
    assert found.kwh is not None
    assert found.kwh > 0
