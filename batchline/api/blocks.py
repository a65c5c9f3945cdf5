"""Questions that come at the same time, answered together: the way to a thread and back is gone once for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Generic, TypeVar

MOST: Final = 64
"""Questions in a block."""

PATIENCE_S: Final = 0.05
"""So long questions wait for the block before them; then another thread takes them. Two threads at work all the
time would answer less, as they would wait for one another."""

THREADS: Final = 8

Q = TypeVar("Q")
A = TypeVar("A")


class Blocks(Generic[Q, A]):
    """Has blocks of questions answered on threads; each answer is looked up after its question was asked.

    For one event loop. `answers` gives an answer or an exception for each question, in their order.
    """

    def __init__(self, answers: Callable[[Sequence[Q]], Sequence[A | Exception]]) -> None:
        self._answers = answers
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blocks")
        self._under_way = 0
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, question: Q) -> A:
        """The answer, or its error raised."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, answer))
        if not self._under_way:
            self._send(loop)
        elif self._timer is None:
            self._timer = loop.call_later(PATIENCE_S, self._wait_no_longer, loop)
        return await answer

    def close(self) -> None:
        """Let the threads end when nothing is under way."""
        self._threads.shutdown(wait=False)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        block, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        self._under_way += 1
        self._threads.submit(self._work, loop, block)

    def _wait_no_longer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiting and self._under_way < THREADS:
            self._send(loop)
        if self._waiting:
            self._timer = loop.call_later(PATIENCE_S, self._wait_no_longer, loop)

    def _work(self, loop: asyncio.AbstractEventLoop, block: list[tuple[Q, asyncio.Future[A]]]) -> None:
        answers: Sequence[A | Exception]
        try:
            answers = self._answers([question for question, _ in block])
        except Exception as error:  # noqa: BLE001 - whatever it is, those who asked are told
            answers = [error] * len(block)
        loop.call_soon_threadsafe(self._hand_out, loop, [each for _, each in block], answers)

    def _hand_out(
        self, loop: asyncio.AbstractEventLoop, askers: list[asyncio.Future[A]], answers: Sequence[A | Exception]
    ) -> None:
        self._under_way -= 1
        if self._waiting and not self._under_way:
            self._send(loop)
        for asker, answer in zip(askers, answers, strict=True):
            if asker.done():  # the client has left
                continue
            if isinstance(answer, Exception):
                asker.set_exception(answer)
            else:
                asker.set_result(answer)
