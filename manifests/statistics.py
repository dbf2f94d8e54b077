"""What the footers of a manifest's data files say: rows and splits, without reading a page.

Cost: one footer a file.
"""

import pyarrow as pa

from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.parquet import read_footer
from lmsplit.manifests.reader import Manifest


def splits_by_file(manifest: Manifest) -> dict[str, str]:
    """Return the split of each data file; a file holds one split only.

    Raises:
        DamagedError: a file holds several, or its footer does not say.
    """
    return {entry.path: _split(manifest, entry.path) for entry in manifest.data_files()}


def _split(manifest: Manifest, path: str) -> str:
    found = set()
    try:
        metadata = read_footer(manifest.store, path)
        column = metadata.schema.to_arrow_schema().get_field_index("split")
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(column).statistics
            found |= {statistics.min, statistics.max} if statistics else {None}
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DamagedError(path, f"{path} has a footer that cannot be read ({error}): run lmsplit verify --deep") from error
    if len(found) != 1 or None in found:
        raise DamagedError(path, f"{path} should hold one split, found {sorted(map(str, found))}: run lmsplit verify --deep")
    return str(found.pop())
