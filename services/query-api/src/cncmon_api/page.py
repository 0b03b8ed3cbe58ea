"""The web page: the files that the web build left in `static/`, held in memory, compressed once."""

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

STATIC: Final = Path(__file__).parent / "static"
_COMPRESSIBLE: Final = ("text/", "application/javascript", "application/json", "application/manifest+json", "image/svg")
_GZIP_BYTES_MIN: Final = 512
_NOT_BUILT: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>CNC Monitor</title>
<h1>The page is not built</h1>
<p>The API works: <a href="/api/v1/machines">machines</a>, <a href="/openapi.json">openapi.json</a>.</p>
<p>To build the page run <code>make setup</code>, then reload.</p></html>"""


@dataclass(frozen=True)
class File:
    """One file as it is sent. `zipped` None: compressing it gains nothing."""

    media_type: str
    raw: bytes
    zipped: bytes | None
    tag: str
    cache: str


class Site:
    """The built files by path; read again when `index.html` has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built_ns = 0
        self._files: dict[str, File] = {}

    def find(self, path: str) -> File | None:
        """Return the file of a path relative to the folder, or None."""
        if not self._files or path == "index.html":
            self._read()
        return self._files.get(path)

    def _read(self) -> None:
        try:
            built_ns = (self._folder / "index.html").stat().st_mtime_ns
        except OSError:
            self._files, self._built_ns = {}, 0
            return
        if built_ns != self._built_ns:
            paths = [path for path in self._folder.rglob("*") if path.is_file()]
            self._files = {path.relative_to(self._folder).as_posix(): self._load(path) for path in paths}
            self._built_ns = built_ns

    def _load(self, path: Path) -> File:
        raw = path.read_bytes()
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        zipped = None
        if media_type.startswith(_COMPRESSIBLE) and len(raw) >= _GZIP_BYTES_MIN:
            zipped = gzip.compress(raw, 9, mtime=0)
        # Vite puts a hash of the content into every name under assets/.
        hashed = path.parent.name == "assets"
        cache = "public, max-age=31536000, immutable" if hashed else "no-cache"
        return File(media_type, raw, zipped, f'"{hashlib.blake2b(raw, digest_size=12).hexdigest()}"', cache)


router = APIRouter(include_in_schema=False)


@router.get("/{path:path}")
async def page(request: Request, path: str) -> Response:
    """Serve a built file; any other path without a dot is one of the page's own, and gets the page."""
    site: Site = request.app.state.site
    if path.startswith("api/"):
        raise HTTPException(404)
    file = site.find(path) if path else None
    if (file is None and "." not in path.rsplit("/", 1)[-1]) or path.startswith("machines/"):
        file = site.find("index.html")
        if file is None:
            return Response(_NOT_BUILT, media_type="text/html", headers={"Cache-Control": "no-store"})
    if file is None:
        raise HTTPException(404)
    headers = {"Cache-Control": file.cache, "ETag": file.tag, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    body = file.raw
    if file.zipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
        body = file.zipped
        headers["Content-Encoding"] = "gzip"
    return Response(body, media_type=file.media_type, headers=headers)
