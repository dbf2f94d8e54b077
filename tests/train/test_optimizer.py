"""The seed's optimizer, handed on to an expert: its first step against AdamW written out by hand."""

import json
import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train import experts
from lmsplit.train.optimizer import OPTIMIZER
from lmsplit.train.record import RunRecord
from tests.train.runs import campaign_of, tensors, write_configuration

pytestmark = [pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"), pytest.mark.usefixtures("one_thread")]

KEPT = "expert.optimizer_state=kept"
RATE, BETAS, DECAY, EPSILON = 0.01, (0.9, 0.95), 0.1, 1e-8
ONE_STEP = ("expert.tokens=1", "expert.sft={lr_scheduler_type: constant, warmup_steps: 0}")
DOMAIN = "d00001"


@pytest.fixture
def path(tmp_path: Path, licensed_manifest: Path) -> Path:
    """A configuration whose seed is trained, its optimizer kept."""
    path = write_configuration(tmp_path, licensed_manifest)
    experts.train_seed(campaign_of(path, KEPT))
    return path


def train_expert(path: Path, *overrides: str) -> RunRecord:
    campaign = campaign_of(path, *overrides)
    record = experts.train_expert(campaign, campaign.manifest.domain(DOMAIN), experts.seed_record(campaign))
    assert record is not None
    return record


def gradients_of_first_step(output: Path, run: Path) -> dict[str, torch.Tensor]:
    """Return the clipped gradients of the seed's weights on an expert's first rows, each piece of a document by itself."""
    model = AutoModelForCausalLM.from_pretrained(output / "seed")
    (pack,) = json.loads((run / "lineage.json").read_text())["packs"]
    with pa.memory_map(str(output / "packed" / pack["digest"] / "rows.arrow")) as source:
        rows = pa.ipc.open_stream(source).read_all().to_pylist()
    nats, count = torch.zeros(()), 0
    for drawn in pq.read_table(run / "order.parquet").to_pylist():
        assert drawn["step"] == 1
        ids, start = rows[drawn["row"]]["input_ids"], 0
        for length in rows[drawn["row"]]["seq_lengths"]:
            piece = torch.tensor([ids[start : start + length]])
            start += length
            nats += functional.cross_entropy(model(piece).logits[0, :-1], piece[0, 1:], reduction="sum")
            count += length - 1
    (nats / count).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
    return {name: gradient * min(1.0, 1.0 / norm) for name, gradient in gradients.items()}


def by_hand(output: Path, run: Path, *, kept: bool) -> dict[str, torch.Tensor]:
    """Return the weights after one step of AdamW (arXiv 1711.05101, algorithm 2) from the seed's weights, and its moments."""
    state, before = load_file(output / "seed" / OPTIMIZER), tensors(output / "seed")
    after = {}
    for name, gradient in gradients_of_first_step(output, run).items():
        first, second, step = torch.zeros_like(gradient), torch.zeros_like(gradient), 1.0
        if kept:
            first, second = state[f"{name}/exp_avg"], state[f"{name}/exp_avg_sq"]
            step = float(state[f"{name}/step"]) + 1
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        update = first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
        decay = 0.0 if "norm" in name else DECAY
        after[name] = before[name] * (1 - RATE * decay) - RATE * update
    return after


@pytest.mark.parametrize("kept", [True, False])
def test_first_step_is_that_of_adamw_by_hand(path: Path, kept: bool) -> None:
    output = path.parent / "out"
    record = train_expert(path, *ONE_STEP, *([KEPT] if kept else []))
    assert record.num_steps == 1
    found = tensors(output / "experts" / DOMAIN)
    expected, other = (by_hand(output, output / "experts" / DOMAIN, kept=each) for each in (kept, not kept))
    # A fresh optimizer's first step is the gradient's sign: where that is nearly 0, rounding decides.
    error = {name: float((found[name] - tensor).abs().median()) for name, tensor in expected.items()}
    assert max(error.values()) < 1e-6
    if kept:
        assert all(torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-6) for name, tensor in expected.items())
    difference = {name: float((found[name] - tensor).abs().max()) for name, tensor in other.items()}
    assert min(difference[name] for name in difference if "norm" not in name) > 1e-3


def test_state_is_safetensors_by_the_names_of_the_parameters(path: Path) -> None:
    seed = path.parent / "out" / "seed"
    state, weights = load_file(seed / OPTIMIZER), tensors(seed)
    assert set(state) == {f"{name}/{key}" for name in weights for key in ("exp_avg", "exp_avg_sq", "step")}
    assert {float(tensor) for name, tensor in state.items() if name.endswith("/step")} == {16.0}
    assert all(state[f"{name}/exp_avg"].shape == tensor.shape for name, tensor in weights.items())


def test_experts_of_either_kind_are_told_apart(path: Path) -> None:
    train_expert(path, KEPT)
    with pytest.raises(ConfigurationError, match="was trained with another optimizer_state: choose another output"):
        train_expert(path)


def test_state_does_not_change_the_seed(path: Path, licensed_manifest: Path) -> None:
    plain = experts.train_seed(campaign_of(path, f"output={path.parent / 'plain'}"))
    assert plain is not None
    assert plain.weights_sha256 == experts.seed_record(campaign_of(path, KEPT)).weights_sha256
    assert not (path.parent / "plain" / "seed" / OPTIMIZER).exists()


def test_seed_without_a_saved_state_is_a_clear_error(path: Path) -> None:
    (path.parent / "out" / "seed" / OPTIMIZER).unlink()
    with pytest.raises(ConfigurationError, match=r"optimizer_state\.safetensors is missing: .* train it again in another output"):
        train_expert(path, KEPT)
    assert not (path.parent / "out" / "experts" / DOMAIN).exists()


def test_state_of_another_model_is_a_clear_error(path: Path) -> None:
    state = path.parent / "out" / "seed" / OPTIMIZER
    found = {name: tensor for name, tensor in load_file(state).items() if not name.startswith("model.norm.weight/")}
    save_file(found, state)
    with pytest.raises(ConfigurationError, match=r"is of another model: they differ in model\.norm\.weight"):
        train_expert(path, KEPT)


def test_state_is_not_needed_for_a_fresh_optimizer(path: Path) -> None:
    plain = shutil.copytree(path.parent / "out", path.parent / "plain")
    (plain / "seed" / OPTIMIZER).unlink()
    assert train_expert(path, f"output={plain}").weights_sha256 == train_expert(path).weights_sha256
