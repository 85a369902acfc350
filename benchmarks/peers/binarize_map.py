"""Pairs from feedback with `datasets.map`, as such scripts are usually written: `binarize_map.py DATA OUT NUM_PROC`.

The highest overall score is chosen, a random strictly lower one rejected, seeded by the prompt; equal texts are never
paired; pairs and best answers go to Parquet, train and test by hash of the prompt.
"""

import hashlib
import random
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import Any

from datasets import load_dataset


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def pair(row: dict[str, Any]) -> dict[str, Any]:
    scored = [c for c in row["completions"] if c["overall"] is not None]
    nothing = {"kept": False, "chosen": [], "rejected": [], "messages": [], "split": ""}
    nothing |= {"score_chosen": 0.0, "score_rejected": 0.0, "chosen_model": "", "rejected_model": ""}
    if len(scored) < 2:
        return nothing
    best = max(scored, key=lambda c: c["overall"])
    said = normalised(best["text"])
    lower = [c for c in scored if c["overall"] < best["overall"] and normalised(c["text"]) != said]
    if not lower:
        return nothing
    worse = random.Random(row["prompt_id"]).choice(lower)
    chosen = [{"role": "assistant", "content": best["text"]}]
    draw = int.from_bytes(hashlib.sha256(row["prompt_id"].encode()).digest()[:8], "big") / 2**64
    return {
        "kept": True,
        "chosen": chosen,
        "rejected": [{"role": "assistant", "content": worse["text"]}],
        "messages": row["prompt"] + chosen,
        "split": "test" if draw < 0.1 else "train",
        "score_chosen": best["overall"],
        "score_rejected": worse["overall"],
        "chosen_model": best["model"],
        "rejected_model": worse["model"],
    }


def main() -> None:
    data, out, processes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    rows = load_dataset("parquet", data_files=sorted(map(str, data.glob("*.parquet"))), split="train")
    paired = rows.map(pair, num_proc=processes, remove_columns=["completions", "judge"])
    paired = paired.filter(lambda kept: kept, input_columns="kept", num_proc=processes).remove_columns("kept")
    for split in ("train", "test"):
        part = paired.filter(lambda s, want=split: s == want, input_columns="split", num_proc=processes)
        part.remove_columns(["messages", "split"]).to_parquet(out / f"{split}.parquet")
        part.select_columns(["prompt_id", "messages"]).to_parquet(out / f"best-{split}.parquet")


if __name__ == "__main__":
    main()
