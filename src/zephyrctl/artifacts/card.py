"""README.md of a version: a card that the Hugging Face Hub and `load_dataset` understand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zephyrctl.artifacts.background import sections
from zephyrctl.artifacts.manifest import Manifest


def card(manifest: Manifest, behind: Sequence[tuple[str, Manifest]] = ()) -> str:
    """The whole card: YAML front matter, what it is, counts, lineage, teachers and their terms, judge,
    decontamination, cost, limits, how to load it. `behind` = what it was made from, by ref."""
    front = _model_front(manifest) if manifest.kind == "model" else _data_front(manifest)
    parts = ["---", _yaml(front).rstrip(), "---", "", f"# {manifest.name}", "", _about(manifest), ""]
    parts += _table("Counts", _flat(manifest.counts))
    parts += _table("Scores", _flat(manifest.headline))
    parts += _list("Made from", [f"{i.role}: `{i.ref}` ({i.kind}, `{i.digest}`)" for i in manifest.inputs])
    parts += _list("Side outputs of the same step", [f"`{ref}`" for ref in manifest.sides.values()])
    parts += _list("Teachers", [_teacher(t) for t in _teachers(manifest, behind)])
    for title, points in sections(manifest, behind):
        parts += _list(title, [_cell(point) for point in points])
    parts += ["## How to load", "", "```python", *_loading(manifest), "```", ""]
    parts += ["`manifest.json` holds all settings, digests and hashes of the files.", ""]
    return "\n".join(parts)


def _data_front(manifest: Manifest) -> dict[str, Any]:
    configs = []
    splits = [str(f.split) for f in manifest.files if f.path.startswith("data/") and f.rows is not None]
    if splits:
        ordered = sorted(set(splits), key=lambda s: (s != "train", s))
        files = [{"split": s, "path": f"data/{s}-*"} for s in ordered]
        configs.append({"config_name": "default", "data_files": files})
    if any(f.path.startswith("rejects/") for f in manifest.files):
        configs.append(
            {"config_name": "rejects", "data_files": [{"split": "train", "path": "rejects/train-*"}]}
        )
    return {"configs": configs, "tags": _tags(manifest)} if configs else {"tags": _tags(manifest)}


def _model_front(manifest: Manifest) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    base = [i.ref for i in manifest.inputs if i.kind == "model" and i.role != "reference"]
    if base:
        front["base_model"] = base[0]
    return {**front, "tags": _tags(manifest)}


def _tags(manifest: Manifest) -> list[str]:
    return ["zephyrctl", f"kind:{manifest.kind}", f"stage:{manifest.stage}", f"world:{manifest.world}"]


def _about(manifest: Manifest) -> str:
    article = "An" if manifest.kind == "eval" else "A"
    command = "dpo" if manifest.kind == "logprobs" else manifest.stage
    text = f"{article} `{manifest.kind}` artifact made by `zephyrctl {command}`"
    text += f" with the edition `{manifest.edition}`" if manifest.edition else ""
    text += f". Content digest `{manifest.content_digest}`."
    if manifest.world == "sandbox":
        text += (
            " It belongs to the sandbox, a tiny artificial world: it measures machinery, not language models."
        )
    return text + (f"\n\nNote: {_cell(manifest.note)}" if manifest.note else "")


def _teachers(manifest: Manifest, behind: Sequence[tuple[str, Manifest]]) -> list[dict[str, Any]]:
    """The teachers of this version and of the rows behind it; those of an earlier one say whose."""
    earlier = [{**t, "of": ref} for ref, m in behind if m.kind not in ("model", "eval") for t in m.teachers]
    return [*manifest.teachers, *(earlier if manifest.kind not in ("model", "eval") else [])]


def _teacher(teacher: dict[str, Any]) -> str:
    """One line: who, how many calls and tokens, what it cost, and anything out of the ordinary."""
    tokens, cost = teacher.get("tokens") or {}, teacher.get("cost_usd")
    served = [name for name in teacher.get("served") or [] if name != teacher.get("model")]
    points = [
        f"{teacher.get('calls', 0):,} calls",
        f"{tokens.get('prompt', 0):,} tokens in, {tokens.get('completion', 0):,} out",
        "price not known" if cost is None else f"${cost:,.4f}",
        *([f"served by {', '.join(map(str, served))}"] if served else []),
        *([f"not sent: {', '.join(teacher['dropped'])}"] if teacher.get("dropped") else []),
        *([f"of {teacher['of']}"] if teacher.get("of") else []),
    ]
    return _cell(f"{teacher.get('model')} ({teacher.get('provider')}): {'; '.join(points)}")


def _loading(manifest: Manifest) -> list[str]:
    if manifest.kind == "model":
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        ]
    return ["from datasets import load_dataset", "", 'rows = load_dataset("path/to/this/folder")']


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found += _flat(value, f"{name}.")
        else:
            found.append((name, _cell(value)))
    return found


def _cell(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _table(title: str, rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    return [f"## {title}", "", "| | |", "|---|---|", *(f"| {_cell(k)} | {v} |" for k, v in rows), ""]


def _list(title: str, items: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"* {item}" for item in items), ""] if items else []


def _yaml(value: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000))
