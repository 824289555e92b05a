"""A stand-in for the Hugging Face hub: a local HTTP server that answers the requests of the hub's client."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from urllib.parse import unquote

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub:
    """The repositories by name, each {path: content}; only the token "hf_right" may push.

    Attributes:
      repositories: all repositories; a push adds to them.
      private: the names of the repositories that were created as private.
      asked: the paths that clients requested.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.address = ""

    def files(self, name: str) -> list[dict]:
        return [
            {"type": "file", "path": path, "rfilename": path, "size": len(content), "oid": digest(content)}
            for path, content in self.repositories[name].items()
        ]


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Yield a hub that answers at `address` while the block runs."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def answer(self, code, content=b"", **headers):
            self.send_response(code)
            for name, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def answer_json(self, value):
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(self.path.partition("?")[0]).strip("/")
            hub.asked.append(path)
            parts = path.removeprefix("api/models/").split("/")
            name = "/".join(parts[:2])
            if name not in hub.repositories:
                return self.answer(404, X_Error_Code="RepoNotFound")
            if "/resolve/" in path:
                file = "/".join(parts[4:])
                if file not in hub.repositories[name]:
                    return self.answer(404, X_Error_Code="EntryNotFound")
                content = hub.repositories[name][file]
                return self.answer(200, content, ETag=f'"{digest(content)}"', X_Repo_Commit=COMMIT)
            if "/tree/" in path:
                return self.answer_json(hub.files(name))
            return self.answer_json({"id": name, "sha": COMMIT, "siblings": hub.files(name), "private": False})

        def do_POST(self):
            path = unquote(self.path.partition("?")[0]).strip("/")
            hub.asked.append(path)
            content = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.headers["Authorization"] != "Bearer hf_right":
                return self.answer(401)
            if path == "api/validate-yaml":  # of the model card
                return self.answer_json({"errors": [], "warnings": []})
            if path == "api/repos/create":
                about = json.loads(content)
                name = "/".join(part for part in (about.get("organization"), about["name"]) if part)
                hub.repositories.setdefault(name, {})
                if about.get("private") or about.get("visibility") == "private":
                    hub.private.add(name)
                return self.answer_json({"url": f"{hub.address}/{name}", "id": name})
            name = "/".join(path.split("/")[2:4])
            if "/preupload/" in path:
                files = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in json.loads(content)["files"]
                ]
                return self.answer_json({"files": files})
            if "/commit/" in path:
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        hub.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self.answer_json({"commitUrl": f"{hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
            return self.answer(404)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
