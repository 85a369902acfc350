"""The page shows what is there, loads nothing, runs nothing; text of models stays text in a real browser too."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import Step, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.config import StageConfig
from zephyrctl.errors import UsageError
from zephyrctl.records import (
    Completion,
    FeedbackRow,
    Message,
    PreferenceRow,
    PromptRow,
    Rating,
    Record,
    SftRow,
    Verdict,
    prompt_id,
)
from zephyrctl.report.view import page

HOSTILE = (
    "</div></script><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\">\u202egnp.exe"
)
ASKED = [Message(role="user", content=f"What? {HOSTILE}")]
SAID = [Message(role="assistant", content=f"This. {HOSTILE}")]
OTHER = [Message(role="assistant", content="That {{ 7 * 7 }} <b>bold</b>")]


class ViewConfig(StageConfig):
    """A stage that exists for these tests."""

    stage: ClassVar[str] = "seen"


def made(folder: Path, kind: str, rows: Sequence[Record]) -> Artifact:
    store = Store.open(folder / "artifacts")
    step = Step(Work(store), ViewConfig(), name=kind, kind=kind, inputs=[], world="real")
    with step.open() as staging:
        staging.write_rows("train", rows)
        return staging.commit()


def completion(name: str, overall: float | None) -> Completion:
    ratings = [
        Rating(aspect="honesty", value=None, reason="n/a", position=2),
        Rating(aspect="helpfulness", value=4.0, rationale=f"fine {HOSTILE}", position=1),
    ]
    return Completion(
        completion_id=name * 8,
        model=name,
        text=f"{name} {HOSTILE}",
        ratings=ratings,
        overall=overall,
        critique="short",
    )


ROWS: dict[str, Record] = {
    "prefs": PreferenceRow(
        prompt_id=prompt_id(ASKED), prompt=ASKED, chosen=SAID, rejected=OTHER, score_chosen=8.0, chosen_model=HOSTILE
    ),
    "feedback": FeedbackRow(
        prompt_id=prompt_id(ASKED), prompt=ASKED, judge="j", completions=[completion("a", 9.0), completion("b", None)]
    ),
    "sft": SftRow(row_id="r1", prompt_id=prompt_id(ASKED), messages=[*ASKED, *SAID], source="tests"),
    "prompts": PromptRow(prompt_id=prompt_id(ASKED), prompt=ASKED, follow_ups=["And then?"]),
    "eval": Verdict(
        suite="judged", decoding="greedy", prompt_id="p", turn=1, family="f", question="q", answer=HOSTILE, score=3.0,
        judge="j", reference="ref", critique="crit",
    ),
}  # fmt: skip


class Tags(HTMLParser):
    """Collects tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_text_stays_text_and_nothing_is_loaded(tmp_path: Path, kind: str) -> None:
    text = page(made(tmp_path, kind, [ROWS[kind]]), 10)
    tags = Tags()
    tags.feed(text)
    assert {tag for tag, _ in tags.seen}.isdisjoint(
        {"script", "img", "iframe", "link", "object", "b", "form"}
    )
    assert not [a for _, attrs in tags.seen for a in attrs if a.startswith("on") or a == "src"]
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in tags.seen)
    assert "default-src 'none'" in text
    assert "&lt;script&gt;" in text


def test_pairs_and_completions_stand_side_by_side(tmp_path: Path) -> None:
    text = page(made(tmp_path, "prefs", [ROWS["prefs"]]), 10)
    assert text.index('class="column good"') < text.index('class="column bad"')
    assert "score 8" in text
    assert "no score" in text
    text = page(made(tmp_path, "feedback", [ROWS["feedback"]]), 10)
    assert "overall 9" in text
    assert "overall not scored" in text
    assert "honesty n/a (shown as text 2)" in text


def test_the_rows_shown_are_drawn_and_stand_in_stored_order(tmp_path: Path) -> None:
    rows = []
    for n in range(40):
        asked = [Message(role="user", content=f"question number {n:02d}.")]
        rows.append(PromptRow(prompt_id=prompt_id(asked), prompt=asked))
    artifact = made(tmp_path, "prompts", rows)
    few, more = (re.findall(r"question number (\d\d)\.", page(artifact, n)) for n in (5, 20))
    assert len(few) == 5
    assert few == sorted(few)
    assert set(few) < set(more)
    assert few != ["00", "01", "02", "03", "04"]


def test_what_has_no_rows_is_refused(tmp_path: Path) -> None:
    artifact = made(tmp_path, "prompts", [ROWS["prompts"]])
    with pytest.raises(UsageError, match="no split 'test'"):
        page(artifact, 3, split="test")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium (apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_real_browser_shows_it_without_a_fault(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "view.html"
    path.write_text(page(made(tmp_path, "feedback", [ROWS["feedback"]]), 10), encoding="utf-8")
    base = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'browser'}", f"--window-size={width},1200", "--enable-logging=stderr",
    ]  # fmt: skip
    shown = subprocess.run(
        [*base, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "<title>feedback@v1</title>" in shown.stdout
    assert "a &lt;/div&gt;&lt;/script&gt;" in shown.stdout
    assert not re.findall(r"CONSOLE.*", shown.stderr)
    picture = tmp_path / "view.png"
    subprocess.run(
        [*base, f"--screenshot={picture}", path.as_uri()], capture_output=True, timeout=120, check=True
    )
    assert picture.stat().st_size > 5000


def test_the_command_prints_the_path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from zephyrctl.cli.app import app

    made(tmp_path, "prefs", [ROWS["prefs"]])
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["view", "prefs"])
    assert result.stdout == "view-prefs-v1.html\n"
    assert (tmp_path / "view-prefs-v1.html").is_file()
    document = json.loads(CliRunner().invoke(app, ["view", "prefs", "--json", "--out", "x.html"]).stdout)
    assert document["page"] == "x.html"
