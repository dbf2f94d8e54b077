"""Draws an evaluation: the heat map of every expert on every domain, the ways to answer, and routing by length of the prompt.

Reads the plain object that `evaluate` returns. Labels come from a corpus and are shown as text.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lmsplit.train.picture import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREY = "#2166ac", "#d6604d", "0.45"
_LONGEST: Final = 24
_WRITTEN: Final = 16
"""Domains up to which the cells of the heat map have their numbers."""


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw an evaluation as an SVG.

    Args:
        found: from `evaluate.evaluate`.
        path: where to write.

    Raises:
        ConfigurationError: matplotlib is missing.
    """
    size = max(4.2, 0.42 * len(found["domains"]))
    with picture(path, (2.2 * size + 1.5, size + 4.5), **{"font.size": 9}) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(size, 3.6), width_ratios=(1.25, 1))
        _heat_map(figure.add_subplot(grid[0, :]), found)
        _ways(figure.add_subplot(grid[1, 0]), found)
        _routing(figure.add_subplot(grid[1, 1]), found)


def _heat_map(axes: "Axes", found: dict[str, Any]) -> None:
    m_KK = np.array(found["cross_loss"]["nats_per_token"], float)
    most = float(np.nanmax(np.abs(m_KK))) or 1.0
    image = axes.imshow(m_KK, cmap="RdBu_r", vmin=-most, vmax=most)
    names = [each["domain"] for each in found["domains"]]
    labels = [_short(f"{each['domain']} {each['label'] or ''}") for each in found["domains"]]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), labels, parse_math=False)
    axes.set(xlabel="held-out documents of", ylabel="expert of")
    if len(names) <= _WRITTEN:
        for (row, column), value in np.ndenumerate(m_KK):
            if np.isnan(value):
                continue
            dark = abs(value) > 0.6 * most
            axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    axes.figure.colorbar(image, ax=axes, label="nats per token above the seed", shrink=0.85)
    summary = f"specialization {found['specialization']:.3f}, interference {found['interference']:.3f}"
    axes.set_title(f"Every expert on every domain: {summary}", loc="left")


def _ways(axes: "Axes", found: dict[str, Any]) -> None:
    rows = sorted(found["answers"], key=lambda row: -row["nats_per_token"])
    for place, row in enumerate(rows):
        color = _ORANGE if row["way"].startswith(("seed", "merged", "dense")) else _BLUE
        color = _GREY if row["way"] in ("best expert", "own domain", "any expert", "another expert") else color
        axes.plot([row["low"], row["high"]], [place, place], color=color, linewidth=2)
        axes.plot(row["nats_per_token"], place, "o", color=color)
    axes.set_yticks(range(len(rows)), [row["way"] for row in rows])
    axes.set_xlabel("nats per token after the prompt, 95 % interval")
    axes.set_title("Ways to answer: with experts, with one model, for comparison", loc="left")
    axes.grid(axis="x", alpha=0.3)


def _routing(axes: "Axes", found: dict[str, Any]) -> None:
    rows = found["routing"]
    lengths = [row["tokens"] for row in rows]
    for kind, color, name in (
        ("prompts", _BLUE, "by the rule for prompts"),
        ("placement", "C2", "by the manifest's own rule"),
        ("likelihood", _ORANGE, "by likelihood"),
        ("labels", _GREY, "to its label"),
    ):
        if all(kind in row for row in rows):
            values = [row[kind] for row in rows]
            axes.plot(lengths, [each["accuracy"] for each in values], "o-", color=color, label=name, markersize=4)
            axes.fill_between(
                lengths, [each["low"] for each in values], [each["high"] for each in values], color=color, alpha=0.15
            )
    axes.axhline(rows[0]["chance"], color="0.7", linestyle=":", label="chance")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set(xlabel="tokens of the prompt", ylabel="share routed right", ylim=(0, 1.02))
    axes.set_title("Prompts routed to their documents' domains", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
