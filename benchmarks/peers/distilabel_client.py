"""distilabel's TextGeneration with its OpenAI client; a batch, which is what it has in flight, is as large as asked
for, or with `--task default` as large as it is by itself (50)."""

from __future__ import annotations

import os
from importlib.metadata import version

import gauge

ASKED = gauge.options()
BATCH = 50 if ASKED.task == "default" else ASKED.concurrency
os.environ |= {"HF_HUB_OFFLINE": "1", "DISTILABEL_LOG_LEVEL": "ERROR"}

from distilabel.models import OpenAILLM  # noqa: E402
from distilabel.pipeline import Pipeline  # noqa: E402
from distilabel.steps import LoadDataFromDicts  # noqa: E402
from distilabel.steps.tasks import TextGeneration  # noqa: E402


def run() -> int:
    rows = [{"instruction": question} for question in gauge.questions(ASKED.calls)]
    with Pipeline(name="bench", cache_dir=ASKED.folder) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=BATCH)
        settings = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 512}
        model = OpenAILLM(
            model="mock", base_url=ASKED.url, api_key="none", max_retries=0, generation_kwargs=settings
        )
        load >> TextGeneration(llm=model, input_batch_size=BATCH)
    table = pipeline.run(use_cache=False)["default"]["train"]
    return sum(bool(text) for text in table["generation"])


if __name__ == "__main__":
    gauge.tell({**gauge.timed(run), "version": version("distilabel")})
