"""Asks a model through inspect_ai in batch mode, and prints what came of each prompt.

Arguments: the base URL, a key, the API (chat or responses), and the prompts as JSON.
"""

import asyncio
import json
import sys

from inspect_ai.model import BatchConfig, GenerateConfig, get_model


async def ask(url: str, key: str, api: str, prompts: list[str]) -> list[list[str]]:
    """Return for each prompt the text of its answer, or the name of the error and its message."""
    model = get_model(
        "openai/gpt-4o-mini",
        base_url=url,
        api_key=key,
        responses_api=api == "responses",
        config=GenerateConfig(batch=BatchConfig(size=len(prompts), send_delay=1, tick=0.5), max_retries=1),
    )

    async def one(prompt: str) -> list[str]:
        try:
            answer = await model.generate(prompt)
        except Exception as error:  # noqa: BLE001 - whatever it raises is to be told
            return [type(error).__name__, str(error)]
        return ["answer", answer.completion]

    return await asyncio.gather(*map(one, prompts))


if __name__ == "__main__":
    address, token, api_name, texts = sys.argv[1:]
    sys.stdout.write("\n" + json.dumps(asyncio.run(ask(address, token, api_name, json.loads(texts)))))
