"""Measure everything, or the figures named: `python -m bench [--quick] [--only NAME …]`.

`python -m bench kills` kills instead, and checks that nothing is lost.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench import budgets, commands, figures, hostile, lists, operations, outcomes, rates, refusals, scale, serving
from bench.figures import Row
from bench.kills import command as killing
from bench.measuring import World
from bench.servers import nginx, prefect_server

RESULTS = Path(__file__).with_name("results")
FIGURES = {
    "validation": figures.validation,
    "throughput_50k": figures.throughput_50k,
    "throughput_500k": figures.throughput_500k,
    "fixed_latency": figures.fixed_latency,
    "lognormal_latency": figures.lognormal_latency,
    "stray_refusals": figures.stray_refusals,
    "memory": figures.memory,
    "s3": figures.s3,
    "rates": rates.rates,
    "sharing_cost": budgets.cost,
    "shared_caps": budgets.caps,
    "cancel_latency": operations.cancel_latency,
    "results_page": operations.results_page,
    "retry_of_few": operations.retry_of_few,
    "fairness": operations.fairness,
    "lists": lists.lists,
    "processes": scale.processes,
    "prefect_cost": scale.prefect_cost,
    "api_reads": serving.api_reads,
    "api_uploads": serving.api_uploads,
    "api_start": serving.api_start,
    "hostile_members": hostile.hostile_members,
    "judgements": outcomes.judgements,
    "kills": commands.kills,
    "refused_writes": refusals.refused_writes,
    "start": commands.start,
}


def main() -> int:
    """Print the table as it grows and keep it; 1 if a bar was missed."""
    if sys.argv[1:2] == ["kills"]:
        return killing.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=FIGURES, help="measure this figure; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests: bars are not meant for it")
    parser.add_argument(
        "--refuse-for", type=float, default=600.0, metavar="SECONDS", help="duration of the figure refused_writes"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        rows = []
        with nginx(Path(home)) as base_url, prefect_server(Path(home)) as prefect_url:
            world = World(Path(home), base_url, prefect_url, chosen.quick, chosen.refuse_for)
            try:
                for row in _rows(world, chosen.only or list(FIGURES)):
                    rows.append(row)
                    print(_shown(row), flush=True)
            finally:
                _keep(world, rows)
    return int(any(row.reached is False for row in rows))


def _rows(world: World, names: list[str]) -> Iterator[Row]:
    for name in names:
        yield from FIGURES[name](world)


def _shown(row: Row) -> str:
    bar = f"≥ {row.least:g}" if row.least is not None else f"≤ {row.most:g}" if row.most is not None else ""
    mark = {True: "reached", False: "MISSED", None: ""}[row.reached]
    return f"{row.name:66} {row.value:10,.2f}{row.unit:4} {bar:>8} {mark}"


def _keep(world: World, rows: list[Row]) -> None:
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    kept = {
        "at": now.isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "quick": world.quick,
        "rows": [{**asdict(row), "reached": row.reached} for row in rows],
        "samples": world.samples,
    }
    path = RESULTS / f"{now:%Y%m%d-%H%M%S}{'-quick' if world.quick else ''}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"kept in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
