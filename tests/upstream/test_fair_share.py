"""Shares of a cap: never more than all of it, everybody's fair part soon, and nobody left out for good."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.upstream.quota.fair_share import choose_leases, compute_target_slots, split_into_leases, step_size


class QuotaSimulation:
    """A limit and processes that look at it one at a time, as they come."""

    def __init__(self, limit: int, seed: int) -> None:
        self.limit = limit
        self.random = Random(seed)
        self.held: dict[int, int] = {}
        self.wanted: dict[int, int] = {}
        self.pauses: dict[int, int] = {}
        self.lapsing: list[tuple[int, int]] = []
        self.now = 0

    @property
    def taken(self) -> int:
        return sum(self.held.values()) + sum(slots for _, slots in self.lapsing)

    def join(self, name: int, wanted: int) -> None:
        self.held.setdefault(name, 0)
        self.wanted[name] = wanted

    def kill(self, name: int, lapses_after: int) -> None:
        """End without giving back; the lease does it later."""
        self.lapsing.append((self.now + lapses_after, self.held.pop(name)))
        del self.wanted[name]

    def look(self, name: int, least: int = 1) -> None:
        self.now += 1
        self.lapsing = [entry for entry in self.lapsing if entry[0] > self.now]
        held, luck = self.held[name], self.random.random()
        target = compute_target_slots(
            limit=self.limit,
            taken_slots=self.taken,
            held_slots=held,
            processes=len(self.held) + len(self.lapsing),
            desired=self.wanted[name],
            random_value=luck,
            minimum=least,
        )
        if self.pauses.get(name, 0) > 0:
            self.pauses[name] -= 1
            target = min(target, held)
        elif target < held and luck < 0.1:
            self.pauses[name] = 2
        self.held[name] = min(target, held + max(0, self.limit - self.taken))

    def rounds(self, count: int, least: int = 1) -> None:
        for _ in range(count):
            for name in self.random.sample(list(self.held), len(self.held)):
                self.look(name, least)


@given(
    st.integers(0, 300),
    st.integers(0, 2**32),
    st.lists(st.tuples(st.sampled_from("joldw"), st.integers(0, 7), st.integers(0, 400)), max_size=200),
)
@settings(max_examples=200)
def test_slots_of_all_processes_never_exceed_the_limit(limit, seed, events):
    """Processes come, go, die and want more or less, in any order."""
    world = QuotaSimulation(limit, seed)
    for what, name, amount in events:
        if what == "j":
            world.join(name, amount)
        elif name not in world.held:
            continue
        elif what == "l":
            world.look(name, least=max(1, amount // 4))
        elif what == "w":
            world.wanted[name] = amount
        elif what == "o":
            world.wanted[name] = 0
            world.look(name)
            assert world.held.pop(name) == 0
        else:
            world.kill(name, amount // 20)
        assert world.taken <= limit


@given(st.integers(1, 1_000), st.integers(1, 12), st.integers(0, 2**32))
@settings(max_examples=200)
def test_busy_processes_converge_to_equal_shares(limit, processes, seed):
    world = QuotaSimulation(limit, seed)
    for name in range(processes):
        world.join(name, limit)
        world.rounds(1)
    world.rounds(150)

    each, step = limit // processes, step_size(limit)
    low = each // step * step
    paused = sum(world.pauses.get(name, 0) > 0 for name in world.held)
    assert min(world.held.values()) >= low - 2 * step - (step - 1)  # one may have yielded, and taken back a part
    assert max(world.held.values()) <= low + 2 * step + limit // 32
    assert world.taken >= limit - 2 * step - max(1, limit // 32) - paused * step


@pytest.mark.parametrize(("limit", "processes"), [(1, 2), (2, 3), (3, 7), (5, 4), (64, 3)])
def test_indivisible_limit_rotates_among_processes(limit, processes):
    world = QuotaSimulation(limit, 1)
    for name in range(processes):
        world.join(name, limit)
    had = dict.fromkeys(world.held, 0)
    for _ in range(1_000):
        world.rounds(1)
        for name, held in world.held.items():
            had[name] += held

    mean = 1_000 * limit / processes
    assert min(had.values()) > 0.6 * mean
    assert sum(had.values()) > 0.8 * 1_000 * limit


def test_process_above_its_fair_share_leaves_free_slots_for_newcomers():
    shares = {"limit": 64, "processes": 2, "desired": 64, "random_value": 0.5}
    assert compute_target_slots(taken_slots=52, held_slots=40, **shares) == 50
    assert compute_target_slots(taken_slots=62, held_slots=50, **shares) == 50
    assert compute_target_slots(taken_slots=64, held_slots=50, **shares) == 32


@pytest.mark.parametrize("limit", [1, 2, 64, 100_000])
def test_single_process_gets_the_whole_limit(limit):
    world = QuotaSimulation(limit, 1)
    world.join(1, limit)
    world.rounds(1)
    assert world.held == {1: limit}


def test_unused_slots_go_to_the_other_processes():
    world = QuotaSimulation(1_000, 1)
    for name, wanted in enumerate([10, 10, 1_000, 1_000]):
        world.join(name, wanted)
    world.rounds(20)

    assert world.held[0] == world.held[1] == 10
    assert world.held[2] + world.held[3] >= 1_000 - 20 - 1_000 // 32
    assert min(world.held[2], world.held[3]) >= 250


def test_slots_of_dead_process_return_when_its_lease_expires():
    world = QuotaSimulation(60, 1)
    for name in range(3):
        world.join(name, 60)
    world.rounds(30)
    world.kill(0, 100)
    world.rounds(30)
    assert world.held[1] + world.held[2] <= 42

    world.rounds(50)
    assert world.held[1] + world.held[2] == 60


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_requests_larger_than_a_fair_share_rotate_among_processes(processes):
    """A request costs 400 of 1,000: two of them fit, whoever they belong to."""
    world = QuotaSimulation(1_000, 1)
    for name in range(processes):
        world.join(name, 1_000)
    could = dict.fromkeys(world.held, 0)
    for _ in range(1_000):
        world.rounds(1, least=400)
        for name, held in world.held.items():
            could[name] += held >= 400

    assert min(could.values()) > 0
    assert sum(could.values()) > 1_000


def test_lowered_limit_takes_effect_at_once():
    world = QuotaSimulation(100, 1)
    for name in range(4):
        world.join(name, 100)
    world.rounds(20)
    world.limit = 10
    world.rounds(1)
    assert world.taken <= 12

    world.limit = 0
    world.rounds(1)
    assert world.taken == 0


@given(st.integers(1, 10_000_000), st.floats(0, 1))
def test_leases_sum_to_the_limit_and_can_be_released_in_part(limit, part):
    sizes = split_into_leases(limit, limit)
    chosen = choose_leases(sizes, int(part * limit))
    given = sum(sizes[place] for place in chosen)

    assert sum(sizes) == limit
    assert len(sizes) <= 16
    assert given <= int(part * limit) <= given + step_size(limit)
