"""`tristep serve` as its users start and stop it, with the model that ships."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from server.toys import CLIP, KEY
from typer.testing import CliRunner

import tristep
from tristep.cli import app
from tristep.server.app import listen
from tristep.server.settings import Settings


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_nano_is_served_until_the_last_answer_is_given(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"another\n\n{KEY}\n")
    command = [sys.executable, "-m", "tristep", "serve", "--port", "0", "--threads", "1", "--api-key-file", str(keys)]
    environment = {**os.environ, "PYTHONPATH": str(Path(tristep.__file__).parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    sentence, _, address = process.stdout.readline().strip().rpartition(" ")
    assert sentence == "nano is served at"
    with openai.OpenAI(api_key=KEY, base_url=address, max_retries=0) as client:
        stream = client.audio.transcriptions.create(model="whisper-1", file=CLIP, stream=True)
        process.send_signal(signal.SIGTERM)
        *_, done = list(stream)
    assert done.type == "transcript.text.done"
    assert "country" in done.text
    _, log = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM)
    assert "POST /v1/audio/transcriptions 200 " in log
    assert KEY not in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--host", "0.0.0.0"], "there is no API key"),
        (["--model", "gone"], "there are no weights 'gone'"),
        (["--api-key-file", "gone.txt"], "gone.txt can't be read"),
        (["--api-key-file", os.devnull], "holds no key"),
        (["--port", "70000"], "port is 70000"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], part: str) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2
    assert part in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1:{port} can't be served on .* choose another"):
            listen(Settings(port=port))


def test_help_teaches_on_one_screen() -> None:
    lines = CliRunner().invoke(app, ["serve", "--help"]).stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert "tristep serve --host 0.0.0.0 --api-key-file keys.txt" in "\n".join(lines)
