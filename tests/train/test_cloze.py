"""Questions made of documents, and asked through lm-evaluation-harness."""

import io
import json
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lmsplit.train.cloze import make_questions
from lmsplit.train.config import Cloze
from lmsplit.train.evaluate_cli import view
from lmsplit.train.models import load_model
from lmsplit.train.tokenizer import DocumentEncoder, open_tokenizer, train_tokenizer
from tests.train.runs import Command, write_configuration

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]

ENCODER = DocumentEncoder(train_tokenizer([["a few words to learn from", "a few more words"]], 300))
LENGTHS = Cloze(context_tokens=6, continuation_tokens=5, choices=3)


def documents(count: int, domain: str = "d00000") -> list[tuple[str, str, str]]:
    return [(f"{domain}-{number}", " ".join(f"w{number}x{place}" for place in range(12)), domain) for number in range(count)]


def test_a_choice_is_the_documents_own_and_others_are_of_its_domain() -> None:
    given = [*documents(5), *documents(4, "d00001")]
    found = make_questions(given, ENCODER, LENGTHS, 64, 0)
    texts = {doc_id: (text, domain) for doc_id, text, domain in given}
    assert len(found) == len(given)
    for each in found:
        text, domain = texts[each.doc_id]
        assert text.startswith(each.context + each.choices[each.answer])
        assert len(each.choices) == 3 == len(set(each.choices))
        assert all(choice[0].isspace() and choice.strip() for choice in each.choices)
        others = [other for other, of in texts.values() if of == domain and other != text]
        wrong = [choice for number, choice in enumerate(each.choices) if number != each.answer]
        assert all(any(choice in other for other in others) for choice in wrong)
    assert len({each.answer for each in found}) > 1


def test_the_seed_decides() -> None:
    assert make_questions(documents(6), ENCODER, LENGTHS, 64, 1) == make_questions(documents(6), ENCODER, LENGTHS, 64, 1)
    assert make_questions(documents(6), ENCODER, LENGTHS, 64, 1) != make_questions(documents(6), ENCODER, LENGTHS, 64, 2)


def test_what_cannot_be_asked_is_left_out() -> None:
    assert make_questions(documents(2), ENCODER, LENGTHS, 64, 0) == []  # too few to choose from
    assert make_questions([("a", "short", "d00000"), *documents(2)], ENCODER, LENGTHS, 64, 0) == []
    unbroken = [(f"{number}", f"{number}" + "x" * 200, "d00000") for number in range(5)]
    assert make_questions(unbroken, ENCODER, LENGTHS, 64, 0) == []
    alike = [(f"{number}", documents(1)[0][1], "d00000") for number in range(5)]
    assert make_questions(alike, ENCODER, LENGTHS, 64, 0) == []  # all continuations are right


def test_a_choice_without_an_end_is_left_out() -> None:
    texts = [f"a{number} b c d e f g h " + "x" * 300 + " end of it" for number in range(5)]
    named = [(f"{number}", text, "d00000") for number, text in enumerate(texts)]
    assert make_questions(named, ENCODER, LENGTHS, 512, 0) == []
    assert make_questions(documents(5), ENCODER, LENGTHS, 12, 0) == []  # more than a model sees at once


class Asked(NamedTuple):
    """What the harness asks: a stand-in for its `Instance`, which needs a whole task."""

    args: tuple[str, ...]


def gpt2_like() -> DocumentEncoder:
    """A tokenizer with one special token, which it puts nowhere by itself."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(["a few words"], trainer=trainer)
    end = "<|endoftext|>"
    return DocumentEncoder(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end))


def test_the_harness_sees_texts_as_training_does(tmp_path: Path) -> None:
    from lmsplit.train.harness import open_model

    encoder = gpt2_like()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(encoder.tokenizer), initializer_range=0.5, **sizes)).eval()
    model.save_pretrained(tmp_path)
    opened = open_model(tmp_path, encoder, 32)
    context, continuation = "a few <|endoftext|>", " words"
    found, _ = opened.loglikelihood([Asked((context, continuation))], disable_tqdm=True)[0]
    both, before = encoder.encode([context + continuation, context])
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=torch.tensor([[encoder.begin_id, *both]])).logits[0].double(), -1)
    assert found == pytest.approx(sum(float(log_p[place, both[place]]) for place in range(len(before), len(both))), rel=1e-5)
    rolling = opened.loglikelihood_rolling([Asked((context,))])[0]
    assert rolling == pytest.approx(sum(float(log_p[place, token]) for place, token in enumerate(before)), rel=1e-5)
    ids, mask = opened.tok_batch_encode(["a few words", "a"])
    assert ids[1][mask[1].bool()].tolist() == [encoder.begin_id, *encoder.encode(["a"])[0]]
    assert mask.sum(dim=1).tolist() == [len(encoder.encode([text])[0]) + 1 for text in ("a few words", "a")]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(), min_size=3, max_size=6))
def test_any_text_is_cut_where_it_stays_whole(texts: list[str]) -> None:
    named = [(str(number), text, "d00000") for number, text in enumerate(texts)]
    for each in make_questions(named, ENCODER, Cloze(context_tokens=2, continuation_tokens=2, choices=2), 64, 0):
        assert texts[int(each.doc_id)].startswith(each.context + each.choices[each.answer])


@torch.no_grad()
def best_choice(model, encoder: DocumentEncoder, context: str, choices: list[str]) -> int:
    """The choice with the highest log-likelihood per byte, one at a time."""
    scores = []
    for choice in choices:
        before, both = encoder.encode([context, context + choice])
        sequence = [encoder.begin_id, *both]
        log_p = torch.log_softmax(model(input_ids=torch.tensor([sequence])).logits[0].double(), -1)
        scores.append(
            sum(float(log_p[place, sequence[place + 1]]) for place in range(len(before), len(both))) / len(choice.encode())
        )
    return max(range(len(choices)), key=scores.__getitem__)


@pytest.mark.slow  # the harness alone takes half a minute
def test_the_harness_asks_the_routed_experts(tmp_path: Path, licensed_manifest: Path, lmsplit: Command) -> None:
    cloze = {"context_tokens": 8, "continuation_tokens": 6, "choices": 2}
    path = write_configuration(tmp_path, licensed_manifest, evaluation={"prompt_tokens": 6, "prefix_tokens": [6], "cloze": cloze})
    assert lmsplit("train", str(path), "--all").code == 0
    result = lmsplit("evaluate", str(path), "--json")
    assert result.code == 0, result.err
    assert all(json.loads(line)["event"] == "progress" for line in result.err.splitlines())
    found = json.loads(result.out)["cloze"]
    output = tmp_path / "out"
    encoder = DocumentEncoder(open_tokenizer(str(output / "tokenizer")))
    questions = [json.loads(line) for line in (output / "evaluation" / "cloze.jsonl").read_text().splitlines()]
    assert found["questions"] == len(questions) > 10
    assert found["chance"] == 0.5
    ways = {row["way"]: row for row in found["answers"]}
    assert set(ways) == {"routed", "own domain", "seed"}
    models = {name: load_model(output / name) for name in ("seed", "experts/d00000", "experts/d00001", "experts/d00002")}
    for domain in found["domains"]:
        mine = [each for each in questions if each["domain"] == domain]
        for way, name in (("seed", "seed"), ("own domain", f"experts/{domain}")):
            right = [best_choice(models[name], encoder, each["context"], each["choices"]) == each["answer"] for each in mine]
            assert ways[way]["domains"][domain] == pytest.approx(sum(right) / len(mine))
    for row in ways.values():
        assert row["accuracy"] == pytest.approx(sum(row["domains"].values()) / len(row["domains"]))
        assert row["low"] <= row["accuracy"] <= row["high"]
    answered = pl.read_parquet(output / "evaluation" / "cloze.parquet")
    assert answered["doc_id"].to_list() == [each["doc_id"] for each in questions]
    for way, row in ways.items():
        assert dict(answered.group_by("domain").agg(pl.col(way).mean()).iter_rows()) == pytest.approx(row["domains"])
    shown = Console(file=io.StringIO(), width=200)
    shown.print(view(json.loads(result.out), output / "evaluation"))  # asking again takes a minute
    assert "cloze questions, chance 50%" in shown.file.getvalue()
