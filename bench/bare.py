"""A bare FastAPI route to hold the API against: `python -m bench.bare FOLDER`, whose files are its answers' bytes.

Served as batchline serves: the same event loop, the same protocol, the same options. Prints its URL.
"""

import socket
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response

from batchline.api.server import SERVING


def main() -> None:
    """Serve until killed."""
    answers = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
    app = FastAPI()

    @app.get("/v1/{name}")
    async def answer(name: str) -> Response:
        return Response(answers[name], media_type="application/json")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}/v1\n")
        sys.stdout.flush()
        uvicorn.Server(uvicorn.Config(app, **SERVING)).run(sockets=[listener])


if __name__ == "__main__":
    main()
