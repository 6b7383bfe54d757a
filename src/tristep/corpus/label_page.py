"""The summary of a labelled corpus as one page that needs nothing else: outcomes, voters, grades, the worst pieces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from tristep.corpus.vote import GAP, vote_texts

Row = dict[str, Any]
NUM_WORST = 30
"""Disputed pieces that are shown."""
EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of disputed places up to which pieces are counted together; the last bar holds the rest."""
GRADES = {"snr_db": "SNR, dB", "bandwidth_hz": "bandwidth, Hz", "clipped_share": "clipped", "speech_share": "speech"}


def write_page(rows: Sequence[Row], voters: Sequence[str], path: Path) -> None:
    """Write the summary of all pieces, kept and dropped."""
    heard = [row for row in rows if "disagreement" in row]
    page = PAGE.format(
        outcomes=_table(("outcome", "pieces", "hours", *GRADES.values()), _outcomes(rows)),
        languages=_table(("language", "pieces", "hours"), _grouped(heard, "language")),
        voters=_table(("voter", "agrees with the vote", "writes what is kept"), _voters(heard, voters)),
        bars=_bars([row["disagreement"] for row in heard]),
        worst="\n".join(map(_disputed, sorted(heard, key=lambda row: -row["disagreement"])[:NUM_WORST])),
    )
    path.write_text(page, encoding="utf-8")


def _outcomes(rows: Sequence[Row]) -> list[list[str]]:
    """Count pieces and hours of each outcome, with the medians of their grades."""
    found = _grouped(rows, "outcome")
    for cells in found:
        same = [row for row in rows if row["outcome"] == cells[0]]
        for name in GRADES:
            values = [row[name] for row in same if name in row]
            cells.append(f"{median(values):.4g}" if values else "")
    return found


def _grouped(rows: Sequence[Row], key: str) -> list[list[str]]:
    """Count pieces and hours by a key, the most first."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row.get("duration", 0.0))
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [[name, str(len(lengths)), f"{sum(lengths) / 3600:.3f}"] for name, lengths in ordered]


def _voters(rows: Sequence[Row], voters: Sequence[str]) -> list[list[str]]:
    """Say of each voter how often its words, and its whole transcript, are those that were voted for."""
    found = []
    for voter in voters:
        shares = [row["agreement"][voter] for row in rows if voter in row["agreement"]]
        if shares:
            whole = sum(share == 1 for share in shares) / len(shares)
            found.append([voter, f"{sum(shares) / len(shares):.1%} of places", f"{whole:.1%} of pieces"])
    return found


def _bars(shares: Sequence[float]) -> str:
    """Draw how many pieces are disputed how much."""
    lower = (-1.0, *EDGES)
    names = ("none", *(f"up to {edge:.0%}" for edge in EDGES[1:]), f"over {EDGES[-1]:.0%}")
    counts = [sum(low < share <= high for share in shares) for low, high in zip(lower, (*EDGES, 1e9), strict=True)]
    rows = zip(names, counts, strict=True)
    return "\n".join(
        f'<div class="bar"><b>{name}</b><i style="width:{60 * count / max(1, *counts):.1f}%"></i>{count}</div>'
        for name, count in rows
    )


def _disputed(row: Row) -> str:
    """Show a piece: its columns, those without a majority marked."""
    result = vote_texts(list(row["heard"].values()), row["language"])
    shown = zip(result.columns, result.disputed, strict=True)
    words = [_column(column, disputed) for column, disputed in shown]
    head = f"<b>{escape(row['id'])}</b> {row['disagreement']:.0%}, {row['outcome']}"
    return f"<p>{head}<br>{' '.join(words)}</p>"


def _column(column: Sequence[str], disputed: bool) -> str:
    said = [escape(unit) if unit != GAP else "&empty;" for unit in column]
    if len(set(said)) == 1:
        return said[0]
    return f'<span class="{"disputed" if disputed else "outvoted"}">{"/".join(said)}</span>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_cells(header, "th"), *(_cells(row, "td") for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _cells(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Labelled sound</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
.bar {{ display: flex; align-items: center; gap: .5rem; }}
.bar b {{ width: 7rem; font-weight: normal; }}
.bar i {{ height: 1rem; background: #4878a8; }}
.disputed {{ background: #fbdcd9; color: #8c1d18; }}
.outvoted {{ background: #fff0c2; color: #6b4e00; }}
small {{ color: #666; }}
</style>
<h1>Labelled sound</h1>
<p>Medians of the grades stand beside each outcome.</p>
{outcomes}
{languages}
<h2>Voters</h2>
{voters}
<h2>Share of disputed places, pieces</h2>
{bars}
<h2>The most disputed pieces</h2>
<p><small>What each voter heard at a place, in the order above: <span class="disputed">no majority</span>,
<span class="outvoted">outvoted</span>, &empty; nothing. Texts are normalised.</small></p>
{worst}
</html>
"""
