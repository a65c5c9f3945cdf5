"""Messages if Prefect's server requires an auth string."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers.command_line import CommandResult, run_batchline
from helpers.prefect_settings import using_prefect

from batchline import Batchline
from batchline.models.errors import Interrupted
from batchline.orchestration.prefect_errors import describe_error

pytestmark = pytest.mark.system

GIVEN = "tester:w0ndrous"


class _Refusing(BaseHTTPRequestHandler):
    """Answers as Prefect's server does a client without its auth string."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = b'{"exception_message":"Unauthorized"}'
        self.send_response(401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PATCH = do_GET  # noqa: N815 - names of the standard library

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def auth_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def told(ended: CommandResult) -> str:
    """Return what the command printed, on one line."""
    assert "Traceback" not in ended.err
    return " ".join(ended.err.split())


def test_prefect_setup_without_auth_string_names_variable(auth_server):
    ended = run_batchline("prefect", "setup", PREFECT_API_URL=auth_server)

    assert ended.status == 6
    assert f"{auth_server} requires credentials; set PREFECT_API_AUTH_STRING" in told(ended)


def test_run_with_wrong_auth_string_names_variable_without_its_value(auth_server, start_simulator, request_file):
    variables = {"PREFECT_API_URL": auth_server, "PREFECT_API_AUTH_STRING": GIVEN}
    ended = run_batchline("run", request_file(3), OPENAI_BASE_URL=start_simulator().base_url, **variables)

    assert ended.status == 6
    assert "refuses PREFECT_API_AUTH_STRING" in told(ended)
    assert "to continue: batchline run --resume batch-" in told(ended)
    assert GIVEN not in ended.out + ended.err


def test_deployment_batch_without_auth_string_is_recorded_but_not_started(
    auth_server, start_simulator, request_file, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", start_simulator().base_url)
    with using_prefect(auth_server), Batchline() as client:
        file = client.files.create(file=request_file(3))
        with pytest.raises(Interrupted, match=r"recorded but not started: .* set PREFECT_API_AUTH_STRING"):
            client.batches.create(input_file_id=file.id, via="deployment")
        assert [batch.status for batch in client.batches.list()] == ["validating"]


def test_other_prefect_error_keeps_its_message():
    assert describe_error(TimeoutError("too slow")) == "Prefect failed: TimeoutError: too slow"
