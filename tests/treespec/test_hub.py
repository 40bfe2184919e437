"""The hub is asked once, briefly."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from treespec import hub


class _Saying(http.server.BaseHTTPRequestHandler):
    """Answers with the number that the path holds, 200 without one."""

    def do_HEAD(self) -> None:
        self.send_response(int(self.path.strip("/") or 200))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Saying) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes calls and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("status", "reachable"), [(200, True), (401, True), (404, True), (407, False), (503, False)])
def test_an_answer_counts_unless_the_server_failed(status: int, reachable: bool, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"{server}/{status}")
    assert hub.is_reachable() == reachable


def test_offline_mode_asks_nobody(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.is_reachable()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://nowhere.invalid", "not-an-address"])
def test_nobody_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert not hub.is_reachable(patience=2.0)


def test_silence_is_given_up_on_in_time(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    start = time.perf_counter()
    assert not hub.is_reachable(patience=0.3)
    assert time.perf_counter() - start < 1.5
    assert hub.PATIENCE_SECONDS < 5


@pytest.mark.parametrize(
    ("name", "possible"),
    [
        ("gpt2", True),
        ("a/b", True),
        ("JackFram/llama-68m", True),
        ("./a", False),
        ("/a/b", False),
        ("a/b/c", False),
        ("a/", False),
        ("", False),
        ("a b", False),
    ],
)
def test_repository_ids(name: str, possible: bool) -> None:
    assert hub.is_repository_id(name) == possible
