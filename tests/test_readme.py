"""The README stays true: its commands exist, its configurations load, its Python runs on a real manifest."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lmsplit.manifests.cli import _ELSEWHERE, main
from lmsplit.partition.config import Partition
from lmsplit.train.config import Training

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted({*_ELSEWHERE, "show", "verify", "explain", "diff", "report", "export"})


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readme_names_only_commands_and_options_that_exist(capsys):
    named = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ lmsplit")]
    assert named
    helps = {}
    for line in named:
        words = line.split("#")[0].split()[2:]
        command, options = words[0], [word for word in words if word.startswith("--")]
        assert command in COMMANDS, line
        if command not in helps:
            with pytest.raises(SystemExit, match=r"^0$"):
                main([command, "--help"])
            helps[command] = capsys.readouterr().out
        for option in options:
            assert option in helps[command], line


@pytest.mark.parametrize("block", blocks("yaml"))
def test_readme_configuration_loads(block):
    values = yaml.safe_load(block)
    model = Training if "manifest" in values else Partition
    model.model_validate(values)


@pytest.fixture(scope="module")
def experts_path(tmp_path_factory):
    """The parts of a training output that the README's Python opens: a seed of a few weights, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lmsplit.train.tokenizer import train_tokenizer

    path = tmp_path_factory.mktemp("trained") / "experts"
    tokenizer = train_tokenizer([[README]], 400)
    tokenizer.save_pretrained(path / "tokenizer")
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ends)).save_pretrained(path / "seed")
    return path


@pytest.mark.parametrize("block", blocks("python"))
def test_readme_python_runs(block, manifest_path, experts_path, tmp_path):
    (tmp_path / "manifest").symlink_to(manifest_path)
    (tmp_path / "experts").symlink_to(experts_path)
    environment = {"PATH": "", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", re.findall(r"\]\(([^)#:]+)\)", README))
def test_readme_links_lead_somewhere(name):
    assert (ROOT / name).exists()


def test_contributing_tree_names_every_module():
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = [path for folder in ("manifests", "partition", "train") for path in (ROOT / folder).glob("*.py")]
    missing = [path.name for path in modules if path.name not in tree and path.name != "__init__.py"]
    assert not missing
