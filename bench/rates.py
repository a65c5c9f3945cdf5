"""Figures of the caps: what any sliding minute holds, and how much of a cap is used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench.figures import Row
from bench.measuring import Run, measure
from bench.servers import stand_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measuring import World

REQUESTS_A_MINUTE = 3_000
TOKENS_A_MINUTE = 400_000


def rates(world: World) -> Iterator[Row]:
    """A cap on requests and one on tokens, some minutes each, while there is more to send."""
    n = world.count(9_000)
    caps = {
        "requests": ({"requests_per_minute": REQUESTS_A_MINUTE}, REQUESTS_A_MINUTE, 1.0),
        "tokens": ({"tokens_per_minute": TOKENS_A_MINUTE}, TOKENS_A_MINUTE, 5.0),
    }
    for name, (cap, most, over) in caps.items():
        with stand_in(latency="lognormal", latency_s=0.3) as url:
            upstreams = json.dumps([{"name": "capped", "base_url": url, "max_in_flight": 256, **cap}])
            found = measure(world, Run("local", n, 256, url, {"BATCHLINE_UPSTREAMS": upstreams}))
        world.samples.setdefault("rates", {})[name] = [found]
        worst, mean = found[f"most_{name}_a_minute"], found[f"mean_{name}_a_minute"]
        yield Row(
            f"{name} above the cap in the worst sliding minute", 100 * (worst / most - 1), most=over, unit="%"
        )
        yield Row(f"share of the cap on {name} that is used", 100 * mean / most, least=97, unit="%")
