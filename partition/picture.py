"""Draws what `suggest` found: stability, held-out inertia and domain sizes over the number of domains, one panel each.

Readable without colour: each line has its own marker and dashes, and the recommended number is in the title and the legends. The
same input gives the same bytes with the same matplotlib, whose settings stay as they were. This does *not* decide anything.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.partition.suggest import STABILITY_EXPONENT, Assessment, Recommendation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES: Final = (".svg", ".png")
_BLUE: Final = "#0072B2"
_ORANGE: Final = "#D55E00"
"""Two colours that colour-blind people tell apart, of unequal lightness (Okabe and Ito 2008)."""
_SIZE_INCHES: Final = (6.4, 7.2)
_SETTINGS: Final[dict[str, Any]] = {"svg.hashsalt": "lmsplit", "svg.fonttype": "none", "font.family": "sans-serif"}
"""A fixed salt makes the ids in an SVG the same each time; its text stays text, to be searched and read aloud."""


def draw(assessments: Sequence[Assessment], recommendation: Recommendation, path: Path) -> None:
    """Draw the assessments, with the recommended number of domains marked.

    Args:
        assessments: by rising k, at least one.
        recommendation: the number to mark.
        path: where to write; its suffix says the format, .svg or .png.

    Raises:
        ConfigurationError: the suffix is another one, or matplotlib is missing.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(f"{path}: a picture's name ends in {' or '.join(SUFFIXES)}, found {path.suffix!r}")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigurationError("the picture needs matplotlib, which is not installed: pip install matplotlib") from error
    image = BytesIO()
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        figure.suptitle(f"Number of domains: {recommendation.k} recommended")
        _fill(figure.subplots(3, 1, sharex=True), assessments, recommendation)
        # A date, or the library's version, would make equal pictures unequal files.
        figure.savefig(image, format=path.suffix[1:], dpi=150, metadata={"Date" if path.suffix == ".svg" else "Software": None})
    path.write_bytes(image.getvalue())


def _fill(panels: "Sequence[Axes]", assessments: Sequence[Assessment], recommendation: Recommendation) -> None:
    ks = [assessment.k for assessment in assessments]
    stability, inertia, sizes = panels
    best = max(assessment.score for assessment in assessments) or 1.0
    _line(stability, ks, [assessment.stability for assessment in assessments], "stability")
    label = f"explained × stability^{STABILITY_EXPONENT}, over its best"
    _line(stability, ks, [assessment.score / best for assessment in assessments], label, _ORANGE, "s--")
    _line(inertia, ks, [assessment.heldout_inertia for assessment in assessments])
    _line(sizes, ks, [assessment.largest for assessment in assessments], "largest domain")
    _line(sizes, ks, [assessment.smallest for assessment in assessments], "smallest domain", _ORANGE, "s--")
    stability.set(ylabel="stability\n(adjusted Rand index)", ylim=(min(0.0, *(a.stability for a in assessments)), 1.05))
    inertia.set_ylabel("held-out inertia\n(mean squared distance)")
    sizes.set(ylabel="size over the mean", xlabel="number of domains k")
    sizes.set_xscale("log", base=2)
    sizes.set_xticks(ks, labels=[str(k) for k in ks])
    sizes.minorticks_off()
    for panel in panels:
        panel.axvline(recommendation.k, color="0.3", linestyle=":", linewidth=1.5, label=f"k = {recommendation.k}")
        panel.grid(axis="y", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in (stability, sizes):  # above the panel, where no line can run into it
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def _line(
    panel: "Axes", ks: Sequence[int], values: Sequence[float], label: str = "", color: str = _BLUE, style: str = "o-"
) -> None:
    panel.plot(ks, values, style, color=color, label=label or None, markersize=4.5, linewidth=1.4)
