from __future__ import annotations

import pytest

from tristep.engine.dialogue import SessionError
from tristep.server.realtime_items import read_options
from tristep.server.realtime_sound import WireFormat


def voice_of(given: object) -> str | None:
    return read_options({"audio": {"output": {"voice": given}}}, WireFormat())[1].voice


def test_a_response_names_its_voice_in_any_of_three_ways_or_in_none() -> None:
    assert [voice_of(given) for given in ("marin", {"id": "marin"}, None)] == ["marin", "marin", None]


@pytest.mark.parametrize("given", ["x" * 257, 3])
def test_a_voice_that_is_no_name_is_refused(given: object) -> None:
    with pytest.raises(SessionError, match="voice"):
        voice_of(given)
