from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tristep.arguments import existing


def test_what_is_there_is_taken_and_what_is_not_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("manifest", type=existing)
    assert parser.parse_args([str(tmp_path)]).manifest == tmp_path
    with pytest.raises(SystemExit):
        parser.parse_args([str(tmp_path / "lost.jsonl")])
    assert "argument manifest: there is no" in capsys.readouterr().err
