"""Let unmodified clients of other projects use the server, and print a table.

Each client gets an environment of its own beside this file (`.venvs/`, `node_modules/`), filled from PyPI and npm, and
is told nothing but the server's address. It speaks a bundled recording. In a `talk` it passes if it received a
transcript, an answer in words and in sound, and the end of the response, without an error. The other scenarios call
tools, write into the history and interrupt; they need answers that are known beforehand and have a toy of their own
(`toy.py`). What the clients wrote lies in `runs/clients/`, beside pictures of the page.

    python clients/run.py                    # all of them
    python clients/run.py pipecat page       # some
    python clients/run.py --model toy        # all of them with the toy, in a few minutes
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from tristep.audio import SPEAK_HZ, read_audio, write_audio

HERE = Path(__file__).parent
RECORDING = HERE.parent / "tests/data/kathleen_b0442.opus"
OUT = Path("runs/clients")
ORIGIN = "http://localhost:8765"
"""Of the page that `agents_realtime_browser.mjs` serves."""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PACKAGES = {
    "openai": ("openai[realtime]>=3",),
    "openai2": ("openai[realtime]>=2,<3",),
    "openai-agents": ("openai-agents>=0.24",),
    "pipecat": ("pipecat-ai[openai]>=1.14",),
    "livekit": ("livekit-plugins-openai>=1.8", "livekit-plugins-stepfun>=1.8"),
}
"""From PyPI, by environment; those of npm are in `package.json`."""


@dataclass(frozen=True)
class Client:
    """A client, and how it is started."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    packages: str = ""
    """Its environment; without one it is node's."""
    wants_tls: bool = False
    wants_toy: bool = False
    """Whether its scenario is about the toy's answers."""

    @property
    def environment(self) -> Path:
        """Where its packages lie."""
        return HERE / ".venvs" / self.packages if self.packages else HERE / "node_modules"

    @property
    def is_installed(self) -> bool:
        """Whether its packages are there."""
        wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
        return all((self.environment / name).exists() for name in (["installed"] if self.packages else wanted))

    @property
    def command(self) -> list[str]:
        """How it is started."""
        interpreter = str(self.environment / "bin/python") if self.packages else "node"
        return [interpreter, str(HERE / self.script), *self.arguments]

    @property
    def hindrance(self) -> str:
        """Why it can't run on this machine, empty if it can."""
        if not self.packages and not (shutil.which("node") and shutil.which("npm")):
            return "node and npm are not installed"
        if self.script in ("page.mjs", "agents_realtime_browser.mjs") and CHROMIUM is None:
            return "Chromium is not installed"
        if "webrtc" in self.arguments and find_spec("aiortc") is None:
            return "the extra [webrtc] is not installed"
        return "openssl is not installed" if self.wants_tls and not shutil.which("openssl") else ""


CLIENTS = (
    Client("openai", "openai_talk.py", packages="openai"),
    Client("openai2", "openai_talk.py", packages="openai2"),
    Client("openai-npm", "openai_talk.mjs", wants_tls=True),
    Client("agents-realtime", "agents_realtime_talk.mjs"),
    Client("pipecat", "pipecat_talk.py", packages="pipecat"),
    Client("livekit-openai", "livekit_talk.py", ("openai",), "livekit"),
    Client("livekit-stepfun", "livekit_talk.py", ("stepfun",), "livekit"),
    Client("page", "page.mjs"),
    Client("pipecat-services", "pipecat_services.py", packages="pipecat"),
    Client("livekit-services", "livekit_services.py", packages="livekit"),
    Client("openai-turns", "openai_turns.py", packages="openai", wants_toy=True),
    Client("openai2-turns", "openai_turns.py", packages="openai2", wants_toy=True),
    Client("openai-beta", "openai_beta_turns.mjs", wants_toy=True),
    Client("openai-agents", "openai_agents_turns.py", packages="openai-agents", wants_toy=True),
    Client("agents-realtime-turns", "agents_realtime_turns.mjs", wants_toy=True),
    Client("agents-realtime-browser", "agents_realtime_browser.mjs", ("websocket",), wants_toy=True),
    Client("agents-realtime-webrtc", "agents_realtime_browser.mjs", ("webrtc",), wants_toy=True),
    Client("pipecat-turns", "pipecat_turns.py", packages="pipecat", wants_toy=True),
    Client("livekit-openai-turns", "livekit_turns.py", ("openai",), "livekit", wants_toy=True),
    Client("livekit-stepfun-turns", "livekit_turns.py", ("stepfun",), "livekit", wants_toy=True),
)


def main() -> None:
    """Run the clients that are named, all if none is, and exit with 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(client.name for client in CLIENTS))
    parser.add_argument("--model", default="nano", help="of the talks: shipped weights, a folder of weights, or `toy`")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds that a scenario may take")
    given = parser.parse_args()
    os.environ["PATIENCE_S"] = str(given.patience)
    if unknown := set(given.names) - {client.name for client in CLIENTS}:
        parser.error(f"there is no client {min(unknown)!r}: choose from {', '.join(client.name for client in CLIENTS)}")
    wanted = [client for client in CLIENTS if not given.names or client.name in given.names]
    OUT.mkdir(parents=True, exist_ok=True)
    able = [client for client in wanted if not client.hindrance]
    for client in able:
        install(client)
    passed = []
    for model in dict.fromkeys((given.model, "toy")):
        clients = [client for client in able if ("toy" if client.wants_toy else given.model) == model]
        passed += run(model, clients) if clients else []
    for client in wanted:
        if client.hindrance:
            print(f"SKIP {client.name}: {client.hindrance}")
    sys.exit(not all(passed))


def run(model: str, clients: Sequence[Client]) -> list[bool]:
    """Serve a model, let clients use it one after the other, and say which of them passed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        recording = folder / "question.wav"
        write_audio(recording, read_audio(RECORDING, SPEAK_HZ), SPEAK_HZ)
        address = stack.enter_context(served(model))
        secure = stack.enter_context(behind_tls(address, folder)) if any(client.wants_tls for client in clients) else ""
        return [converse(client, secure if client.wants_tls else address, recording, folder) for client in clients]


def install(client: Client) -> None:
    """Fill a client's environment, unless that has been done."""
    if client.is_installed:
        return
    if not client.packages:
        options = ["--no-package-lock", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(["npm", "install", *options], cwd=HERE, check=True)
        return
    wanted = PACKAGES[client.packages]
    print(f"installing {', '.join(wanted)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", client.environment], check=True)
    subprocess.run([client.environment / "bin/pip", "install", "-q", *wanted], check=True)
    (client.environment / "installed").touch()


@contextmanager
def served(model: str) -> Iterator[str]:
    """Serve a model on a free port, and give the API's address once it is loaded."""
    command = [sys.executable, "-m", "tristep", "serve", "--port", "0", "--model", model, "--allow-origin", ORIGIN]
    if model == "toy":
        command = [sys.executable, str(HERE / "toy.py"), ORIGIN]
    log_path = OUT / f"server-{Path(model).name}.log"
    with log_path.open("w") as log, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            served = re.search(r"http://\S+", server.stdout.readline())
            if served is None:
                raise SystemExit(f"the server did not start: {log_path} says why")
            yield served[0]
        finally:
            server.terminate()


def converse(client: Client, url: str, recording: Path, folder: Path) -> bool:
    """Let a client do its scenario, print its row of the table, and say whether it passed."""
    environment = os.environ | {
        "NODE_EXTRA_CA_CERTS": str(folder / "cert.pem"), "CHROMIUM": CHROMIUM or "", "PICTURES": str(OUT),
        "LOGURU_LEVEL": "WARNING", "OPENAI_AGENTS_DISABLE_TRACING": "1", "ORIGIN": ORIGIN,
    }  # fmt: skip
    started = time.monotonic()
    with (OUT / f"{client.name}.log").open("w") as log:
        command = [*client.command, url, str(recording)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, check=False)
    last = (done.stdout.strip().splitlines() or [f"FAIL {client.name}: it broke; {log.name} says why"])[-1]
    print(f"{last} ({time.monotonic() - started:.0f} s)", flush=True)
    return done.returncode == 0


@contextmanager
def behind_tls(address: str, folder: Path) -> Iterator[str]:
    """Give an https address of a server that has only http, with a certificate of its own in `cert.pem`."""
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext", names,
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    loop = asyncio.new_event_loop()
    port = int(re.findall(r":(\d+)", address)[0])
    listening = asyncio.start_server(lambda *ends: joined(*ends, port), "127.0.0.1", 0, ssl=context)
    proxy = loop.run_until_complete(listening)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        proxy.close()
        if passing := asyncio.all_tasks(loop):
            loop.run_until_complete(asyncio.gather(*passing, return_exceptions=True))
        loop.close()


async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Pass bytes on between a client and the server, both ways."""
    from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(passed_on(reader, to_server), passed_on(from_server, writer), return_exceptions=True)


async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until there are no more."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


if __name__ == "__main__":
    main()
