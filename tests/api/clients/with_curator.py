"""Asks a model through curator in batch mode, and prints what came of each prompt.

Arguments: the base URL, a key, a working folder, the completion window, and the prompts as JSON. Of a run that
fails, the name of the error and its message are printed.
"""

import json
import os
import sys
from typing import Any


def ask(url: str, key: str, folder: str, window: str, prompts: list[str]) -> dict[str, Any]:
    """Return the rows of the data set that curator makes of the answers, or what it raised."""
    os.environ |= {"CURATOR_CACHE_DIR": folder, "HF_HOME": folder, "CURATOR_DISABLE_RICH_DISPLAY": "1"}
    os.environ["TELEMETRY_ENABLED"] = "false"
    from bespokelabs import curator  # noqa: PLC0415 - reads the environment when it is imported

    model = curator.LLM(
        model_name="gpt-4o-mini",
        backend="openai",
        batch=True,
        backend_params={
            "base_url": url,
            "api_key": key,
            "batch_check_interval": 1,
            "require_all_responses": False,
            "max_retries": 1,  # without, it fails: it goes on with a connection of an event loop that is closed
            "completion_window": window,
        },
    )
    try:
        made = model(prompts, working_dir=folder)
    except BaseException as error:  # noqa: BLE001 - whatever it raises is to be told
        return {"raised": type(error).__name__, "message": str(error)}
    return {"rows": [dict(row) for row in made.dataset]}


if __name__ == "__main__":
    address, token, place, length, texts = sys.argv[1:]
    sys.stdout.write("\n" + json.dumps(ask(address, token, place, length, json.loads(texts))))
