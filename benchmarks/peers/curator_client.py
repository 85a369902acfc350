"""bespokelabs-curator's OpenAI backend, its own limits out of the way, caching as it does by default.

It counts tokens with tiktoken, whose vocabulary is a download. A vocabulary of single bytes stands in, which is no
slower.
"""

from __future__ import annotations

import os
from importlib.metadata import version

import gauge

ASKED = gauge.options()
os.environ |= {
    "TELEMETRY_ENABLED": "false",
    "CURATOR_CACHE_DIR": str(ASKED.folder),
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "OPENAI_API_KEY": "none",
}

import tiktoken  # noqa: E402
from bespokelabs import curator  # noqa: E402

BYTES = tiktoken.Encoding(
    "bytes",
    pat_str=r"[\s\S]",
    mergeable_ranks={bytes([value]): value for value in range(256)},
    special_tokens={},
)


def run() -> int:
    tiktoken.get_encoding = tiktoken.encoding_for_model = lambda name: BYTES
    model = curator.LLM(
        model_name="gpt-4o-mini",
        backend="openai",
        generation_params={"temperature": 1.0, "top_p": 1.0, "max_tokens": 512},
        backend_params={
            "base_url": ASKED.url,
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**10,
            "max_concurrent_requests": ASKED.concurrency,
            "require_all_responses": True,
        },
    )
    replies = model(gauge.questions(ASKED.calls))
    return len(getattr(replies, "dataset", replies))


if __name__ == "__main__":
    gauge.tell({**gauge.timed(run), "version": version("bespokelabs-curator")})
