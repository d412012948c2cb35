"""A local HTTP server that misbehaves on request."""

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """How one file is served; counters go down with every request."""

    content: bytes
    etag: str | None = '"v1"'
    break_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ignore_range: bool = False
    announce: bool = True
    requests: list[str | None] = field(default_factory=list)


class FileServer:
    def __init__(self):
        self.files: dict[str, Behaviour] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *args):
                pass

            def do_GET(self):
                outer.serve(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, path, content, **options):
        self.files[path] = Behaviour(content, **options)
        return self.files[path]

    def serve(self, request):
        file = self.files.get(request.path.lstrip("/"))
        if file is None:
            request.send_error(404)
            return
        wanted = request.headers.get("Range")
        file.requests.append(wanted)
        if file.statuses:
            request.send_error(file.statuses.pop(0))
            return
        start = 0
        fresh = request.headers.get("If-Range") in (None, file.etag)
        if wanted and fresh and not file.ignore_range:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(file.content):
                request.send_error(416)
                return
        request.send_response(206 if start else 200)
        if file.announce:
            request.send_header("Content-Length", str(len(file.content) - start))
        if start:
            size = len(file.content)
            request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if file.etag:
            request.send_header("ETag", file.etag)
        request.end_headers()
        end = len(file.content)
        if file.break_after:
            end = min(end, start + file.break_after.pop(0))
        request.wfile.write(file.content[start:end])

    def close(self):
        self._server.shutdown()
        self._server.server_close()
