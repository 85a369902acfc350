"""Data sets of the Hub, against a server on this machine that speaks the few endpoints which are used."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from zephyrctl.artifacts.adopt import open_source
from zephyrctl.artifacts.hub import parse_hub
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import AuthError, RefNotFound, TryAgain, UsageError, ZephyrError
from zephyrctl.events import Recorder

SHA = "a" * 40
NEWER = "b" * 40


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def said(asked: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"{asked} it is"}]
    return {"prompt": asked, "prompt_id": "0", "messages": messages}


FILES = {
    "README.md": b"a card",
    "make.py": b"raise SystemExit('code of a repository was run')",
    "data/train_sft-00000-of-00002.jsonl": lines(said("one"), said("two")),
    "data/train_sft-00001-of-00002.jsonl": lines(said("three")),
    "data/test_sft-00000-of-00001.jsonl": lines(said("four")),
    "data/train_gen-00000-of-00001.jsonl": lines(said("five"), said("six")),
    "extra/rows.jsonl": lines(said("seven")),
}


class FakeHub(ThreadingHTTPServer):
    """One data set, org/talk. `status` other than 200 answers everything; `gated` refuses files; `cut` breaks them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(FILES)
        self.sha = SHA
        self.status, self.error = 200, ""
        self.gated = self.cut = False
        self.asked: list[str] = []
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append(path)
        hub.tokens.add(self.headers.get("Authorization", ""))
        if hub.status != 200:
            return self._send(hub.status, b"{}", {"X-Error-Code": hub.error})
        if not path.startswith(("/api/datasets/org/talk", "/datasets/org/talk")):
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        kind, _, rest = path.partition("/resolve/")
        if rest:
            return self._file(rest.partition("/")[2])
        if "/tree/" in kind:
            found = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in hub.files.items()
            ]
            return self._send(200, json.dumps(found).encode())
        revision = kind.partition("/revision/")[2] or "main"
        if revision not in ("main", hub.sha, "v2"):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": name} for name in hub.files]
        return self._send(200, json.dumps({"id": "org/talk", "sha": hub.sha, "siblings": siblings}).encode())

    def _file(self, name: str) -> None:
        hub = self.server
        if hub.gated:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        body = hub.files[name]
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": hub.sha}
        if hub.cut and self.command == "GET":
            return self._send(200, body[:10], headers | {"Content-Length": str(len(body))}, close=True)
        return self._send(200, body, headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, close: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        self.close_connection = close


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The fake Hub, and a process that believes in it, with an empty cache."""
    from huggingface_hub import constants

    server = FakeHub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", os.fspath(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def prompts_of(store: Store, text: str, kind: str = "sft") -> list[tuple[str | None, str]]:
    rows: Any = open_source(store, text, kind).rows()
    return [(s, (r.messages if kind == "sft" else r.prompt)[0].content) for _, s, r in rows]


def test_the_files_of_the_kind_are_read_at_a_commit_that_is_named(store: Store, hub: FakeHub) -> None:
    heard = Recorder()
    source = open_source(store, "hf://org/talk", "sft", emit=heard)
    assert source.ref == f"hf://org/talk@{SHA}"
    assert source.shape == "Hub (3 of 4 files, *_sft): messages"
    found: Any = list(source.rows())
    assert [(s, r.messages[0].content) for _, s, r in found] == [
        ("train", "one"), ("train", "two"), ("train", "three"), ("test", "four"),
    ]  # fmt: skip
    assert found[2][0] == f"hf://org/talk@{SHA}/data/train_sft-00001-of-00002.jsonl:1"
    fetched = [p for p in hub.asked if "/resolve/" in p]
    assert {p.rsplit("/", 1)[1].partition("-")[0] for p in fetched} == {"train_sft", "test_sft"}
    assert any("3 data files" in text for text in heard.texts())
    assert prompts_of(store, "hf://org/talk", "prompts") == [("train", "five"), ("train", "six")]


def test_a_folder_of_the_same_files_has_the_same_digest(store: Store, hub: FakeHub, tmp_path: Path) -> None:
    for name, body in FILES.items():
        path = tmp_path / "talk" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    there = open_source(store, "hf://org/talk", "sft")
    here = open_source(store, str(tmp_path / "talk"), "sft")
    assert there.digest == here.digest


def test_a_second_reading_downloads_nothing(
    store: Store, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prompts_of(store, "hf://org/talk")
    hub.asked.clear()
    assert prompts_of(store, "hf://org/talk") == first
    assert not [p for p in hub.asked if "/resolve/" in p]
    hub.asked.clear()
    go_offline(monkeypatch)
    assert prompts_of(store, "hf://org/talk") == first
    assert prompts_of(store, f"hf://org/talk@{SHA}") == first
    assert hub.asked == []
    with pytest.raises(TryAgain, match="not whole in its cache") as caught:
        open_source(store, "hf://org/talk", "prompts")
    assert "--repo-type dataset" in str(caught.value.hint)


def test_a_newer_commit_is_another_input(store: Store, hub: FakeHub) -> None:
    old = open_source(store, "hf://org/talk", "sft")
    hub.sha = NEWER
    hub.files["data/train_sft-00001-of-00002.jsonl"] = lines(said("changed"))
    new = open_source(store, "hf://org/talk", "sft")
    assert new.ref == f"hf://org/talk@{NEWER}"
    assert new.digest != old.digest
    assert ("train", "changed") in prompts_of(store, "hf://org/talk")


def test_revisions_folders_and_files_inside(store: Store, hub: FakeHub) -> None:
    assert open_source(store, "hf://datasets/org/talk@v2", "sft").ref == f"hf://org/talk@{SHA}"
    assert prompts_of(store, "hf://org/talk@v2/extra") == [(None, "seven")]
    one = open_source(store, "hf://org/talk/extra/rows.jsonl", "sft")
    assert one.ref == f"hf://org/talk@{SHA}/extra/rows.jsonl"
    assert prompts_of(store, one.ref) == [(None, "seven")]
    with pytest.raises(RefNotFound, match="no revision 'v9'"):
        open_source(store, "hf://org/talk@v9", "sft")
    with pytest.raises(RefNotFound, match="has no 'elsewhere'"):
        open_source(store, "hf://org/talk/elsewhere", "sft")


def test_a_data_set_without_data_files_is_never_run(store: Store, hub: FakeHub) -> None:
    hub.files = {"make.py": FILES["make.py"], "README.md": b"", "deep/rows.jsonl": b"{}\n"}
    with pytest.raises(UsageError, match="no data files") as caught:
        open_source(store, "hf://org/talk", "sft")
    assert "hf://org/talk/deep" in str(caught.value.hint)
    assert not [p for p in hub.asked if "/resolve/" in p]


@pytest.mark.parametrize(
    ("status", "code", "error", "exit_code"),
    [
        (401, "", AuthError, 6),
        (403, "", AuthError, 6),
        (403, "GatedRepo", AuthError, 6),
        (404, "RepoNotFound", RefNotFound, 4),
        (503, "", TryAgain, 75),
    ],
)
def test_refusals_say_what_to_do(
    store: Store, hub: FakeHub, status: int, code: str, error: type[ZephyrError], exit_code: int
) -> None:
    hub.status, hub.error = status, code
    with pytest.raises(error) as caught:
        open_source(store, "hf://org/talk", "sft")
    assert caught.value.exit_code == exit_code
    assert "org/talk" in caught.value.message
    assert "./talk" in str(caught.value.hint)
    if error is AuthError:
        assert "HF_TOKEN" in str(caught.value.hint)


def test_a_gated_data_set_lists_its_files_and_refuses_them(
    store: Store, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_of_mine")
    with pytest.raises(AuthError, match="gated") as caught:
        open_source(store, "hf://org/talk", "sft")
    assert "Bearer hf_a_secret_of_mine" in hub.tokens
    assert "secret" not in str(caught.value.as_dict())


def test_a_download_that_breaks_off_is_no_data(
    store: Store, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between its attempts
    hub.cut = True
    with pytest.raises(TryAgain, match="org/talk"):
        open_source(store, "hf://org/talk", "sft")
    go_offline(monkeypatch)
    with pytest.raises(TryAgain):
        open_source(store, "hf://org/talk", "sft")


def test_no_way_to_the_hub(store: Store, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TryAgain, match="cannot be reached") as caught:
        open_source(store, "hf://org/talk", "sft")
    assert caught.value.retryable


def test_names_of_data_sets() -> None:
    name = parse_hub("hf://org/talk@refs/convert/parquet/default/train")
    assert (name.repo, name.revision, name.path) == ("org/talk", "refs/convert/parquet", "default/train")
    assert str(parse_hub("hf://datasets/a/b")) == "hf://a/b"
    for text in ("hf://talk", "hf://", "hf://models/a/b", "hf://a/b/../../c", "hf://a/b@", "hf://a b/c"):
        with pytest.raises(UsageError):
            parse_hub(text)


def test_the_environment_of_the_command_decides(hub: FakeHub, tmp_path: Path) -> None:
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": os.fspath(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "zephyrctl", "import", "hf://org/talk", "--as", "sft", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["counts"]["splits"] == {"train": 3, "test": 1}
    manifest = json.loads((tmp_path / "artifacts/sft-data/v1/manifest.json").read_text(encoding="utf-8"))
    assert manifest["inputs"][0]["ref"] == f"hf://org/talk@{SHA}"
    offline = {**environment, "HF_HUB_OFFLINE": "1", "HF_HOME": os.fspath(tmp_path / "empty")}
    done = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["error"]["kind"]) == (75, "try_again")


def test_a_bundle_gives_the_same_files_under_the_same_refs(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zephyrctl.artifacts import bundle
    from zephyrctl.artifacts.hub import fetch_data

    online = fetch_data("hf://org/talk", "sft")
    files = tuple(
        bundle.BundleFile(name, len(body), hashlib.sha256(body).hexdigest())
        for name, body in FILES.items()
        if name.endswith(".jsonl")
    )
    thing = bundle.Thing("data", "org/talk", None, SHA, files)
    for file in files:
        path = thing.folder(tmp_path / "bundle") / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FILES[file.path])
    bundle.write(tmp_path / "bundle", [thing])
    monkeypatch.setenv(bundle.VARIABLE, os.fspath(tmp_path / "bundle"))
    hub.asked.clear()
    offline = fetch_data("hf://org/talk", "sft")
    assert hub.asked == []
    assert (offline.ref, offline.rule) == (online.ref, online.rule)
    assert [(name, split) for _, name, split in offline.files] == [
        (name, split) for _, name, split in online.files
    ]
    assert [p.read_bytes() for p, _, _ in offline.files] == [p.read_bytes() for p, _, _ in online.files]
    with pytest.raises(RefNotFound, match="not in the bundle"):
        fetch_data("hf://org/none", "sft")
