"""Small nets and checks that several tests share."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from keras_resnet_cifar.errors import InputError

TINY = {"depth": 8, "widths": (4, 8, 16)}  # compiles in a second or two


def refusal(action, *arguments):
    """The one line with which something is refused."""
    with pytest.raises(InputError) as caught:
        action(*arguments)
    line = str(caught.value)
    del caught  # with this frame it is a circle, which may keep sockets open
    assert "\n" not in line
    return line


@contextlib.contextmanager
def serve(answer):
    """Serves HTTP on this machine; yields the address.

    `answer(method, path, body)` returns the status, headers and content; where
    the content is shorter than a Content-Length in the headers, it is cut.
    """

    class Handler(BaseHTTPRequestHandler):
        def respond(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            status, headers, content = answer(self.command, self.path, body)
            headers = {"Content-Length": len(content)} | headers
            with contextlib.suppress(ConnectionError):  # the client gave up
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        do_GET = do_HEAD = do_POST = respond

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
