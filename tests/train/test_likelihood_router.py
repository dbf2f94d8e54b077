"""Routing by what the experts make of a prompt, against their likelihoods one at a time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.likelihood_router import LikelihoodRouter
from lmsplit.train.models import load_model
from lmsplit.train.router import Router, Routing
from lmsplit.train.tokenizer import DocumentEncoder, open_tokenizer
from tests.train.runs import Command, heldout_texts, write_configuration

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

DOMAINS = ("d00000", "d00001", "d00002")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, licensed_manifest: Path) -> Path:
    """A training whose experts are done; read it."""
    from lmsplit.train import experts
    from tests.train.runs import campaign_of

    path = write_configuration(tmp_path_factory.mktemp("trained"), licensed_manifest)
    experts.train_all(campaign_of(path))
    return path.parent / "out"


@torch.no_grad()
def nats(output: Path, domain: str, text: str, length: int) -> float:
    encoder = DocumentEncoder(open_tokenizer(str(output / "tokenizer")))
    ids = encoder.encode([encoder.beginnings([text], length)[0]])[0]
    logits = load_model(output / "experts" / domain)(input_ids=torch.tensor([[encoder.begin_id, *ids]])).logits[0].double()
    return -float(sum(torch.log_softmax(logits, -1)[place, token] for place, token in enumerate(ids)))


def test_the_least_surprised_expert_answers(output: Path, licensed_manifest: Path) -> None:
    texts = [text for domain in DOMAINS for text in heldout_texts(licensed_manifest, domain)[:3]]
    routes = LikelihoodRouter.open(output, prompt_tokens=6, settings=Routing(num_experts=3)).route(texts)
    for text, route in zip(texts, routes, strict=True):
        surprise = {domain: nats(output, domain, text, 6) for domain in DOMAINS}
        first, second, _ = sorted(surprise, key=surprise.__getitem__)
        assert (route.domain, route.expert, route.runner_up) == (first, f"experts/{first}", second)
        assert route.margin == pytest.approx(surprise[second] - surprise[first], abs=1e-4)
        posterior = np.exp([-surprise[domain] for domain in DOMAINS])
        weights = [route.weights[f"experts/{domain}"] for domain in DOMAINS]
        assert weights == pytest.approx(posterior / posterior.sum(), rel=1e-4)


def test_a_text_without_tokens_and_a_close_one_go_to_the_seed(output: Path) -> None:
    empty, close = LikelihoodRouter.open(output, settings=Routing(min_margin=1e6)).route(["", "a few words"])
    assert (empty.domain, empty.expert, empty.fallback) == (None, "seed", True)
    assert (close.expert, close.fallback) == ("seed", True)
    assert "is below 1e+06" in str(close.reason)


def test_half_a_surrogate_pair_is_routed(output: Path, licensed_manifest: Path) -> None:
    text = heldout_texts(licensed_manifest, "d00000")[0]
    for router in (LikelihoodRouter.open(output), Router.open(output)):
        cut, whole = router.route([f"{text} \ud83d", f"{text} ?"])
        assert cut == whole
        assert cut.domain is not None


def test_a_router_notices_that_an_expert_goes_and_comes_back(output: Path, licensed_manifest: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "served")
    router = Router.open(tmp_path / "served")
    text = heldout_texts(licensed_manifest, "d00000")[0]
    first = router.route([text])[0]
    assert first.expert == f"experts/{first.domain}"
    (tmp_path / "served" / first.expert).rename(tmp_path / "away")
    gone = router.route([text])[0]
    assert (gone.expert, gone.reason) == ("seed", f"{first.expert} is missing")
    shutil.copytree(tmp_path / "away", tmp_path / "served" / first.expert)
    assert router.route([text]) == [first]
    weights = tmp_path / "served" / first.expert / "model.safetensors"
    replaced = weights.with_suffix(".new")
    replaced.write_bytes(weights.read_bytes()[:-1] + b"x")
    replaced.rename(weights)
    assert "has weights with digest" in str(router.route([text])[0].reason)


def test_every_expert_is_needed(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "experts" / "d00001")
    with pytest.raises(ConfigurationError, match="experts/d00001 is missing: routing by likelihood needs every expert"):
        LikelihoodRouter.open(tmp_path / "part")


def test_the_command_routes_by_likelihood(output: Path, lmsplit: Command) -> None:
    result = lmsplit("route", str(output), "--by-likelihood", "--text", "a few words", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found == LikelihoodRouter.open(output).route(["a few words"])[0].to_json()
    result = lmsplit("route", str(output), "--by-likelihood", "--model", "x", "--text", "a")
    assert (result.code, "which --by-likelihood does without" in result.err) == (2, True)
