"""A simulated upstream in this process, whose manners can change and which remembers; and waiting for things."""

import asyncio
import json
import threading
from collections.abc import Callable

from helpers.scripted_server import Action, Received, ScriptedServer, error_reply, reply

StatusRule = Callable[[int], int]
"""Return the status of the response to a request, by the request's number."""


TIMEOUT_S = 30.0


class ControlledUpstream:
    """Answers chat requests whose prompt is `<file> <number>`; `told` has each prompt in the order it came."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.status_rule: StatusRule = lambda _: 200
        self._most: int | None = None
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._server = ScriptedServer(self._act).start()

    @property
    def base_url(self) -> str:
        return f"{self._server.base_url}/v1"

    def stop(self) -> None:
        self._server.stop()

    def reset(self) -> None:
        """Answer everything from now on, and remember nothing of what was."""
        self.prompts.clear()
        self._most = None
        self._open.set()

    def answer_first(self, most: int) -> None:
        """Answer so many requests of all, and let the others wait until there may be more, or for `go_on`."""
        self._most = most
        self._open.clear()

    def answer_all(self) -> None:
        self._open.set()

    def _act(self, request: Received) -> Action:
        prompt = json.loads(request.body)["messages"][0]["content"]
        with self._lock:
            place = len(self.prompts)
            self.prompts.append(prompt)
        status = self.status_rule(int(prompt.split()[1]))
        act = reply() if status == 200 else error_reply(status)
        return act if self._may_answer(place) else self._later(place, act)

    def _may_answer(self, place: int) -> bool:
        return self._open.is_set() or self._most is None or place < self._most

    def _later(self, place: int, act: Action) -> Action:
        async def wait(writer: asyncio.StreamWriter) -> bool:
            while not self._may_answer(place):  # noqa: ASYNC110 - the test's thread decides
                await asyncio.sleep(0.005)
            return await act(writer)

        return wait
