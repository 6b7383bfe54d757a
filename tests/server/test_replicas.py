"""Replicas on a Ray cluster of this machine, started and stopped as users do; Ray stays out of the tests' process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from server.toys import CLIP, KEY, SAID, assert_is_envelope
from typer.testing import CliRunner
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import tristep
from tristep.cli import app
from tristep.server.metrics import Gathered, Metrics, exposition
from tristep.server.replicas import Scale

BEARER = {"Authorization": f"Bearer {KEY}"}
SPEECH: dict[str, Any] = {"model": "tts-1", "voice": "anna", "response_format": "pcm", "stream_format": "sse"}
needs_ray = pytest.mark.skipif(
    not Path("/proc/self/stat").exists() or find_spec("ray") is None or find_spec("aiohttp_cors") is None,
    reason="there is no Ray Serve (pip install 'tristep[scale]'), or no /proc to look into",
)


# Without a cluster


def test_samples_of_several_replicas_are_one_page() -> None:
    first, second = Metrics("one"), Metrics("two")
    first.sessions.set(3)
    second.worked("asr", 10.0, 1.0)
    page = exposition(Gathered([first.collect(), second.collect()])).decode()
    assert 'tristep_sessions{replica="one"} 3.0' in page
    assert 'tristep_sessions{replica="two"} 0.0' in page
    assert 'tristep_audio_seconds_total{mode="asr",replica="two"} 10.0' in page
    assert page.count("# TYPE tristep_sessions gauge") == 1


@pytest.mark.parametrize("counts", [(0, None), (3, 2), (1, 0)])
def test_a_number_of_replicas_that_can_not_be_is_refused(counts: tuple[int, int | None]) -> None:
    with pytest.raises(ValueError, match="expected at least 1, and no fewer at most"):
        Scale(*counts)


def test_replicas_are_asked_for_with_ray() -> None:
    result = CliRunner().invoke(app, ["serve", "--replicas", "2"])
    assert result.exit_code == 2
    assert result.stderr.endswith("give --ray too\n")


def test_who_has_no_ray_is_told_what_to_install(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(app, ["serve", "--ray", "--model", str(toy), "--port", "0"])
    assert result.exit_code == 2
    assert result.stderr == "tristep: ray is not installed: run pip install 'tristep[scale]'\n"


# With one


@dataclass(frozen=True)
class Cluster:
    """Two replicas, and the command that started them."""

    address: str
    process: subprocess.Popen[str]

    def pids(self, title: str) -> set[int]:
        """Return those processes of the cluster whose command line begins so."""
        parents = all_parents()
        ours = {pid for pid in parents if self.process.pid in ancestors(pid, parents)}
        return {pid for pid in ours if title_of(pid).startswith(title)}

    def replicas(self) -> set[int]:
        return self.pids("ray::ServeReplica:tristep")


def children(replica: int) -> set[int]:
    """Return the processes of a replica's engine and decoder."""
    return {pid for pid, parent in all_parents().items() if parent == replica and "spawn_main" in title_of(pid)}


def all_parents() -> dict[int, int]:
    """Return the parent of every process."""
    return dict(filter(None, map(family, Path("/proc").glob("[0-9]*"))))


def family(folder: Path) -> tuple[int, int] | None:
    """Read a process' id and its parent's, if it still is."""
    with suppress(OSError):
        return int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return None


def ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


def title_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@pytest.fixture(scope="module")
def cluster(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    command = [sys.executable, "-m", "tristep", "serve", "--ray", "--replicas", "2", "--model", str(toy), "--port", "0",
               "--api-key", KEY, "--max-rate", "1000000", "--voices", str(folder / "voices")]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    source = str(Path(tristep.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
    assert process.stdout is not None
    try:
        sentence, _, address = process.stdout.readline().strip().rpartition(" ")
        assert sentence == "toy is served at", log.read_text()
        yield Cluster(address.removesuffix("/v1"), process)
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def http(cluster: Cluster) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=cluster.address, headers=BEARER, timeout=60) as client:
        yield client


def samples(http: httpx2.Client, metric: str) -> dict[str, float]:
    """Return the value of a metric at each replica."""
    found = re.findall(rf'^{metric}{{.*replica="(\w+)"}} (\S+)$', http.get("/metrics").text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Ask until something is so, but leave the processors to the replicas, and fail if that takes too long."""
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late
        time.sleep(0.1)


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def opened(cluster: Cluster, headers: dict[str, str] = BEARER, path: str = "/v1/realtime", **options: Any) -> Any:
    return connect(cluster.address.replace("http", "ws") + path, additional_headers=headers, **options)


async def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def read(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """Read until a message of a kind."""
    while (message := json.loads(await socket.recv()))["type"] != kind:
        pass
    return dict(message)


@pytest.mark.slow
@needs_ray
def test_replicas_answer_as_one_server_does(cluster: Cluster, http: httpx2.Client) -> None:
    with openai.OpenAI(api_key=KEY, base_url=f"{cluster.address}/v1", max_retries=0) as client:
        assert client.audio.transcriptions.create(model="whisper-1", file=CLIP).text == SAID
        assert client.audio.speech.create(model="tts-1", voice="anna", input="Hello.").content
    response = http.get("/v1/models", headers={"x-request-id": "mine"})
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert_is_envelope(http.get("/v1/models", headers={"Authorization": "Bearer wrong"}), 401, "invalid_api_key")
    assert len(samples(http, "tristep_sessions")) == len(cluster.replicas()) == 2


@pytest.mark.slow
@needs_ray
def test_an_ephemeral_key_opens_sessions_at_every_replica(cluster: Cluster, http: httpx2.Client) -> None:
    made = http.post("/v1/realtime/client_secrets", json={"session": {"instructions": "You are a captain."}}).json()
    key = [f"openai-insecure-api-key.{made['value']}", "realtime"]

    async def main() -> None:
        async with opened(cluster, {}, subprotocols=key) as one, opened(cluster, {}, subprotocols=key) as other:
            for socket in (one, other):
                assert (await read(socket, "session.created"))["session"]["instructions"] == "You are a captain."
                assert socket.subprotocol == "realtime"
                assert socket.response.headers["x-request-id"]
            assert list((await asyncio.to_thread(samples, http, "tristep_sessions")).values()) == [1.0, 1.0]

    run(main)
    until(lambda: list(samples(http, "tristep_sessions").values()) == [0.0, 0.0])


@pytest.mark.slow
@needs_ray
def test_a_refused_upgrade_is_an_answer(cluster: Cluster) -> None:
    async def main() -> None:
        with pytest.raises(InvalidStatus) as refused:
            async with opened(cluster, {"Authorization": "Bearer wrong"}):
                pass
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"

    run(main)


@pytest.mark.slow
@needs_ray
def test_an_answer_comes_piece_by_piece_and_ends_when_its_client_leaves(http: httpx2.Client) -> None:
    with http.stream("POST", "/v1/audio/speech", json=SPEECH | {"input": "It goes on and on. " * 100}) as response:
        lines = response.iter_lines()
        assert "speech.audio.delta" in next(lines)
        assert sorted(samples(http, "tristep_queue").values()) == [0.0, 1.0]
    until(lambda: sum(samples(http, "tristep_queue").values()) == 0, 3)


class Load:
    """Clients who ask again and again, in threads, and what became of what they asked."""

    def __init__(self, cluster: Cluster, num_clients: int) -> None:
        self.cluster, self.is_over = cluster, threading.Event()
        self.outcomes: list[list[str]] = [[] for _ in range(num_clients)]
        self.threads = [threading.Thread(target=self.ask, args=(outcomes,)) for outcomes in self.outcomes]

    def ask(self, outcomes: list[str]) -> None:
        with openai.OpenAI(api_key=KEY, base_url=f"{self.cluster.address}/v1", max_retries=0) as client:
            while not self.is_over.is_set():
                try:
                    outcomes.append(client.audio.transcriptions.create(model="whisper-1", file=CLIP).text)
                except (openai.APIConnectionError, openai.InternalServerError) as error:
                    outcomes.append(type(error).__name__)

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join()

    def answered(self, times: int) -> None:
        """Wait until each client has been answered so many times more."""
        goals = [outcomes.count(SAID) + times for outcomes in self.outcomes]
        until(lambda: all(o.count(SAID) >= goal for o, goal in zip(self.outcomes, goals, strict=True)), 30)


async def ending(socket: ClientConnection) -> tuple[list[str], int | None, str | None]:
    """Read until the other side closes, and return the kinds of messages, the close code and its reason."""
    kinds = []
    with suppress(ConnectionClosed):
        while True:
            kinds.append(json.loads(await socket.recv())["type"])
    return kinds, socket.close_code, socket.close_reason


@pytest.mark.slow
@needs_ray
def test_a_replica_that_is_killed_takes_what_it_was_answering_with_it_and_is_replaced(
    cluster: Cluster, http: httpx2.Client
) -> None:
    before = cluster.replicas()
    victim, other = sorted(before)
    engine = min(children(other))  # the decoder is started after it

    async def main() -> None:
        async with opened(cluster) as one, opened(cluster) as two:
            ends = [asyncio.create_task(ending(socket)) for socket in (one, two)]
            with Load(cluster, num_clients=4) as load:
                await asyncio.to_thread(load.answered, 2)
                os.kill(victim, signal.SIGKILL)
                await asyncio.to_thread(load.answered, 5)
            assert all(len(outcomes) - outcomes.count(SAID) <= 1 for outcomes in load.outcomes), load.outcomes
            assert [end.done() for end in ends].count(True) == 1
            os.kill(engine, signal.SIGKILL)
            kinds, code, reason = await next(end for end in ends if not end.done())
            assert (kinds[-1], code, reason) == ("error", 1011, "The engine failed: the server's log says why.")

    run(main)
    until(lambda: len(samples(http, "tristep_sessions")) == 2, 60)
    assert before - cluster.replicas() == {victim}
    assert len(cluster.replicas()) == 2


@pytest.mark.slow
@needs_ray
def test_what_is_being_answered_when_the_command_is_stopped_is_answered(cluster: Cluster, http: httpx2.Client) -> None:
    pids = cluster.pids("")
    with http.stream("POST", "/v1/audio/speech", json=SPEECH | {"input": "It goes on and on. " * 5}) as response:
        lines = filter(None, response.iter_lines())
        next(lines)
        cluster.process.send_signal(signal.SIGTERM)
        assert "speech.audio.done" in list(lines)[-2]  # the last says no more than that it is
    assert cluster.process.wait(60) == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
