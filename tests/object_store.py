"""An object store for tests: moto's S3 over HTTP in a process of its own, from an environment of its own.

moto's server moves botocore, which s3fs pins, so it is installed in `.venv/moto`, once, and never in the project's environment.
It holds the objects in memory: they are gone when the session ends.
"""

import itertools
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ENVIRONMENT = Path(__file__).parents[1] / ".venv" / "moto"
REQUIREMENT = "moto[server]>=5"
START_S = 60
REGION = "us-east-1"  # the one region where a bucket needs no location


class ObjectStore:
    """A running store.

    Attributes:
        endpoint: its URL; `AWS_ENDPOINT_URL` says so too.
        key: the access key, recognisable wherever it leaks.
        secret: the secret key, likewise.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.key = f"LEAKEDKEY{secrets.token_hex(8).upper()}"
        self.secret = f"leaked-secret-{secrets.token_hex(16)}"
        self._numbers = itertools.count()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which any S3 client finds the store."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
        }

    def bucket(self) -> str:
        """Create an empty bucket and return its name, which no other test has."""
        name = f"bucket-{next(self._numbers)}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(request).close()
        return name


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A store, to which the environment of this session's processes points."""
    server = install_server()
    port = free_port()
    log = tmp_path_factory.mktemp("object-store") / "log"
    store = ObjectStore(f"http://127.0.0.1:{port}")
    with log.open("wb") as output, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        command = [str(server), "-H", "127.0.0.1", "-p", str(port)]
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
            try:
                wait_until_up(store.endpoint, process, log)
                yield store
            finally:
                process.terminate()


def install_server() -> Path:
    """Return moto's server, installed where it is missing. Skip where it cannot be installed."""
    server = ENVIRONMENT / "bin" / "moto_server"
    if not server.exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        command = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", REQUIREMENT]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{REQUIREMENT} cannot be installed into {ENVIRONMENT}: {done.stderr.strip()[-500:]}")
    return server


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_up(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers; fail with the end of its log where it has ended or stays silent."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"moto's server does not answer at {endpoint} (exit status {process.poll()}): {log.read_text()[-2000:]}")
