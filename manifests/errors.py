"""The errors that users meet, each with the exit code its command ends with.

```
LmsplitError            1   something a user can act on
├── ConfigurationError  2   bad usage or configuration (also a ValueError)
├── InputError          3   bad input past its limit (also a ValueError)
├── ConflictError       4   another writer was there first
└── ManifestError       1   a manifest is missing, damaged or of an unknown version
    └── DamagedError    1   one of its files is not what was published
```

Every message names what is wrong, the value found, the value expected, and what to do next.
"""


class LmsplitError(Exception):
    """Base of every deliberate error of lmsplit; its text is meant for the user."""

    exit_code = 1


class ConfigurationError(LmsplitError, ValueError):
    """A command, an option or a configuration key cannot be used as given."""

    exit_code = 2


class InputError(LmsplitError, ValueError):
    """The corpus cannot be read, or too much of it had to be quarantined."""

    exit_code = 3


class ConflictError(LmsplitError):
    """Another run already published something different in the same place."""

    exit_code = 4


class ManifestError(LmsplitError):
    """A manifest is missing, damaged, or written by a version that this one cannot read."""


class DamagedError(ManifestError):
    """A file of a manifest is not what was published.

    Args:
        path: the file, relative to the manifest.
        message: what is wrong with it, for the user.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)  # both, or it could not travel from a worker process
        self.path = path

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[1])
