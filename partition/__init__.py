"""Corpus → manifest. `pipeline` is the map of the whole; the extra `partition` installs what it needs."""
