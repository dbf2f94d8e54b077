"""What `verify` reports: one finding for each thing that is wrong."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that is wrong with a manifest."""

    code: str
    """A fixed word; `manifests/README.md` lists them."""
    where: str
    """The file, and the row in it, or the entry of the commit."""
    expected: str
    found: str
    remedy: str
    """What to do next, as a sentence without its full stop."""
