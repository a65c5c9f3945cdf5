"""A process that sends requests to an upstream and shares its caps: `python sharer.py OPTIONS-AS-JSON`.

Says `first` at its first answer, and at the end how many requests succeeded.
"""

import json
import sys
from pathlib import Path

from batchline.models.upstreams import Upstream
from batchline.orchestration.quota_store import PrefectQuotaStore
from batchline.upstream.dispatcher import Dispatcher
from batchline.upstream.quota.upstream_quota import QuotaTiming
from batchline.upstream.rate_limits import RateLimits

sys.path.append(str(Path(__file__).parent.parent))  # it is run as a script

from helpers.dispatcher_calls import make_bodies, make_calls, open_session


def main(options: dict) -> None:
    requests, period_s = options.pop("requests"), options.pop("period_s")
    upstream = Upstream.model_validate(options)
    with Dispatcher([upstream]) as dispatcher:
        lane = dispatcher._pools[upstream.name]
        lane.scheduler.rate_limits = RateLimits(upstream, lane._loop.time(), period_s=period_s)
        dispatcher.share_quota(PrefectQuotaStore, timing=QuotaTiming(poll_s=0.5, max_poll_s=1.0, lease_s=60.0))
        succeeded = 0
        with open_session(dispatcher) as run, run.open_queue(0) as feed:
            feed.put(make_calls(make_bodies(requests), upstream=upstream.name))
            feed.end_input()
            while not feed.is_done:
                answers = feed.wait_for_results(0.1)
                if answers and not succeeded:
                    sys.stdout.write("first\n")
                succeeded += sum(answer.code is None for answer in answers)
    sys.stdout.write(f"{succeeded}\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
