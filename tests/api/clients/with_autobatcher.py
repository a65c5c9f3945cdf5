"""Sends requests through autobatcher, as a program does that has exchanged its client; prints what came of each.

Arguments: the base URL, a key, and how many chat requests; each tenth of them is refused by the upstream.
"""

import asyncio
import json
import sys
from collections import Counter

from autobatcher import BatchOpenAI


async def work(base_url: str, key: str, count: int) -> dict[str, object]:
    """Send the requests; return their results and what autobatcher logged about its batches."""
    events: list[dict[str, object]] = []
    client = BatchOpenAI(
        base_url=base_url,
        api_key=key,
        batch_size=count,
        batch_window_seconds=1.0,
        poll_interval_seconds=0.1,
        completion_window="24h",  # without, it asks for background responses, which are no batch
        batch_metadata={"project": "autobatcher"},
        batch_event_handler=events.append,
    )

    async def asked(number: int) -> str:
        prompt = f"{number} simulate:status=400" if number % 10 == 0 else f"{number}?"
        answer = await client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": prompt}]
        )
        return str(answer.choices[0].message.content)

    answers = await asyncio.gather(*map(asked, range(count)), return_exceptions=True)
    vectors = await client.embeddings.create(model="small", input=["one", "two"])
    response = await client.responses.create(model="gpt-4o-mini", input="three")
    await client.close()
    return {
        "refused": [number for number, answer in enumerate(answers) if not isinstance(answer, str)],
        "answered": sum(isinstance(answer, str) and bool(answer) for answer in answers),
        "vectors": len(vectors.data),
        "response": bool(response.output_text),
        "events": Counter(str(event["event"]) for event in events),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
