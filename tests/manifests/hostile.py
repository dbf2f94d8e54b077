"""A corpus that would do harm where a text is taken for more than a text: markup, scripts, formulas, control characters."""

import json
from pathlib import Path

from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition

SCRIPT = "</script><script>window.harmed = true</script><img src=x onerror='window.harmed = true'>"
MARKUP = "[bold red]markup[/bold red] {{ 7 * 7 }} {% raw %} \u2028 \x07 \x1b[31m"
TOPICS = {
    "kitchen": "bake the bread with flour and yeast in the oven until the crust is golden and serve it warm",
    "harbour": "the ship left the harbour with its sails full of wind and the crew sang on the deck at sea",
    "orchard": "apples and pears ripen on the trees in the orchard while bees carry pollen between blossoms",
}


def write_hostile_corpus(directory: Path, documents_per_topic: int = 40) -> None:
    """Write one JSONL file of three topics, each text, id, source and licence with something harmful in it."""
    lines = []
    for topic, words in TOPICS.items():
        terms = words.split()
        for number in range(documents_per_topic):
            turned = " ".join(terms[number % len(terms) :] + terms[: number % len(terms)])
            row = {
                "id": f"{topic}/{number}<b onclick='window.harmed = true'>",
                "text": f"{SCRIPT} {topic} {turned} {number} {MARKUP}",
                "source": f"{topic} {SCRIPT}" if number % 2 else None,
                "license": f"=HYPERLINK('x') {MARKUP}",
            }
            lines.append(json.dumps(row))
    lines.append("not JSON " + SCRIPT)
    (directory / "hostile.jsonl").write_text("\n".join(lines) + "\n")


def publish_hostile(directory: Path) -> Path:
    """Publish the corpus as a manifest of three domains; return where."""
    corpus = directory / "corpus"
    corpus.mkdir()
    write_hostile_corpus(corpus)
    output = directory / "hostile"
    settings = {
        "input": {"paths": str(corpus), "keep": ["license"]},
        "output": str(output),
        "domains": 3,
        "encoder": "lexical",
        "max_bad_fraction": 0.1,
        "executor": {"workers": 1},
    }
    partition(Partition.model_validate(settings))
    return output
