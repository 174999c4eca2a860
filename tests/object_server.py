"""An S3 server on loopback: moto's application behind werkzeug, with a log of requests and faults on demand.

    with ObjectServer() as server:
        server.make_bucket("bucket")
        server.fail("503", every=3)                       # every third request
        server.fail("cut", method="GET", key="views/")    # the body ends in the middle
        server.heal()

A GET of /plain/... serves the objects of a bucket as a plain web server does: `http://.../plain/bucket/key`.
"""

import logging
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

QUICK = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=5),
    "backoff": {
        "init_backoff": timedelta(milliseconds=5),
        "max_backoff": timedelta(milliseconds=20),
        "base": 2,
    },
}  # retries for tests
_WRITES = {"PUT", "POST", "DELETE"}
_SIGNED = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)
_SLOW_SECONDS = 0.3
_ANSWERS = {"500": "500 Internal Server Error", "503": "503 Slow Down", "403": "403 Forbidden"}


@dataclass
class Fault:
    """Fault of every n-th request of a kind: "503", "cut", "closed", "lost" (done, no answer) or "slow"."""

    kind: str
    every: int
    method: str | None
    key: str
    times: int | None
    seen: int = 0
    done: int = 0

    def strikes(self, method, path):
        if self.method not in (None, method) or self.key not in path:
            return False
        self.seen += 1
        if self.seen % self.every or (self.times is not None and self.done >= self.times):
            return False
        self.done += 1
        return True


class ObjectServer:
    """A server with its own thread; a context manager."""

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self.faults = []
        self.log = []
        self.most_at_once = self._at_once = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self):
        """Address of the S3 service."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def environment(self):
        """The environment variables with which s3:// leads here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }

    @property
    def backend(self):
        """Moto's state, for tests that look behind the protocol."""
        return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]

    def make_bucket(self, name):
        self.backend.create_bucket(name, "us-east-1")

    def unfinished_uploads(self, bucket):
        """Multipart uploads that were begun and neither completed nor aborted."""
        return len(self.backend.buckets[bucket].multiparts)

    def fail(self, kind, every=1, method=None, key="", times=None):
        """Let every n-th request whose method and path fit meet a fault, at most `times` times."""
        self.faults.append(Fault(kind, every, method, key, times))

    def heal(self):
        self.faults.clear()

    def counts(self):
        """Requests by method since the last `forget`."""
        return Counter(method for method, _ in self.log)

    def forget(self):
        self.log.clear()
        self.most_at_once = 0

    def __call__(self, environ, start_response):
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self._serve(environ, start_response)
        finally:
            with self._lock:
                self._at_once -= 1

    def _serve(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._lock:
            self.log.append((method, f"{path}?{environ['QUERY_STRING']}".removesuffix("?")))
            kind = next((fault.kind for fault in self.faults if fault.strikes(method, path)), None)
        if kind in _ANSWERS:
            start_response(_ANSWERS[kind], [("Content-Length", "0")])
            return [b""]
        if kind == "closed":
            return _hang_up(environ)
        if kind == "slow":
            time.sleep(_SLOW_SECONDS)
        if path.startswith("/plain"):
            environ["HTTP_AUTHORIZATION"] = _SIGNED
            for name in ("PATH_INFO", "RAW_URI", "REQUEST_URI"):
                environ[name] = environ[name].removeprefix("/plain")
        status, headers, body = self._answer(environ)
        if kind == "lost":
            return _hang_up(environ)
        start_response(status, headers)
        return _cut(body, environ) if kind == "cut" else [body]

    def _answer(self, environ):
        """Let moto answer; writes one at a time, as its conditional writes are not atomic between threads."""
        answer = []
        application = self._application
        with self._writing if environ["REQUEST_METHOD"] in _WRITES else _no_lock:
            body = b"".join(
                application(environ, lambda status, headers, _=None: answer.extend((status, headers)))
            )
        return *answer, body


def _hang_up(environ):
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def _cut(body, environ):
    yield body[: len(body) // 2]
    _hang_up(environ)


class _NoLock:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


_no_lock = _NoLock()


class _Handler(WSGIRequestHandler):
    """Keeps connections open, and says nothing of those that break."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log(self, *_):
        return None

    def connection_dropped(self, *_):
        return None
