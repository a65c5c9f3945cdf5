"""Runs Airflow's batch operator as a worker does, and prints the manifest and the rows that it has landed.

Arguments: the base URL, a key, the folder for results, the name of the task, and the prompts as JSON. Of a task
that fails, the name of the error and its message are printed.
"""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

CONNECTION = "batches"


def run_task(folder: str, task: str, prompts: list[str]) -> dict[str, Any]:
    """Return what the operator gives, or what it raised."""
    from airflow.providers.common.ai.operators.llm_batch import LLMBatchOperator  # noqa: PLC0415 - sets Airflow up

    operator = LLMBatchOperator(
        task_id=task,
        requests=prompts,
        result_path=f"file://{folder}",
        llm_conn_id=CONNECTION,
        model_id="openai:gpt-4o-mini",
        do_xcom_push=False,
    )
    operator.poll_interval = 1  # the constructor asks for 30 seconds at least
    instance = SimpleNamespace(dag_id="a-dag", task_id=task, run_id="a-run", map_index=-1)
    try:
        manifest = operator.execute({"task_instance": instance, "ti": instance})
    except Exception as error:  # noqa: BLE001 - whatever it raises is to be told
        return {"raised": type(error).__name__, "message": str(error)}
    with open(manifest["result_uri"].removeprefix("file://")) as file:  # noqa: PTH123 - as a program does
        rows = sorted(map(json.loads, file), key=lambda row: row["index"])
    return {"manifest": manifest, "rows": rows}


if __name__ == "__main__":
    url, key, place, name, texts = sys.argv[1:]
    os.environ["AIRFLOW_HOME"] = f"{place}/airflow"
    os.environ[f"AIRFLOW_CONN_{CONNECTION.upper()}"] = json.dumps(
        {"conn_type": "pydanticai", "password": key, "host": url}
    )
    sys.stdout.write("\n" + json.dumps(run_task(place, name, json.loads(texts))))
