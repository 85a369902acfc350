"""The bare `openai` SDK: an asyncio loop with a semaphore, no ledger, nothing kept.

`--task retry` lets the SDK retry what a rate-limited server rejects.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import gauge
from openai import AsyncOpenAI


async def ask_all(url: str, calls: int, concurrency: int, retries: int) -> int:
    gate = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=retries) as client:

        async def ask(question: str) -> int:
            async with gate:
                reply = await client.chat.completions.create(
                    model="mock",
                    messages=[{"role": "user", "content": question}],
                    temperature=1.0,
                    top_p=1.0,
                    max_tokens=512,
                )
            return int(bool(reply.choices[0].message.content))

        return sum(await asyncio.gather(*(ask(question) for question in gauge.questions(calls))))


def main() -> None:
    asked = gauge.options()
    retries = 1000 if asked.task == "retry" else 0
    result = gauge.timed(lambda: asyncio.run(ask_all(asked.url, asked.calls, asked.concurrency, retries)))
    gauge.tell({**result, "version": version("openai")})


if __name__ == "__main__":
    main()
