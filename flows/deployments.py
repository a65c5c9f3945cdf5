"""Defines the deployments of prefect.yaml for a process that serves them itself, without a worker."""

from datetime import timedelta
from functools import partial

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.schedules import Interval, Schedule
from prefect.types.entrypoint import EntrypointType

from batchline.flows.housekeeping import housekeeping
from batchline.flows.process_batch import process_batch
from batchline.flows.sync_source import sync_source
from batchline.models.sync import SyncOptions
from batchline.orchestration.deployments import RUN_TAG

ON_CRASH = DeploymentEventTrigger(
    expect={"prefect.flow-run.Crashed"},
    match={"prefect.resource.id": "prefect.flow-run.*"},
    match_related={"prefect.resource.role": "flow", "prefect.resource.name": process_batch.name},
    parameters={"crashed_run": "{{ event.resource.id }}"},
)
ON_CANCEL = DeploymentEventTrigger(
    expect={"prefect.flow-run.Cancelled"},
    match={"prefect.resource.id": "prefect.flow-run.*"},
    match_related={"prefect.resource.role": "flow", "prefect.resource.name": process_batch.name},
)
"""A suspended run that is cancelled has no process that could end its batch."""

ON_ARRIVAL = DeploymentEventTrigger(
    expect={"batchline.file-arrived"},
    match={"prefect.resource.id": "*"},
    parameters={"uri": "{{ event.payload.uri }}"},
)


def deployments(
    *, limit: int = 8, watched_uri: str | None = None, options: SyncOptions | None = None
) -> list[RunnerDeployment]:
    """Return the deployments of the three flows for `prefect.serve`, with their triggers and schedules.

    At most `limit` batches run at once. The folder `watched_uri` is synced every minute with the options; without
    one, the schedule is inactive.
    """
    from_flow = partial(RunnerDeployment.from_flow, tags=[RUN_TAG], entrypoint_type=EntrypointType.MODULE_PATH)
    sync_options = {} if options is None else options.model_dump(exclude_defaults=True)
    # Triggers are copied, as Prefect writes the id of their deployment into them.
    all_deployments: list[RunnerDeployment] = [
        from_flow(
            process_batch,
            "process-batch",
            description="Run an OpenAI-format batch file against the configured upstreams.",
            concurrency_limit=limit,
            triggers=[ON_CRASH.model_copy()],
        ),
        from_flow(
            sync_source,
            "sync-source",
            description="Create a batch for each new or changed file in a folder or an S3 prefix.",
            concurrency_limit=1,
            parameters={"uri": watched_uri or "", **sync_options},
            schedule=Schedule(interval=timedelta(seconds=60), active=watched_uri is not None),
            triggers=[ON_ARRIVAL.model_copy()],
        ),
        from_flow(
            housekeeping,
            "housekeeping",
            description="Delete expired files and leftovers of dead processes; resume batches whose runner died.",
            concurrency_limit=ConcurrencyLimitConfig(
                limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
            ),
            schedule=Interval(timedelta(seconds=300)),
            triggers=[ON_CANCEL.model_copy()],
        ),
    ]
    for deployment in all_deployments:
        # Set explicitly: this removes a deployment made by `prefect deploy` from its work pool. Otherwise workers
        # and the serving process would both execute its runs.
        deployment.work_pool_name = None
    return all_deployments
