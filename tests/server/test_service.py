from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from server.toys import CLIP

from tristep.audio import read_audio
from tristep.server.errors import ApiError
from tristep.server.service import Service
from tristep.server.settings import Settings


def test_a_decoder_that_takes_too_long_is_killed_and_replaced(toy: Path, tmp_path: Path) -> None:
    settings = Settings(model=str(toy))
    target = tmp_path / "heard.wav"

    async def main() -> None:
        service = Service(replace(settings, max_decode_s=0.001))
        service.decoder.start()
        try:
            await service.decoder.loaded()
            slow = service.decoder._process
            with pytest.raises(ApiError, match=r"takes more than 0.001 s to decode") as refused:
                await service.decode(CLIP, target)
            assert (refused.value.status_code, refused.value.code) == (400, "unsupported_file")
            service.settings = settings
            assert await service.decode(CLIP, target) == 11.0
            assert slow.exitcode == -signal.SIGKILL
        finally:
            await service.decoder.stop()

    asyncio.run(main())
    assert read_audio(target).equal(read_audio(CLIP))
