"""An object store whose answers are lost, or end in the middle: the run ends with the same commit all the same."""

import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import s3fs

from lmsplit.manifests import object_store
from lmsplit.manifests.object_store import ObjectStore
from lmsplit.manifests.verify import verify_manifest
from tests import object_store as fixtures
from tests.cluster.runs import lmsplit
from tests.partition.trials import Undisturbed, command
from tests.partition.trials import undisturbed as undisturbed  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Proxy(ThreadingHTTPServer):
    """Stands between a client and the store, and fails each request of some kinds once.

    Args:
        endpoint: the store's.
        loses: methods that the store carries out, and whose answer never comes.
        cuts: methods whose answer ends in the middle.
    """

    daemon_threads = True

    def __init__(self, endpoint: str, *, loses: tuple[str, ...] = (), cuts: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = endpoint.removeprefix("http://")
        self.loses, self.cuts = loses, cuts
        self.failed: list[str] = []
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def fails(self, request: str) -> bool:
        """Whether this is the first time of a request."""
        with self._lock:
            if first := request not in self.failed:
                self.failed.append(request)
        return first

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that go."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _forward(self) -> None:
        sent = self._sent()
        store = http.client.HTTPConnection(self.server.store)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in {"connection", "transfer-encoding"}}
        store.request(self.command, self.path, sent, headers)
        answer = store.getresponse()
        body = answer.read()
        store.close()
        request = f"{self.command} {self.path} {self.headers.get('Range', '')}"
        if self.command in self.server.loses and self.server.fails(request):
            self._hang_up()
            return
        self.send_response_only(answer.status)
        length = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        for name, value in answer.headers.items():
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command in self.server.cuts and len(body) > 1 and self.server.fails(request):
            self.wfile.write(body[: len(body) // 2])
            self._hang_up()
        elif self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def _sent(self) -> bytes:
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def between(proxy: Proxy) -> Iterator[Proxy]:
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


@pytest.mark.parametrize("fault", ["lost", "cut"])
def test_run_ends_with_the_same_commit(undisturbed: Undisturbed, s3: fixtures.ObjectStore, tmp_path: Path, fault: str) -> None:
    url = f"s3://{s3.bucket()}/m"
    arguments = [*command(undisturbed.corpus, tmp_path / "m"), "--set", f"output={url}"]
    faults = {"lost": {"loses": ("PUT", "POST")}, "cut": {"cuts": ("GET",)}}[fault]
    with between(Proxy(s3.endpoint, **faults)) as proxy:
        done = lmsplit(*arguments, AWS_ENDPOINT_URL=proxy.endpoint)
        assert done.code == 0, done.err
        assert done.json["commit"] == undisturbed.commit
        checked = lmsplit("verify", url, "--deep", "--json", AWS_ENDPOINT_URL=proxy.endpoint)
        assert json.loads(checked.out) == {"ok": True, "findings": []}, checked.err
    paths = {request.split()[1].split("?")[0].rpartition("/m/")[2] for request in proxy.failed}
    assert paths > set(undisturbed.tree) | {"commits/00000.json"}
    store = ObjectStore(url)
    assert {name: store.read(name) for name in store.walk("") if not name.startswith(("_work/", "commits/"))} == undisturbed.tree
    assert list(store.entries("commits")) == ["00000.json"]
    assert verify_manifest(url) == []


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Clients that are made anew, as those before know another endpoint, and again afterwards."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


def test_large_file_is_there_once_though_every_answer_was_lost(
    s3: fixtures.ObjectStore, fresh: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spooled, bucket = tmp_path / "large", s3.bucket()
    spooled.write_bytes(os.urandom(11 * 2**20))
    fresh.setattr(object_store, "PART_BYTES", 5 * 2**20)
    with between(Proxy(s3.endpoint, loses=("PUT", "POST"), cuts=("GET",))) as proxy:
        fresh.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = ObjectStore(f"s3://{bucket}/m")
        store.put(spooled, "data/large")
        assert store.read("data/large") == spooled.read_bytes()
        with store.open("data/large") as stream:
            assert stream.read() == spooled.read_bytes()
        assert store.put(spooled, "data/large") is False
        assert store.sweep() == 0
        client = store._fs
        client.close_session(client.loop, client.s3)
    failed = [request.split()[:2] for request in proxy.failed]
    assert sum(method == "PUT" and "partNumber" in path for method, path in failed) >= 3
    assert any(method == "POST" and "uploadId" in path for method, path in failed)
    assert sum(method == "GET" for method, _ in failed) >= 2
