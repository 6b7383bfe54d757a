"""Unmodified clients of other projects, where `make clients` has installed them: each plays its scenario with a toy."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tristep.audio import SPEAK_HZ, read_audio, write_audio


def load_run() -> Any:
    """Import `clients/run.py`, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("clients_run", Path(__file__).parents[2] / "clients" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = load_run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients")
    write_audio(folder / "question.wav", read_audio(run.RECORDING, SPEAK_HZ), SPEAK_HZ)
    run.OUT = folder
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with run.served("toy") as address:
        yield address


@pytest.fixture(scope="module")
def secure_address(address: str, folder: Path) -> Iterator[str]:
    with run.behind_tls(address, folder) as secure:
        yield secure


@pytest.mark.slow
@pytest.mark.parametrize("client", run.CLIENTS, ids=lambda client: client.name)
def test_a_client_plays_its_scenario(
    client: Any, folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if client.hindrance or not client.is_installed:
        pytest.skip(client.hindrance or "make clients has not installed it")
    monkeypatch.setenv("PATIENCE_S", "120")
    url = request.getfixturevalue("secure_address" if client.wants_tls else "address")
    assert run.converse(client, url, folder / "question.wav", folder)
