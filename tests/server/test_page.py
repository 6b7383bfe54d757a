"""The page: what is served, that it needs nothing from elsewhere, and what its script computes."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import numpy as np
import pytest
from server.toys import in_process

from tristep.server.frontend import FILES, FOLDER
from tristep.server.settings import Settings

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def fetch(toy: Path, path: str, **changes: object) -> httpx2.Response:
    async def main() -> httpx2.Response:
        async with in_process(Settings(model=str(toy)), **changes) as client:
            return await client.get(path)

    return asyncio.run(main())


class Parsed(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def ids(self, *tags: str) -> set[str]:
        return {str(found["id"]) for tag, found in self.tags if "id" in found and (not tags or tag in tags)}


@pytest.fixture(scope="module")
def page() -> Parsed:
    return Parsed((FOLDER / "index.html").read_text(encoding="utf-8"))


def run(script: str) -> str:
    """Run a script with node and return what it prints."""
    assert NODE is not None
    done = subprocess.run([NODE, "--input-type=module", "-e", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", FILES)
def test_every_file_is_served_with_its_type_and_a_strict_policy_and_without_a_key(toy: Path, path: str) -> None:
    response = fetch(toy, path, api_keys=("secret",))
    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == FILES[path][1]
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.text == (FOLDER / FILES[path][0]).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["/page/", "/page/index.html", "/page/../app.py", "/page/%2e%2e/app.py", "/page/x.js"])
def test_nothing_else_is_served(toy: Path, path: str) -> None:
    assert fetch(toy, path).status_code == 404


def test_there_are_no_other_files() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {name for name, _ in FILES.values()}


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(page: Parsed) -> None:
    for tag, found in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in found), (tag, found)
        for name in ("src", "href"):
            assert not re.match(r"(https?:)?//", found.get(name) or ""), (tag, found)
    named = {found["src"] for tag, found in page.tags if tag == "script"}
    named |= {found["href"] for tag, found in page.tags if tag == "link" and found["rel"] == "stylesheet"}
    assert {f"/{path}" for path in named} <= FILES.keys()
    for name, _ in FILES.values():
        assert "https://" not in (FOLDER / name).read_text(encoding="utf-8")


def test_every_field_has_a_label_and_every_reference_a_target(page: Parsed) -> None:
    labelled = {found["for"] for tag, found in page.tags if tag == "label" and "for" in found}
    assert page.ids("input", "select", "textarea") == labelled
    for _, found in page.tags:
        for name in ("aria-controls", "aria-labelledby", "for"):
            assert name not in found or found[name] in page.ids(), found


def test_tabs_and_what_changes_by_itself_are_announced(page: Parsed) -> None:
    roles = [found.get("role") for _, found in page.tags]
    assert (roles.count("tablist"), roles.count("tab"), roles.count("tabpanel")) == (1, 3, 3)
    assert {"log", "alert"} <= set(roles)
    assert all(found.get("aria-live") == "polite" for tag, found in page.tags if tag == "output")


def test_the_script_asks_for_nothing_that_the_page_does_not_have(page: Parsed) -> None:
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= page.ids()
    assert "innerHTML" not in script
    assert "eval(" not in script


@needs_node
@pytest.mark.parametrize("name", ["page.js", "worklet.js"])
def test_the_scripts_parse(name: str, tmp_path: Path) -> None:
    assert NODE is not None
    copy = tmp_path / f"{name}.mjs"
    shutil.copy(FOLDER / name, copy)
    done = subprocess.run([NODE, "--check", copy], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@needs_node
def test_turns_that_no_longer_fit_are_said_to_be_forgotten_once() -> None:
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    function = script[script.index("function forget(") :].partition("\n}\n")[0] + "\n}\n"
    stage = """
        const made = (id) => ({ id, names: new Set(), notes: [],
          classList: { contains: (name) => item.names.has(name), add: (name) => item.names.add(name) },
          append: (note) => item.notes.push(note.textContent) });
        const item = made("item_1");
        const $ = (id) => (id === "item_1" ? item : null);
        globalThis.document = { createElement: () => ({}) };
    """
    act = "['item_1', 'item_gone', 'item_1'].map(forget); console.log(JSON.stringify([[...item.names], item.notes]))"
    assert json.loads(run(stage + function + act)) == [["forgotten"], ["no longer remembered"]]


def worklet(script: str, sample_rate: int) -> str:
    """Run a script in which the worklet's processors stand in `made`, by name, and `posted` is what they said."""
    stage = f"""
        globalThis.sampleRate = {sample_rate};
        const made = {{}};
        const posted = [];
        globalThis.AudioWorkletProcessor = class {{ port = {{ postMessage: (data) => posted.push(data) }}; }};
        globalThis.registerProcessor = (name, kind) => (made[name] = kind);
    """
    return run(stage + (FOLDER / "worklet.js").read_text(encoding="utf-8") + script)


@needs_node
@pytest.mark.parametrize("sample_rate", [24_000, 44_100, 48_000])
def test_the_microphone_posts_what_it_hears_at_the_rate_of_the_wire(sample_rate: int) -> None:
    heard = json.loads(
        worklet(
            """
            const microphone = new made["tristep-microphone"]();
            for (let block = 0; block < sampleRate / 125; block++) {
              const samples = Float32Array.from({ length: 125 }, (_, place) =>
                Math.sin((2 * Math.PI * 440 * (125 * block + place)) / sampleRate));
              microphone.process([[samples]]);
            }
            console.log(JSON.stringify(posted.map((frame) => [...frame])));
            """,
            sample_rate,
        )
    )
    assert {len(frame) for frame in heard} == {960}
    waveform = np.concatenate(heard)
    assert len(waveform) >= 24_000 - 960
    spectrum = np.abs(np.fft.rfft(waveform[:23_040]))
    assert spectrum.argmax() * 24_000 / 23_040 == pytest.approx(440, abs=2)
    assert np.abs(waveform[100:-100]).max() == pytest.approx(1, abs=0.02)


@needs_node
def test_the_player_says_what_was_played_and_falls_silent_at_once() -> None:
    told = json.loads(
        worklet(
            """
            const player = new made["tristep-player"]();
            const block = new Float32Array(128);
            const out = () => (player.process([], [[block.fill(0)]]), [...block]);
            player.told({ push: new Float32Array(12000).fill(0.5), item: "item_1" });
            for (let block = 0; block < 50; block++) out();
            const before = out()[0];
            player.told({ duck: true });
            for (let block = 0; block < 20; block++) out();
            const ducked = out()[0];
            player.told({ flush: true });
            const played = posted[posted.length - 1].played[0];
            console.log(JSON.stringify({ before, ducked, after: out()[0], played }));
            """,
            24_000,
        )
    )
    assert told["before"] == pytest.approx(0.5, abs=0.001)
    assert told["ducked"] < 0.1
    assert told["after"] == 0
    assert told["played"] == ["item_1", 72 * 128 * 1000 // 24_000]
