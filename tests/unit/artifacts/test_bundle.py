"""Bundles: filled from a Hub on this machine, carried off, harmed, looked at, and used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from zephyrctl.artifacts import bundle, bundle_fetch
from zephyrctl.artifacts.bundle import BundleFile, Thing
from zephyrctl.artifacts.bundle_fetch import Wanted
from zephyrctl.artifacts.bundle_hub import HuggingFaceHub
from zephyrctl.errors import (
    AuthError,
    EnvironmentFault,
    IntegrityError,
    RefNotFound,
    TryAgain,
    UsageError,
    ZephyrError,
)

SHA, NEWER = "a" * 40, "b" * 40
WEIGHTS = bytes(range(256)) * 40
FILES = {
    "config.json": b'{"model_type": "mistral"}',
    "model.safetensors": WEIGHTS,
    "consolidated.safetensors": WEIGHTS,
    "original/params.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "tokenizer.json": b"{}",
    "README.md": b"a card",
}
KEPT = ["config.json", "model.safetensors", "tokenizer.json"]
LARGE = ".safetensors"


def blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@dataclass
class FakeHub:
    """A Hub in memory. `broken` names files that arrive cut; `asked` notes what was downloaded."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    sha: str = SHA
    broken: set[str] = field(default_factory=set)
    fails: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def listing(self, wanted: Wanted, revision: str | None) -> tuple[str, list[BundleFile]]:
        known = [
            BundleFile(n, len(b), hashlib.sha256(b).hexdigest() if n.endswith(LARGE) else None,
                       None if n.endswith(LARGE) else blob(b))
            for n, b in self.files.items()
        ]  # fmt: skip
        return (revision if revision in (SHA, NEWER) else self.sha) or self.sha, known

    def download(self, thing: Thing, names: Sequence[str], folder: Path) -> None:
        for name in names:
            if name in self.fails:
                raise TryAgain("the line broke")
            self.asked.append(name)
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            body = self.files[name]
            path.write_bytes(b"x" * len(body) if name in self.broken else body)


MODEL = bundle_fetch.model("org/base")


def fill(folder: Path, hub: FakeHub, wanted: Wanted = MODEL) -> list[Thing]:
    return bundle_fetch.fetch(folder, bundle_fetch.plan(folder, [wanted], hub), hub)


def test_a_bundle_holds_what_a_model_needs_and_every_hash(tmp_path: Path) -> None:
    (thing,) = fill(tmp_path / "bundle", FakeHub())
    assert thing.ref == f"hf://org/base@{SHA}"
    assert {f.path: f.sha256 for f in thing.files} == {
        name: hashlib.sha256(FILES[name]).hexdigest() for name in KEPT
    }
    folder = tmp_path / "bundle" / "models" / "org" / "base"
    assert sorted(p.name for p in folder.rglob("*")) == KEPT
    assert bundle.things(tmp_path / "bundle") == [thing]
    assert [c.state for c in bundle.check(tmp_path / "bundle", [thing])] == ["found"] * 3
    path, opened = bundle.open_thing(tmp_path / "bundle", "model", "org/base")
    assert (path, opened) == (folder, thing)


def test_a_second_fetch_fetches_nothing_and_keeps_the_commit(tmp_path: Path) -> None:
    hub = FakeHub()
    first = fill(tmp_path, hub)
    hub.asked.clear()
    hub.sha = NEWER
    assert fill(tmp_path, hub) == first
    assert hub.asked == []


def test_a_fetch_that_broke_off_goes_on(tmp_path: Path) -> None:
    hub = FakeHub(fails={"tokenizer.json"})
    with pytest.raises(TryAgain):
        fill(tmp_path, hub)
    (thing,) = bundle.things(tmp_path)
    states = {c.file.path: c.state for c in bundle.check(tmp_path, [thing])}
    assert states == {"config.json": "missing", "model.safetensors": "found", "tokenizer.json": "missing"}
    with pytest.raises(IntegrityError, match=r"config.json of org/base is missing .*, and 1 more"):
        bundle.open_thing(tmp_path, "model", "org/base")
    hub.fails.clear()
    hub.asked.clear()
    fill(tmp_path, hub)
    assert "model.safetensors" not in hub.asked
    bundle.open_thing(tmp_path, "model", "org/base")


@pytest.mark.parametrize("name", KEPT)
def test_other_bytes_than_the_hub_names_are_not_kept(tmp_path: Path, name: str) -> None:
    hub = FakeHub(broken={name})
    with pytest.raises(IntegrityError, match="arrived with other bytes"):
        fill(tmp_path, hub)
    assert not (tmp_path / "models" / "org" / "base" / name).exists()
    hub.broken.clear()
    fill(tmp_path, hub)
    bundle.open_thing(tmp_path, "model", "org/base")


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("harm", ["gone", "cut", "bit", "longer"])
def test_harm_on_the_way_is_seen_and_mended(tmp_path: Path, name: str, harm: str) -> None:
    hub = FakeHub()
    fill(tmp_path / "here", hub)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    path = tmp_path / "there" / "models" / "org" / "base" / name
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    changed = {"gone": None, "cut": body[:-1], "bit": body, "longer": bytes(body) + b"x"}[harm]
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    state = "missing" if harm == "gone" else "damaged"
    found = bundle.check(tmp_path / "there", bundle.things(tmp_path / "there"))
    assert {c.file.path: c.state for c in found if c.state != "found"} == {name: state}
    assert [row[4] for row in bundle.table(found).rows].count(state) == 1
    with pytest.raises(IntegrityError, match=f"{name} of org/base is {state}"):
        bundle.open_thing(tmp_path / "there", "model", "org/base")
    fill(tmp_path / "there", hub)
    bundle.open_thing(tmp_path / "there", "model", "org/base")


def test_what_the_bundle_lacks_is_said(tmp_path: Path) -> None:
    fill(tmp_path, FakeHub())
    with pytest.raises(RefNotFound, match=r"org/other is not in the bundle .*org/base@a"):
        bundle.open_thing(tmp_path, "model", "org/other")
    with pytest.raises(RefNotFound, match="org/base@v9"):
        bundle.open_thing(tmp_path, "model", "org/base@v9")
    with pytest.raises(RefNotFound, match=r"data there: none"):
        bundle.open_thing(tmp_path, "data", "org/base")
    assert bundle.open_thing(tmp_path, "model", f"org/base@{SHA}")[1].commit == SHA


def test_another_revision_wants_another_folder(tmp_path: Path) -> None:
    fill(tmp_path, FakeHub())
    with pytest.raises(UsageError, match="not at v2"):
        fill(tmp_path, FakeHub(), bundle_fetch.model("org/base@v2"))


def test_things_of_all_kinds_share_a_bundle(tmp_path: Path) -> None:
    fill(tmp_path, FakeHub())
    rows = FakeHub({"README.md": b"card", "data/train-0.parquet": b"rows", "make.py": b"code"})
    fill(tmp_path, rows, bundle_fetch.data("org/base", None))
    fill(tmp_path, rows, Wanted("suite", "org/suite", None, ("*.parquet",)))
    assert [(t.kind, [f.path for f in t.files]) for t in bundle.things(tmp_path)] == [
        ("data", ["README.md", "data/train-0.parquet"]),
        ("model", KEPT),
        ("suite", ["data/train-0.parquet"]),
    ]
    assert (tmp_path / "suites" / "org" / "suite" / "data" / "train-0.parquet").is_file()


def test_a_repository_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights in safetensors"):
        fill(tmp_path, FakeHub({"config.json": b"{}", "pytorch_model.bin": b"pickle"}))
    assert not (tmp_path / bundle.FILE).exists()


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a/../../evil.json", "a\\evil.json"])
def test_no_file_leads_out_of_the_bundle(tmp_path: Path, name: str) -> None:
    hub = FakeHub({**FILES, name: b"{}"})
    with pytest.raises(IntegrityError, match="leads out of its folder"):
        fill(tmp_path, hub, Wanted("data", "org/base", None, ("*.json",)))
    entry = {"path": name, "size": 1, "sha256": None}
    listed = {"kind": "data", "repo": "org/x", "revision": None, "commit": SHA, "files": [entry]}
    (tmp_path / bundle.FILE).write_text(json.dumps({"schema": 1, "things": [listed]}), encoding="utf-8")
    with pytest.raises(IntegrityError):
        bundle.things(tmp_path)


def test_a_disk_without_room_is_said_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(EnvironmentFault, match="GiB more"):
        fill(tmp_path / "new" / "bundle", hub)
    assert hub.asked == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema": 1}', '{"schema": 1, "things": [{}]}', '{"schema": 1, "things": 3}']
)
def test_a_damaged_list_is_an_integrity_error(tmp_path: Path, text: str) -> None:
    (tmp_path / bundle.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(IntegrityError, match="cannot be read"):
        bundle.things(tmp_path)


def test_a_folder_that_is_no_bundle_and_a_newer_one(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound, match="is no bundle"):
        bundle.things(tmp_path)
    (tmp_path / bundle.FILE).write_text('{"schema": 2, "things": []}', encoding="utf-8")
    with pytest.raises(UsageError, match="another version"):
        bundle.use(tmp_path)


def test_use_closes_the_way_to_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (bundle.VARIABLE, "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "")
    assert bundle.offline_dir() is None
    fill(tmp_path, FakeHub())
    bundle.use(tmp_path)
    assert bundle.offline_dir() == tmp_path
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_suites_and_groups_are_known_by_name() -> None:
    names = bundle_fetch.suite_names()
    assert {"mt-bench", "alpaca-eval", "openllm", "mmlu"} <= set(names)
    for name in names:
        for wanted in bundle_fetch.suite(name):
            assert wanted.kind == "suite"
            assert wanted.patterns
            assert wanted.repo.count("/") == 1
    assert len(bundle_fetch.suite("openllm")) == 6
    with pytest.raises(UsageError, match="no suite 'mtbench'"):
        bundle_fetch.suite("mtbench")


class Server(ThreadingHTTPServer):
    """org/base as the real Hub serves it. `error` answers everything; `cut` breaks the weights off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.error: tuple[int, str] | None = None
        self.cut = False
        self.sent: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.server.error is not None:
            return self.answer(self.server.error[0], b"{}", {"X-Error-Code": self.server.error[1]})
        head, _, rest = path.partition("/resolve/")
        if rest:
            return self.file(rest.partition("/")[2])
        if not head.startswith("/api/models/org/base"):
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if "/tree/" in head:
            return self.answer(200, json.dumps([self.entry(n, "path", "oid") for n in FILES]).encode())
        siblings = [self.entry(n, "rfilename", "blobId") for n in FILES]
        body = {"id": "org/base", "sha": SHA, "siblings": siblings}
        return self.answer(200, json.dumps(body).encode())

    def entry(self, name: str, called: str, blob_id: str) -> dict[str, Any]:
        body = FILES[name]
        found: dict[str, Any] = {
            called: name, "size": len(body), blob_id: blob(body), "type": "file"
        }  # fmt: skip
        if name.endswith(LARGE):
            sha256 = hashlib.sha256(body).hexdigest()
            found["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(body), "pointerSize": 130}
        return found

    def file(self, name: str) -> None:
        body = FILES[name]
        etag = hashlib.sha256(body).hexdigest() if name.endswith(LARGE) else blob(body)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": SHA}
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if self.command == "GET":
            self.server.sent.append(name)
            if self.server.cut and name.endswith(LARGE):
                return self.answer(200, body[:5000], headers | {"Content-Length": str(len(body))}, close=True)
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        return self.answer(206 if begin else 200, body[begin:], headers)

    def answer(
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
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    from huggingface_hub import constants

    one = Server()
    threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{one.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", os.fspath(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield one
    one.shutdown()
    one.server_close()


def test_the_real_library_fills_a_bundle(tmp_path: Path, server: Server) -> None:
    hub = HuggingFaceHub()
    planned = bundle_fetch.plan(tmp_path / "bundle", [MODEL], hub)
    assert server.sent == []
    bundle_fetch.fetch(tmp_path / "bundle", planned, hub)
    assert sorted(server.sent) == KEPT
    folder, _ = bundle.open_thing(tmp_path / "bundle", "model", "org/base")
    assert sorted(p.name for p in folder.iterdir()) == KEPT
    assert not (tmp_path / "cache").exists()


def test_a_line_that_breaks_leaves_nothing_half_and_the_next_run_goes_on(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = HuggingFaceHub()
    planned = bundle_fetch.plan(tmp_path, [MODEL], hub)
    server.cut = True
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(TryAgain):
        bundle_fetch.fetch(tmp_path, planned, hub)
    assert not (tmp_path / "models" / "org" / "base" / "model.safetensors").exists()
    server.cut = False
    server.sent.clear()
    bundle_fetch.fetch(tmp_path, bundle_fetch.plan(tmp_path, [MODEL], hub), hub)
    assert "model.safetensors" in server.sent
    bundle.open_thing(tmp_path, "model", "org/base")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "RepoNotFound", RefNotFound),
        (404, "RevisionNotFound", RefNotFound),
        (403, "GatedRepo", AuthError),
        (503, "", TryAgain),
    ],
)
def test_the_hubs_refusals_are_explained(
    tmp_path: Path, server: Server, status: int, code: str, expected: type[ZephyrError]
) -> None:
    server.error = (status, code)
    with pytest.raises(expected):
        bundle_fetch.plan(tmp_path, [MODEL], HuggingFaceHub())


def test_no_network_and_no_name(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with pytest.raises(UsageError, match="no name on the Hub"):
        HuggingFaceHub().listing(Wanted("model", "org/base/x"), None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TryAgain, match="HF_HUB_OFFLINE"):
        HuggingFaceHub().listing(MODEL, None)
