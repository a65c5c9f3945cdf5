"""While one member does their worst, the server's memory is bounded and others are answered: each attack, shortly.

`python -m bench --only hostile_members` measures the same for longer, and how long others wait.
"""

import pytest

from bench.hostile import ATTACKS, MOST_MB, suffer

pytestmark = pytest.mark.system

SECONDS = 4.0
LEAST_ANSWERS = 5
"""One of each kind; how long they take on a busy machine says nothing."""


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_hostile_member_leaves_memory_bounded_and_others_answered(attack):
    outcome = suffer(attack, SECONDS)

    assert outcome.peak_mb <= MOST_MB
    assert outcome.requests >= LEAST_ANSWERS
