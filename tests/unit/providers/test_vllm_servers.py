"""Servers of local models: a fake `vllm` in real child processes, started, shared out, asked and always stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.errors import EnvironmentFault
from zephyrctl.ledger.entries import Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.modelspec import parse_model
from zephyrctl.project import Project, VllmSection
from zephyrctl.providers.base import Answer, Ask, Received, Sampling
from zephyrctl.providers.calling.caller import Caller
from zephyrctl.providers.local import fleet
from zephyrctl.providers.local.fleet import Share, gpu_groups, server_environment, share_out
from zephyrctl.providers.local.provider import LocalProvider
from zephyrctl.providers.local.vllm import ServedModel
from zephyrctl.providers.registry import make_provider
from zephyrctl.providers.site import Site
from zephyrctl.records import Message

FAKE = """
import http.server, json, os, pathlib, sys, threading, time
args = sys.argv[1:]
here = pathlib.Path(__file__).parent
port = int(args[args.index("--port") + 1])
(here / f"pid-{os.getpid()}").write_text(json.dumps({"args": args, "env": dict(os.environ)}))
mode = (here / "mode").read_text() if (here / "mode").exists() else "serve"
if mode == "die":
    print("loading weights", flush=True)
    sys.exit("CUDA out of memory: key sk-abcdefghijkl")
if mode == "stubborn":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def say(self, status, body):
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
    def do_GET(self):
        self.say(503 if mode == "slow" else 200, {})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
            return self.say(401, {"error": {"message": "who are you"}})
        if asked["messages"][-1]["content"] == "die":
            os._exit(3)
        if asked["messages"][-1]["content"] == "think":
            time.sleep(1.0)
        text = json.dumps({"gpus": os.environ["CUDA_VISIBLE_DEVICES"], "seed": asked.get("seed")})
        message = {"role": "assistant", "content": text}
        self.say(200, {"model": asked["model"], "choices": [{"message": message, "finish_reason": "stop"}]})

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

MADE: weakref.WeakSet[ServedModel] = weakref.WeakSet()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the fake `vllm`; whatever it started is gone after the test."""
    (tmp_path / "vllm.py").write_text(FAKE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield tmp_path
    for model in list(MADE):
        model.close()
    for pid in pids(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def section(machine: Path, *, gpus: list[int] | None = None, **more: object) -> VllmSection:
    body = {"command": [sys.executable, str(machine / "vllm.py")], "gpus": gpus or [], "startup_seconds": 60}
    return VllmSection.model_validate(body | more)


def served(
    machine: Path, section: VllmSection, *, digest: str = "sha256:" + "ab" * 32, **more: object
) -> ServedModel:
    source = ModelSource(machine / "model", digest, "tiny@v1", "real", None)
    model = ServedModel(source, section, **more)  # type: ignore[arg-type]
    MADE.add(model)
    return model


def pids(machine: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("pid-")) for path in machine.glob("pid-*"))


def started_with(machine: Path) -> list[dict[str, object]]:
    return [json.loads((machine / f"pid-{pid}").read_text()) for pid in pids(machine)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/status").read_text() if Path("/proc").is_dir() else ""
    except (ProcessLookupError, FileNotFoundError):
        return False
    return "State:\tZ" not in state


def until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def ask(text: str, draw: int = 0) -> Ask:
    return Ask((Message(role="user", content=text),), Sampling(max_tokens=8, seed=5), draw)


def answers(model: ServedModel, texts: list[str]) -> list[dict[str, object]]:
    async def all_at_once() -> list[Received]:
        try:
            return list(await asyncio.gather(*(model.send(model.wire(ask(text))) for text in texts)))
        finally:
            await model.aclose()

    return [json.loads(model.read(received.body).text) for received in asyncio.run(all_at_once())]


def test_two_gpus_share_the_calls_and_all_is_gone_afterwards(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-canary")
    monkeypatch.setenv("MY_ACCESS", "another-canary")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    model = served(machine, section(machine, gpus=[0, 1]), hidden=frozenset({"MY_ACCESS"}))
    assert pids(machine) == [], "nothing is started before a call is needed"
    said = answers(model, [f"question {n}" for n in range(8)])
    assert {answer["gpus"] for answer in said} == {"0", "1"}
    assert len(answers(model, ["a later wave, in a loop of its own"])) == 1
    running = pids(machine)
    assert len(running) == 2
    for start in started_with(machine):
        assert "canary" not in json.dumps(start)
        assert start["env"]["VLLM_API_KEY"]  # type: ignore[index]
        assert start["args"][0] == "serve"  # type: ignore[index]
    model.close()
    assert not any(alive(pid) for pid in running)
    assert not list(machine.glob("zephyrctl-vllm-*")), "the logs of servers that did well are not kept"


def test_nothing_is_started_for_what_the_ledger_holds(machine: Path) -> None:
    def asked() -> list[object]:
        model = served(machine, section(machine, gpus=[0, 1]))
        with Ledger.open(machine / "ledger.sqlite") as ledger, Caller(ledger, run=Run("step")) as caller:
            replies = caller.ask(model, [ask(f"question {n}") for n in range(20)], task="t")
            (teacher,) = caller.summary()
        model.close()
        assert (teacher["provider"], teacher["model"], teacher["origin"]) == ("local", "tiny@v1", "local")
        assert teacher["served"] == ["tiny@v1"]
        assert teacher["cost_usd"] == 0
        return [reply.text for reply in replies if isinstance(reply, Answer)]

    first = asked()
    assert len(first) == 20
    assert len(pids(machine)) == 2
    assert asked() == first
    assert len(pids(machine)) == 2


def test_after_close_the_next_call_starts_anew(machine: Path) -> None:
    model = served(machine, section(machine))
    assert answers(model, ["one"])[0]["gpus"] == ""
    model.close()
    model.close()
    assert answers(model, ["two"])[0]["gpus"] == ""
    assert len(pids(machine)) == 2
    model.close()
    assert not any(alive(pid) for pid in pids(machine))


def test_the_request_depends_on_the_weights_and_not_on_where_they_are_served(machine: Path) -> None:
    plain = served(machine, section(machine))
    assert (plain.kind, plain.origin, plain.endpoint, plain.label) == ("local", "local", "vllm/1", "tiny@v1")
    body = plain.wire(ask("x"))
    assert body["model"] == "sha256-" + "ab" * 8
    assert body["seed"] == 5
    assert plain.wire(ask("x", draw=1))["seed"] not in (5, plain.wire(ask("x", draw=2))["seed"])
    assert plain.wire(ask("x", draw=1)) == plain.wire(ask("x", draw=1))
    faster = served(machine, section(machine, args=["--max-num-seqs", "64", "--enforce-eager"]))
    other = served(machine, section(machine, args=["--quantization", "fp8"]))
    assert faster.endpoint == "vllm/1"
    assert other.endpoint.startswith("vllm/1+")


def test_a_server_that_cannot_start_says_why(machine: Path) -> None:
    (machine / "mode").write_text("die")
    model = served(machine, section(machine), logs=machine / "logs")
    with pytest.raises(EnvironmentFault) as caught:
        answers(model, ["one", "two"])
    assert caught.value.exit_code == 3
    assert "loading weights" in caught.value.message
    assert "CUDA out of memory" in caught.value.message
    assert "sk-abcdefghijkl" not in caught.value.message
    assert str(machine / "logs") in (caught.value.hint or "")
    assert not any(alive(pid) for pid in pids(machine))


def test_a_command_that_is_not_there(machine: Path) -> None:
    model = served(machine, section(machine, command=[str(machine / "no-vllm")]))
    with pytest.raises(EnvironmentFault, match=r"cannot start .*no-vllm"):
        answers(model, ["one"])


def test_a_server_that_is_never_ready(machine: Path) -> None:
    (machine / "mode").write_text("slow")
    model = served(machine, section(machine, startup_seconds=1.5))
    with pytest.raises(EnvironmentFault, match=r"not ready within 1\.5 s"):
        answers(model, ["one"])
    assert len(pids(machine)) == 1
    assert not any(alive(pid) for pid in pids(machine))


def test_a_server_that_dies_at_work_ends_the_run(machine: Path) -> None:
    model = served(machine, section(machine))
    answers(model, ["one"])

    def die() -> bool:
        try:
            answers(model, ["die"])
        except EnvironmentFault as fault:
            return "ended with exit code 3" in fault.message
        except Exception:
            return False  # the connection fails before the server is known to be gone
        return False

    assert until(die)
    model.close()


def test_a_start_that_is_given_up_leaves_nothing(machine: Path) -> None:
    (machine / "mode").write_text("slow")
    model = served(machine, section(machine))

    async def give_up() -> None:
        call = asyncio.create_task(model.send(model.wire(ask("one"))))
        while not pids(machine):
            await asyncio.sleep(0.05)
        call.cancel()

    asyncio.run(give_up())
    assert not any(alive(pid) for pid in pids(machine))


def test_models_that_are_asked_together_share_the_gpus(machine: Path) -> None:
    both = section(machine, gpus=[0, 1])
    one, other = (served(machine, both, digest=f"sha256:{name * 32}") for name in ("aa", "bb"))
    twin = served(machine, both, digest="sha256:" + "aa" * 32)
    assert {a["gpus"] for a in answers(one, ["x"] * 4)} == {"0"}
    assert {a["gpus"] for a in answers(other, ["x"] * 4)} == {"1"}
    assert {a["gpus"] for a in answers(twin, ["x"] * 4)} == {"0"}, "one fleet for one model"
    third = served(machine, both, digest="sha256:" + "cc" * 32)
    assert {a["gpus"] for a in answers(third, ["x"] * 4)} == {"0"}
    shares = [
        start["args"][start["args"].index("--gpu-memory-utilization") + 1]  # type: ignore[index, attr-defined]
        for start in started_with(machine)
        if "--gpu-memory-utilization" in start["args"]  # type: ignore[operator]
    ]
    assert shares == ["0.450"], "the newcomer has half of the memory; the one before it there was stopped"
    one.close()
    assert len([pid for pid in pids(machine) if alive(pid)]) == 2, (
        "its twin still needs it; it starts when asked"
    )
    for model in (other, twin, third):
        model.close()
    assert not any(alive(pid) for pid in pids(machine))


def test_a_newcomer_waits_for_the_calls_that_are_out(machine: Path) -> None:
    whole = section(machine, gpus=[0])
    one = served(machine, whole, digest="sha256:" + "aa" * 32)
    answers(one, ["it has the GPU to itself"])
    other = served(machine, whole, digest="sha256:" + "bb" * 32)

    async def at_once() -> list[Received]:
        out = asyncio.create_task(one.send(one.wire(ask("think"))))
        await asyncio.sleep(0.2)
        came = await other.send(other.wire(ask("x")))
        again = await one.send(one.wire(ask("y")))
        replies = [await out, came, again]
        await asyncio.gather(one.aclose(), other.aclose())
        return replies

    assert len(asyncio.run(at_once())) == 3
    shares = [start["args"].count("--gpu-memory-utilization") for start in started_with(machine)]  # type: ignore[attr-defined]
    assert sorted(shares) == [0, 1, 1], "alone, then half each"


def test_a_provider_that_is_forgotten_stops_its_servers(machine: Path) -> None:
    model = served(machine, section(machine))
    answers(model, ["one"])
    del model
    assert until(lambda: not any(alive(pid) for pid in pids(machine)))
    assert fleet._fleets == []


@pytest.mark.parametrize("end", ["exit", "kill", "term"])
def test_no_server_outlives_us(machine: Path, end: str) -> None:
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_vllm_servers import answers, section, served
        model = served(Path({str(machine)!r}), section(Path({str(machine)!r}), gpus=[0, 1]))
        answers(model, ["one"])
        sys.stdout.write("up\\n"); sys.stdout.flush()
        {"pass" if end == "exit" else "time.sleep(60)"}
    """)
    us = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert us.stdout is not None
    assert us.stdout.readline() == "up\n"
    if end != "exit":
        us.send_signal(signal.SIGKILL if end == "kill" else signal.SIGTERM)
    us.wait(30)
    us.stdout.close()
    assert len(pids(machine)) == 2
    assert until(lambda: not any(alive(pid) for pid in pids(machine)))


def test_a_stubborn_server_is_killed(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "mode").write_text("stubborn")
    monkeypatch.setattr(fleet, "_GRACE_SECONDS", 0.5)
    model = served(machine, section(machine))
    answers(model, ["one"])
    model.close()
    assert not any(alive(pid) for pid in pids(machine))


@given(groups=st.integers(1, 9), models=st.integers(1, 12))
def test_every_group_is_used_and_none_is_overbooked(groups: int, models: int) -> None:
    names = [str(number) for number in range(groups)]
    shares = [share_out(names, models, place) for place in range(models)]
    for name in names:
        taken = sum(share.memory for share in shares if name in share.groups)
        assert taken == pytest.approx(1.0)
    assert all(share.groups for share in shares)
    assert share_out(["0", "1"], 1, 0) == Share(("0", "1"), 1.0)


def test_which_gpus(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anything = section(machine, tensor_parallel=2).model_copy(update={"gpus": None})
    assert gpu_groups(section(machine, gpus=[4, 5, 6], tensor_parallel=2), {}) == ["4,5"]
    assert gpu_groups(anything, {"CUDA_VISIBLE_DEVICES": "3, GPU-9"}) == ["3,GPU-9"]
    assert gpu_groups(anything, {"CUDA_VISIBLE_DEVICES": "-1"}) == [""]
    assert gpu_groups(section(machine, gpus=[]), {}) == [""]
    with pytest.raises(EnvironmentFault, match="only 1 GPUs"):
        gpu_groups(section(machine, gpus=[4], tensor_parallel=2), {})
    tool = machine / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\necho "GPU 0: NVIDIA H200 (UUID: GPU-1)"\necho "GPU 1: NVIDIA H200 (UUID: GPU-2)"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(machine))
    assert gpu_groups(anything, {}) == ["0,1"]
    tool.unlink()
    assert gpu_groups(anything, {}) == [""]


def test_the_command_and_the_environment_of_a_server(machine: Path) -> None:
    settings = section(machine, tensor_parallel=2, args=["--generation-config", "auto"])
    command = fleet.serve_command(settings, machine / "model", "m", 8001, 0.5)
    assert command[2:4] == ["serve", str(machine / "model")]
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.450"
    assert command[-2:] == ["--generation-config", "auto"], "the project's arguments win"
    assert "--chat-template" not in command
    (machine / "model" / "chat_template.jinja").unlink()
    command = fleet.serve_command(settings, machine / "model", "m", 8001, 1.0)
    template = Path(command[command.index("--chat-template") + 1])
    assert "<|assistant|>" in template.read_text(), (
        "a model without a template gets the one it is trained with"
    )
    seen = server_environment(
        {
            "PATH": "/bin",
            "HF_TOKEN": "x",
            "A_API_KEY": "x",
            "A_API_KEY_FILE": "x",
            "MINE": "x",
            "MINE_FILE": "x",
        },
        frozenset({"MINE"}),
    )
    assert seen == {"PATH": "/bin", "VLLM_NO_USAGE_STATS": "1"}


def test_which_models_are_served(machine: Path) -> None:
    site = Site(project=Project(vllm=section(machine)))
    spec = parse_model("./model")
    real = ModelSource(machine / "model", "sha256:" + "ab" * 32, "tiny@v1", "real", None)
    assert isinstance(make_provider(spec, model=real, site=site), ServedModel)
    assert isinstance(make_provider(spec, model=replace(real, world="sandbox"), site=site), LocalProvider)
    assert isinstance(make_provider(spec, model=real, site=Site()), LocalProvider)
