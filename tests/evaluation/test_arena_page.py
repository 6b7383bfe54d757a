from __future__ import annotations

import io
from pathlib import Path

import pytest
import soundfile
import torch
from starlette.testclient import TestClient

from tristep.audio import SPEAK_HZ, write_audio
from tristep.evaluation.arena import Arena, Prompt, read_systems
from tristep.evaluation.arena_page import create_app

SYSTEMS = ("piper", "kokoro")


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    for name in SYSTEMS:
        (tmp_path / name).mkdir()
        for prompt in ("p0", "p1"):
            write_audio(tmp_path / name / f"{prompt}.wav", 0.1 * torch.randn(SPEAK_HZ // 2), SPEAK_HZ)
    prompts = {"p0": Prompt("p0", "Good morning.", "slowly")}
    return Arena(read_systems([tmp_path / name for name in SYSTEMS]), tmp_path / "store.jsonl", prompts)


@pytest.fixture
def client(arena: Arena) -> TestClient:
    return TestClient(create_app(arena), base_url="http://127.0.0.1")


def verdict(trial: str, **changed: object) -> dict[str, object]:
    return {"listener": "ann", "trial": trial, "choice": "a", "strength": 2, "reason": "clearer", **changed}


def test_a_listener_is_led_through_all_trials_to_the_end(client: TestClient, arena: Arena) -> None:
    found = client.get("/trial", params={"listener": "ann"}).json()
    numbers = []
    while found["trial"]:
        numbers.append(found["number"])
        found = client.post("/verdict", json=verdict(found["trial"])).json()
    assert numbers == list(range(1, found["total"] + 1))
    assert len(arena.verdicts()) == found["total"] == len(arena.trials("ann"))


def test_nothing_that_the_page_gets_names_a_system(client: TestClient, arena: Arena) -> None:
    for trial in arena.trials("ann"):
        described = client.get("/trial", params={"listener": "ann"})
        heard = [client.get(f"/sound/{trial.id}/{side}", params={"listener": "ann"}) for side in "ab"]
        for response in (described, *heard):
            assert response.status_code == 200
            everything = response.content + str(response.headers).encode()
            assert not any(name.encode() in everything for name in (*SYSTEMS, "trap"))


def test_sounds_are_plain_wav_at_24_khz(client: TestClient, arena: Arena) -> None:
    trial = next(trial for trial in arena.trials("ann") if not trial.is_trap)
    response = client.get(f"/sound/{trial.id}/b", params={"listener": "ann"})
    samples, rate = soundfile.read(io.BytesIO(response.content), dtype="float32")
    assert rate == SPEAK_HZ
    assert torch.allclose(torch.from_numpy(samples), arena.sound("ann", trial.id, "b"), atol=1e-4)


def test_what_was_asked_is_shown(client: TestClient, arena: Arena) -> None:
    shown = {}
    for trial in arena.trials("ann"):
        described = client.get("/trial", params={"listener": "ann"}).json()
        shown[trial.prompt] = (described["text"], described["instructions"])
        client.post("/verdict", json=verdict(trial.id))
    assert shown == {"p0": ("Good morning.", "slowly"), "p1": ("", "")}


@pytest.mark.parametrize("changed", [{"reason": ""}, {"strength": 9}, {"choice": "c"}, {"listener": "<b>"}, {"x": 1}])
def test_a_verdict_that_is_none_is_refused(client: TestClient, arena: Arena, changed: dict[str, object]) -> None:
    trial = client.get("/trial", params={"listener": "ann"}).json()["trial"]
    assert client.post("/verdict", json=verdict(trial, **changed)).status_code in (400, 422)
    assert not arena.store.exists()


def test_a_trial_of_somebody_else_is_refused_in_a_sentence(client: TestClient, arena: Arena) -> None:
    theirs = arena.trials("bob")[0].id
    answer = client.post("/verdict", json=verdict(theirs))
    assert answer.status_code == 400
    assert "ask for the next one" in answer.json()["error"]
    assert client.get(f"/sound/{theirs}/a", params={"listener": "ann"}).status_code == 400


def test_the_page_needs_nothing_from_elsewhere_and_no_other_host_reaches_it(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text.replace("http-equiv", "")
    for path in ("/arena.js", "/arena.css"):
        assert client.get(path).status_code == 200
        assert path in page.text
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
