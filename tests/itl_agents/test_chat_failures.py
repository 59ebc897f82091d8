"""What a server may do wrong: a small one of our own that fails as it is told, over real HTTP."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from itl_agents.chat import ChatAgent, ServerFailure
from itl_env.errors import ConfigError

from .test_huggingface import talks


class FailingServer(ThreadingHTTPServer):
    """Answers each request with the next of `statuses`, the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[tuple[int, Any]] = [(200, None)]
        self.pause = 0.0
        self.lock = threading.Lock()
        self.n_requests = self.n_open = self.most_open = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that gave up in the meantime is what some tests are about.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: FailingServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.n_requests += 1
            server.n_open += 1
            server.most_open = max(server.most_open, server.n_open)
            status, why = server.statuses[0]
            if len(server.statuses) > 1:
                server.statuses.pop(0)
        time.sleep(server.pause)
        with server.lock:
            server.n_open -= 1
        said = f"You said: {request['messages'][-1]['content']}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"content": said}}
        body: Any = {"choices": [choice]} if status == 200 else why
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FailingServer]:
    made = FailingServer()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_no_more_requests_are_under_way_than_wanted(server: FailingServer) -> None:
    server.pause = 0.05
    asked = talks(*(f"Question {n}?" for n in range(12)))
    said = ChatAgent("m", url=server.url, at_once=3).respond(asked)
    assert [turn.text for turn in said] == [f"You said: Question {n}?" for n in range(12)]
    assert server.most_open == 3


def test_a_busy_server_is_asked_again(server: FailingServer) -> None:
    server.statuses = [(503, {}), (429, {}), (200, None)]
    (said,) = ChatAgent("m", url=server.url, retries=2).respond(talks("Who?"))
    assert said.text == "You said: Who?"
    assert server.n_requests == 3


def test_a_server_that_stays_busy_has_failed(server: FailingServer) -> None:
    server.statuses = [(503, {"message": "no room"})]
    with pytest.raises(ServerFailure, match=r"failed when 'm' was asked: .*no room"):
        ChatAgent("m", url=server.url, retries=1).respond(talks("Who?"))
    assert server.n_requests == 2


@pytest.mark.parametrize(
    ("status", "why", "told"),
    [
        (401, {"error": {"message": "bad key"}}, "refuses the key; set OPENAI_API_KEY.*bad key"),
        (
            404,
            {"detail": "unknown model"},
            "has no model 'm', or no chat there; its URL .*/v1.*unknown model",
        ),
        (400, "seed is odd", "does not take the request: .*seed is odd"),
    ],
)
def test_a_request_that_is_refused_is_not_repeated(
    server: FailingServer, status: int, why: Any, told: str
) -> None:
    server.statuses = [(status, why)]
    with pytest.raises(ConfigError, match=told):
        ChatAgent("m", url=server.url, retries=3).respond(talks("Who?"))
    assert server.n_requests == 1


def test_a_conversation_that_is_too_long_ends_alone(server: FailingServer) -> None:
    server.statuses = [(400, {"error": "exceeds the context length"}), (200, None)]
    said = ChatAgent("m", url=server.url, at_once=1).respond(talks("Long?", "Short?"))
    assert [turn.finish_reason for turn in said] == ["error", "stop"]


def test_others_are_not_waited_for_where_one_has_failed(server: FailingServer) -> None:
    server.statuses = [(401, {}), (200, None)]
    server.pause = 0.2
    asked = talks(*(f"Question {n}?" for n in range(50)))
    with pytest.raises(ConfigError):
        ChatAgent("m", url=server.url, at_once=2, retries=0).respond(asked)
    assert server.n_requests < 10


def test_a_reply_that_takes_too_long_is_a_failure(server: FailingServer) -> None:
    server.pause = 2.0
    with pytest.raises(ServerFailure, match=r"took longer than 0\.2 s"):
        ChatAgent("m", url=server.url, timeout=0.2, retries=0).respond(talks("Who?"))
