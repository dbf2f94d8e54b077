"""Where things lie in a manifest. The only module that knows paths; it reads and writes nothing.

```
<manifest>/
  commits/00000.json                                  the newest one is the manifest
  plans/<sha>.json
  domains/<sha>.parquet
  placement/<sha>.safetensors  placement/<sha>.json   the rule's arrays, and what they mean
  ids/00000-<sha>.parquet                             by range of the id's hash
  data/d00007/part-00000-<sha>.parquet
  quarantine/part-00000-<sha>.parquet
  exclusions/part-00000-<sha>.parquet
  embeddings/00012-<sha>.parquet                      by work unit, where they are kept
  README.md                                           derived, mutable
  _work/<run id>/                                     receipts and pieces of a run
```

`<sha>` is the first 16 hexadecimal digits of the file's SHA-256; the commit holds all 64. Paths are POSIX and relative to the
manifest, so that a copied or uploaded manifest is the same manifest.
"""

import re

SHA_DIGITS = 16
CARD = "README.md"
WORK = "_work"
COMMITS = "commits"
FOLDERS = ("commits", "plans", "domains", "placement", "ids", "data", "quarantine", "exclusions", "embeddings")

_COMMIT = re.compile(r"([0-9]{5,})\.json")


def commit_path(version: int) -> str:
    """Return the path of commit number `version` (0, 1, …)."""
    return f"{COMMITS}/{version:05d}.json"


def commit_version(name: str) -> int | None:
    """Return the number of the commit whose file is called `name`, or None for any other file.

    >>> commit_version("00007.json"), commit_version("000007.json")
    (7, None)
    """
    match = _COMMIT.fullmatch(name)
    version = int(match[1]) if match else None
    return version if version is not None and name == f"{version:05d}.json" else None


def domain_name(index: int) -> str:
    """Return the name of the domain on leaf `index`; it is a name for ever, the label is data.

    >>> domain_name(7)
    'd00007'
    """
    return f"d{index:05d}"


def domain_index(name: str) -> int:
    """Return the leaf whose domain is called `name`.

    >>> domain_index("d00007")
    7
    """
    return int(name[1:])


def plan_path(sha256: str) -> str:
    """Return the path of the plan with this digest."""
    return f"plans/{sha256[:SHA_DIGITS]}.json"


def domains_path(sha256: str) -> str:
    """Return the path of the domain table with this digest."""
    return f"domains/{sha256[:SHA_DIGITS]}.parquet"


def placement_path(sha256: str, suffix: str) -> str:
    """Return the path of a placement file; `suffix` is `safetensors` or `json`."""
    return f"placement/{sha256[:SHA_DIGITS]}.{suffix}"


def ids_path(hash_range: int, sha256: str) -> str:
    """Return the path of the id index of hash range `hash_range`."""
    return f"ids/{hash_range:05d}-{sha256[:SHA_DIGITS]}.parquet"


def data_path(domain: str, part: int, sha256: str) -> str:
    """Return the path of part `part` of a domain's documents.

    >>> data_path("d00007", 0, "00ff" * 16)
    'data/d00007/part-00000-00ff00ff00ff00ff.parquet'
    """
    return f"data/{domain}/part-{part:05d}-{sha256[:SHA_DIGITS]}.parquet"


def quarantine_path(part: int, sha256: str) -> str:
    """Return the path of part `part` of the quarantine."""
    return f"quarantine/part-{part:05d}-{sha256[:SHA_DIGITS]}.parquet"


def exclusions_path(part: int, sha256: str) -> str:
    """Return the path of part `part` of the exclusions."""
    return f"exclusions/part-{part:05d}-{sha256[:SHA_DIGITS]}.parquet"


def embeddings_path(unit: int, sha256: str) -> str:
    """Return the path of the kept vectors of work unit `unit`."""
    return f"embeddings/{unit:05d}-{sha256[:SHA_DIGITS]}.parquet"


def work_path(run_id: str) -> str:
    """Return the folder of a run's receipts and pieces."""
    return f"{WORK}/{run_id}"
