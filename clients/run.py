"""Let unmodified clients of other projects hold a spoken conversation with `tristep serve`, and print a table.

Each client gets an environment of its own beside this file (`.venvs/`, `node_modules/`), filled from PyPI and npm, and
is told nothing but the server's address. It speaks a bundled recording, and passes if it received a transcript, an
answer in words and in sound, and the end of the response, without an error. What the clients wrote lies in
`runs/clients/`, beside pictures of the page.

    python clients/run.py                    # all of them
    python clients/run.py pipecat page       # some
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tristep.audio import SPEAK_HZ, read_audio, write_audio

HERE = Path(__file__).parent
RECORDING = HERE.parent / "tests/data/kathleen_b0442.opus"
OUT = Path("runs/clients")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass(frozen=True)
class Client:
    """A client, and how it is installed and started."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    """From PyPI; those of npm are in `package.json`."""
    wants_tls: bool = False

    @property
    def environment(self) -> Path:
        """Where its packages from PyPI lie."""
        return HERE / ".venvs" / self.script.removesuffix("_talk.py")

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
        if self.script == "page.mjs" and CHROMIUM is None:
            return "Chromium is not installed"
        return "openssl is not installed" if self.wants_tls and not shutil.which("openssl") else ""


LIVEKIT = ("livekit-plugins-openai>=1.8", "livekit-plugins-stepfun>=1.8")
CLIENTS = (
    Client("openai", "openai_talk.py", packages=("openai[realtime]>=3",)),
    Client("openai-npm", "openai_talk.mjs", wants_tls=True),
    Client("agents-realtime", "agents_realtime_talk.mjs"),
    Client("pipecat", "pipecat_talk.py", packages=("pipecat-ai[openai]>=1.14",)),
    Client("livekit-openai", "livekit_talk.py", ("openai",), LIVEKIT),
    Client("livekit-stepfun", "livekit_talk.py", ("stepfun",), LIVEKIT),
    Client("page", "page.mjs"),
)


def main() -> None:
    """Run the clients that are named, all if none is, and exit with 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(client.name for client in CLIENTS))
    parser.add_argument("--model", default="nano", help="shipped weights, or a folder of weights")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds that a conversation may take")
    given = parser.parse_args()
    os.environ["PATIENCE_S"] = str(given.patience)
    if unknown := set(given.names) - {client.name for client in CLIENTS}:
        parser.error(f"there is no client {min(unknown)!r}: choose from {', '.join(client.name for client in CLIENTS)}")
    wanted = [client for client in CLIENTS if not given.names or client.name in given.names]
    OUT.mkdir(parents=True, exist_ok=True)
    able = [client for client in wanted if not client.hindrance]
    for client in able:
        install(client)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        recording = folder / "question.wav"
        write_audio(recording, read_audio(RECORDING, SPEAK_HZ), SPEAK_HZ)
        address = stack.enter_context(served(given.model))
        secure = stack.enter_context(behind_tls(address, folder)) if any(client.wants_tls for client in able) else ""
        passed = [converse(client, secure if client.wants_tls else address, recording, folder) for client in able]
    for client in wanted:
        if client.hindrance:
            print(f"SKIP {client.name}: {client.hindrance}")
    sys.exit(not all(passed))


def install(client: Client) -> None:
    """Fill a client's environment, unless that has been done."""
    if not client.packages:
        if not (HERE / "node_modules").exists():
            options = ["--no-package-lock", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(["npm", "install", *options], cwd=HERE, check=True)
    elif not (client.environment / "installed").exists():
        print(f"installing {', '.join(client.packages)}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", client.environment], check=True)
        subprocess.run([client.environment / "bin/pip", "install", "-q", *client.packages], check=True)
        (client.environment / "installed").touch()


@contextmanager
def served(model: str) -> Iterator[str]:
    """Serve a model on a free port, and give the API's address once it is loaded."""
    command = [sys.executable, "-m", "tristep", "serve", "--port", "0", "--model", model]
    with (OUT / "server.log").open("w") as log, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            served = re.search(r"http://\S+", server.stdout.readline())
            if served is None:
                raise SystemExit(f"the server did not start: {OUT / 'server.log'} says why")
            yield served[0]
        finally:
            server.terminate()


def converse(client: Client, url: str, recording: Path, folder: Path) -> bool:
    """Let a client talk, print its row of the table, and say whether it passed."""
    environment = os.environ | {
        "NODE_EXTRA_CA_CERTS": str(folder / "cert.pem"), "CHROMIUM": CHROMIUM or "", "PICTURES": str(OUT),
        "LOGURU_LEVEL": "WARNING", "OPENAI_AGENTS_DISABLE_TRACING": "1",
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
