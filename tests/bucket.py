"""Emulate a Google Cloud Storage bucket whose objects are files in a local directory."""

import contextlib
import http.server
import logging
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

NAME = "bucket"


class _Server(http.server.ThreadingHTTPServer):
    """An HTTP server with one thread per connection; it ignores clients that hang up."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


@contextlib.contextmanager
def emulated(directory: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the directory with the objects of `gs://bucket`, and the environment in which processes use the emulator.

    Raises:
      ImportError: `pip install gcsfs gcp-storage-emulator` is missing.
    """
    import gcsfs  # noqa: F401
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    storage = Storage(data_dir=str(directory))
    buckets.create_bucket(NAME, storage)
    one_at_a_time = threading.Lock()  # the emulator's own server has one thread, and its storage relies on that

    class Handler(RequestHandler):
        """Adds what TensorStore needs and the emulator lacks: object generations, and conditions on them."""

        _generation = None

        def _answer(self, answer) -> None:
            with one_at_a_time:
                url = urllib.parse.urlparse(self.path)
                query = urllib.parse.parse_qs(url.query)
                (name,) = query.get("name", [urllib.parse.unquote(url.path.rpartition("/o/")[2])])
                try:
                    now = storage.get_file_obj(NAME, name)["generation"]
                except NotFound:
                    now = "0"
                if query.get("ifGenerationMatch", [now]) != [now]:
                    self.send_error(412, "Precondition Failed")
                elif now != "0" and query.get("ifGenerationNotMatch") == [now]:
                    self.send_response(304)
                    self.end_headers()
                else:
                    self._generation = now if self.command == "GET" and now != "0" else None
                    answer()

        def end_headers(self) -> None:
            if self._generation:
                self.send_header("x-goog-generation", self._generation)
            super().end_headers()

        def do_GET(self):
            self._answer(super().do_GET)

        def do_POST(self):
            self._answer(super().do_POST)

        def do_PUT(self):
            self._answer(super().do_PUT)

        def do_DELETE(self):
            self._answer(super().do_DELETE)

    with _Server(("127.0.0.1", 0), lambda *arguments: Handler(storage, *arguments)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = "http://{}:{}".format(*server.server_address)
        environment = {
            "STORAGE_EMULATOR_HOST": address,  # gcsfs
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google for the type of this bucket
            "TENSORSTORE_GCS_HTTP_URL": address,
        }
        try:
            yield directory / ".cloudstorage" / NAME, environment
        finally:
            server.shutdown()
