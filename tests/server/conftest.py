"""One toy on disk and one server of it for all tests of a session: processes take seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from server.talks import Talk
from server.toys import KEY, Server, running, write_toy

from tristep.engine.engine import Engine
from tristep.server.settings import Settings


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "toy"
    write_toy(folder)
    return folder


@pytest.fixture(scope="session")
def server(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = Settings(
        model=str(toy), served_name="org/toy", port=0, api_keys=("another-key", KEY), threads=1,
        voices=tmp_path_factory.mktemp("voices"), max_requests_per_minute=100_000, max_audio_s=60.0,
    )  # fmt: skip
    with running(settings) as server:
        yield server


@pytest.fixture(scope="module")
def engine(toy: Path) -> Engine:
    return Engine.load(toy)


@pytest.fixture
def talk(engine: Engine, toy: Path) -> Talk:
    return Talk(engine, toy)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{server.address}/v1", max_retries=0) as client:
        yield client
