"""The page: four files, served as they are."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/worklet.js": ("worklet.js", "text/javascript"),
    "/page/page.css": ("page.css", "text/css"),
}
"""Every path, its file and its type."""
POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "media-src blob:",
    "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
))  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def serve(path: str) -> None:
    """Add a file to the routes."""
    name, media_type = FILES[path]

    async def page() -> FileResponse:
        return FileResponse(FOLDER / name, media_type=media_type, headers=HEADERS)

    router.add_api_route(path, page, methods=["GET", "HEAD"])


for path in FILES:
    serve(path)
