"""`batchline serve`: the HTTP API and the pages."""

from batchline.cli.console import print_note
from batchline.client.deployment_runner import client_for_server


def serve(*, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Serve OpenAI's Files and Batches API and web pages until Ctrl-C, and run the batches.

    They run in this process, and continue when it is started again; or, with BATCHLINE_SERVE_VIA=deployment, as
    runs of the Prefect deployment in BATCHLINE_DEPLOYMENT.

    Parameters
    ----------
    host:
        Address to listen at; one that other machines can reach requires a key (`batchline keys create`).
    port:
        Port to listen at; 0 chooses a free one.
    """
    from batchline.api import Server  # noqa: PLC0415 - FastAPI is slow to import
    from batchline.web import with_pages  # noqa: PLC0415 - as above

    server = Server(client_for_server(), host=host, port=port, app_factory=with_pages)
    print_note(f"serving at {server.url}")
    print_note(f"web pages at {server.url.removesuffix('v1')}")
    if server.allows_anonymous:
        print_note("open to every program of this machine until a key is created with: batchline keys create NAME")
    server.run()
