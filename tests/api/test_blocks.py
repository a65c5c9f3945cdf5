"""Questions that are answered together: each asker gets their own answer, and nobody waits for what hangs."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from batchline.api.blocks import MOST, Blocks


class Answers:
    """Doubles numbers, as soon as it is let; remembers the blocks that it was asked."""

    def __init__(self) -> None:
        self.blocks: list[list[int]] = []
        self.opened = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.blocks.append([*numbers])
        if 0 in numbers:
            self.opened.wait(30)
        if -1 in numbers:
            raise OSError("away")
        return [ValueError(number) if number % 10 == 9 else 2 * number for number in numbers]


def asked(answers: Answers, work: Callable[[Blocks[int, int]], object]) -> object:
    async def run() -> object:
        blocks: Blocks[int, int] = Blocks(answers)
        try:
            async with asyncio.timeout(30):
                return await work(blocks)
        finally:
            answers.opened.set()
            blocks.close()

    return asyncio.run(run())


def test_what_waits_is_asked_together_and_everybody_gets_their_own_answer():
    answers = Answers()

    async def work(blocks: Blocks[int, int]) -> list[int | BaseException]:
        answers.opened.set()
        return await asyncio.gather(*(blocks.ask(number) for number in range(200)), return_exceptions=True)

    found = asked(answers, work)

    assert [str(each) if isinstance(each, ValueError) else each for each in found] == [
        str(number) if number % 10 == 9 else 2 * number for number in range(200)
    ]
    assert max(map(len, answers.blocks)) == MOST
    assert len(answers.blocks) < 10


def test_a_block_that_hangs_holds_nobody_else_up():
    answers = Answers()

    async def work(blocks: Blocks[int, int]) -> list[int]:
        hanging = asyncio.ensure_future(blocks.ask(0))
        await asyncio.sleep(0)
        others = [await blocks.ask(1), *await asyncio.gather(*(blocks.ask(number) for number in (2, 3)))]
        assert not hanging.done()
        answers.opened.set()
        return [*others, await hanging]

    assert asked(answers, work) == [2, 4, 6, 0]


def test_an_error_of_the_whole_is_told_to_everybody_and_the_next_are_answered():
    async def work(blocks: Blocks[int, int]) -> object:
        failed = await asyncio.gather(blocks.ask(-1), blocks.ask(-1), return_exceptions=True)
        return [*map(type, failed), await blocks.ask(5)]

    assert asked(Answers(), work) == [OSError, OSError, 10]


def test_one_who_leaves_takes_nobody_along():
    answers = Answers()

    async def work(blocks: Blocks[int, int]) -> int:
        first = asyncio.ensure_future(blocks.ask(0))
        leaving = asyncio.ensure_future(blocks.ask(1))
        staying = asyncio.ensure_future(blocks.ask(2))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        answers.opened.set()
        return await first + await staying

    assert asked(answers, work) == 4
