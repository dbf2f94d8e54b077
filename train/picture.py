"""A picture as an SVG with the same bytes for the same numbers; matplotlib is imported when one is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lmsplit.manifests.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SETTINGS: Final[dict[str, Any]] = {"svg.hashsalt": "lmsplit", "svg.fonttype": "none"}


@contextmanager
def picture(path: Path, size: tuple[float, float], **settings: Any) -> Iterator["Figure"]:
    """Give a figure to draw on, and write it when the block ends without an error.

    Args:
        path: of the SVG.
        size: width and height, inches.
        settings: of matplotlib, besides those that make it the same every time.

    Raises:
        ConfigurationError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigurationError("the picture needs matplotlib, which is not installed: pip install matplotlib") from error
    image = BytesIO()
    with mpl.rc_context(_SETTINGS | settings):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(image, format="svg", metadata={"Date": None})
    path.write_bytes(image.getvalue())
