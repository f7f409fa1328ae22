"""A small real HTTP server for tests of the client: speaks the documented protocol, follows a script of faults."""

import email.parser
import email.policy
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from ci_common.events import CompleteEvent, JobIdEvent, LogEvent, Position, StatusEvent, StreamEvent
from ci_common.job_terms import JobStatus, Reason
from tests.support.blob_shelf import BlobShelf, Submission

KEY = "ci_test-key"
JOB_ID = "1222e26a-e4d2-4dda-8ffa-ba333257cc1b"
PASSED = CompleteEvent(True, JobStatus.COMPLETED, 0, None, "1 passed")


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection ends after so many bytes of the answer's body, in the middle of whatever that is."""

    after: int


@dataclass(frozen=True, slots=True)
class HangUp:
    """The connection ends before anything is read of the body or answered."""


@dataclass(frozen=True, slots=True)
class Answer:
    """This is answered instead."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def problem(cls, status: int, code: str, detail: str, **headers: str) -> Self:
        """Return a problem document."""
        document = {"type": f"urn:ci:error:{code}", "status": status, "code": code, "detail": detail}
        content = {"Content-Type": "application/problem+json", **headers}
        return cls(status, json.dumps({**document, "request_id": "req-1"}).encode(), content)


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    form: dict[str, list[bytes]]
    body: bytes = b""

    @property
    def submission(self) -> Submission:
        """What a `/submit-tree` asked for."""
        return Submission.parse(self.body)


@dataclass(slots=True)
class Script:
    """What the one job of this server is like, and what goes wrong; faults are used up one a request."""

    job_id: str = JOB_ID  # as it is told; the addresses stay
    log: bytes = b"collected 1 item\n1 passed\n"
    earlier_logs: dict[int, bytes] = field(default_factory=dict[int, bytes])  # by attempt
    piece: int = 16  # bytes of output per event
    attempt: int = 1
    before: tuple[StreamEvent, ...] = (StatusEvent(JobStatus.RUNNING, 1),)
    end: CompleteEvent = PASSED
    hold_after: int | None = None  # so many bytes of output, then nothing until `release`
    faults: deque[Cut | HangUp | Answer] = field(default_factory=deque[Cut | HangUp | Answer])
    pages: list[list[dict[str, Any]]] = field(default_factory=lambda: [[]])
    queued: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    max_upload_bytes: int = 1 << 30
    trees: bool = True  # False: as a server from before there were any
    on_question: Callable[[list[str]], None] = lambda _: None  # called with the hashes, before any answer
    on_submit: Callable[[], None] = lambda: None  # called with the upload received, before any answer


class HttpPeer:
    """A server on a port of its own; `stop` and `start` again on the same one. A context manager."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.received: list[Received] = []
        self.holding = threading.Event()  # a stream has come to `hold_after`
        self.released = threading.Event()
        self.jobs: dict[str, str] = {}  # idempotency key -> job
        self.shelf = BlobShelf()
        self.accepted = 0  # connections so far
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.stop()

    def start(self) -> None:
        """The server answers on its port."""
        handler = type("Handler", (_Handler,), {"peer": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Every connection is broken and the port refuses new ones."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        for connection in list(self._connections):
            hang_up(connection)
        self._server.server_close()
        self._thread.join()
        self._server = None

    def requests(self, method: str, path: str) -> list[Received]:
        """Return the requests so far of one kind."""
        return [one for one in self.received if one.method == method and one.path == path]

    def connected(self, connection: socket.socket) -> None:
        self.accepted += 1
        self._connections.add(connection)

    def disconnected(self, connection: socket.socket) -> None:
        self._connections.discard(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A broken connection is what this server is for."""


def hang_up(connection: socket.socket) -> None:
    """The connection is over for both sides."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was quicker


class _HungUp(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    peer: HttpPeer
    protocol_version = "HTTP/1.1"
    _budget: int | None = None  # bytes of body until a scripted cut

    def setup(self) -> None:
        super().setup()
        self.peer.connected(self.connection)

    def finish(self) -> None:
        self.peer.disconnected(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Tests look at what was received, not at a log."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        try:
            self._answer()
        except (_HungUp, OSError):
            self.close_connection = True
            hang_up(self.connection)

    def _answer(self) -> None:
        url = urlsplit(self.path)
        script = self.peer.script
        fault = script.faults.popleft() if script.faults else None
        if isinstance(fault, HangUp):
            raise _HungUp
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        received = Received(self.command, url.path, parse_qs(url.query), headers, self._form(body), body)
        self.peer.received.append(received)
        self._budget = fault.after if isinstance(fault, Cut) else None
        if isinstance(fault, Answer):
            self._send(fault)
        elif headers.get("authorization") != f"Bearer {KEY}":
            self._send(Answer.problem(401, "unauthorized", "There is no valid API key."))
        else:
            self._route(received)

    def _route(self, request: Received) -> None:
        routes: dict[tuple[str, str], Callable[[Received], None]] = {
            ("POST", "/submit-stream"): self._submit_stream,
            ("POST", "/submit-async"): self._submit_async,
            **(self._tree_routes() if self.peer.script.trees else {}),
            ("GET", f"/jobs/{JOB_ID}/stream"): self._stream,
            ("GET", f"/jobs/{JOB_ID}/log"): self._log,
            ("HEAD", f"/jobs/{JOB_ID}/log"): self._log,
            ("GET", f"/jobs/{JOB_ID}"): self._job,
            ("DELETE", f"/jobs/{JOB_ID}"): self._cancel,
            ("GET", "/jobs"): self._jobs,
            ("GET", "/info"): self._info,
            ("GET", "/capacity"): self._capacity,
            ("GET", "/api/queue/jobs"): self._queue,
        }
        missing = Answer.problem(404, "job_not_found", "There is no such job.")
        routes.get((request.method, request.path), lambda _: self._send(missing))(request)

    def _tree_routes(self) -> dict[tuple[str, str], Callable[[Received], None]]:
        return {
            ("POST", "/submit-tree"): self._submit_tree,
            ("POST", "/blobs/missing"): self._blobs_missing,
            ("PUT", "/blobs"): self._put_blobs,
        }

    def _submit_tree(self, request: Received) -> None:
        submission = request.submission
        self.peer.shelf.put(submission.records)
        if missing := self.peer.shelf.missing_of_tree(submission.root):
            document = {"code": "missing_blobs", "detail": "Some are missing.", "missing": missing}
            return self._json(document, 409)
        return (self._submit_stream if "event-stream" in request.headers["accept"] else self._submit_async)(
            request
        )

    def _blobs_missing(self, request: Received) -> None:
        asked: list[str] = json.loads(request.body)["sha256"]
        self.peer.script.on_question(asked)
        self._json({"missing": self.peer.shelf.missing(asked)})

    def _put_blobs(self, request: Received) -> None:
        self._json({"stored": self.peer.shelf.put(request.body)})

    def _submit_async(self, request: Received) -> None:
        self._json({"job_id": self._accept(request)})

    def _submit_stream(self, request: Received) -> None:
        job_id = self._accept(request)
        self._begin_stream()
        self._event(JobIdEvent(job_id))
        self._events(Position(self.peer.script.attempt, 0))

    def _accept(self, request: Received) -> str:
        self.peer.script.on_submit()
        return self.peer.jobs.setdefault(request.headers.get("idempotency-key", ""), self.peer.script.job_id)

    def _stream(self, request: Received) -> None:
        script = self.peer.script
        start = Position(script.attempt, len(script.log))
        if request.query.get("from_beginning") == ["true"]:
            start = Position(script.attempt, 0)
        if last := request.headers.get("last-event-id"):
            start = Position.parse(last)
        self._begin_stream()
        self._events(start)

    def _events(self, start: Position) -> None:
        script = self.peer.script
        for event in script.before:
            self._event(event)
        at = start.offset if start.attempt == script.attempt else 0
        while at < len(script.log):
            if script.hold_after is not None and at >= script.hold_after:
                self._hold()
            piece = script.log[at : at + script.piece]
            at += len(piece)
            self._event(LogEvent(piece, Position(script.attempt, at)))
        if script.hold_after is not None:
            self._hold()
        self._event(script.end)
        self._write(b"")

    def _hold(self) -> None:
        self.peer.holding.set()
        while not self.peer.released.wait(0.05):
            self._write(b": ping\n\n")  # fails, and so ends this thread, when the client has gone

    def _log(self, request: Received) -> None:
        script = self.peer.script
        attempt = int(request.query.get("attempt", [str(script.attempt)])[0])
        log = script.log if attempt == script.attempt else script.earlier_logs[attempt]
        start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(log):
            return self._send(Answer.problem(416, "invalid_offset", "There are no such bytes."))
        return self._send(Answer(206 if start else 200, log[start:], {"Content-Type": "text/plain"}))

    def _job(self, _: Received) -> None:
        self._json(
            {"job_id": JOB_ID, "status": "running", "success": None, "attempt": self.peer.script.attempt}
        )

    def _cancel(self, _: Received) -> None:
        script = self.peer.script
        script.end = CompleteEvent(False, JobStatus.CANCELLED, None, Reason.CANCELLED, "by ada@example.org")
        self.peer.released.set()
        self._json({"job_id": JOB_ID, "status": "running"})

    def _jobs(self, request: Received) -> None:
        number = int(request.query.get("cursor", ["0"])[0])
        pages = self.peer.script.pages
        more = number + 1 < len(pages)
        # An address on another host: a client must not take its key there.
        link = (
            {"Link": f'<http://elsewhere.invalid/jobs?cursor={number + 1}&limit=2>; rel="next"'}
            if more
            else {}
        )
        self._send(
            Answer(200, json.dumps(pages[number]).encode(), {"Content-Type": "application/json", **link})
        )

    def _info(self, _: Received) -> None:
        self._json({"version": "0", "limits": {"max_upload_bytes": self.peer.script.max_upload_bytes}})

    def _capacity(self, _: Received) -> None:
        self._json({"room": True})

    def _queue(self, _: Received) -> None:
        self._json(self.peer.script.queued)

    def _json(self, document: Any, status: int = 200) -> None:
        self._send(Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"}))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._raw(answer.body)

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, event: StreamEvent) -> None:
        id_line = f"id: {event.position}\n" if isinstance(event, LogEvent) else ""
        self._write(f"{id_line}data: {json.dumps(event.to_json())}\n\n".encode())

    def _write(self, data: bytes) -> None:
        """One chunk of a chunked body; an empty one ends it."""
        self._raw(b"%x\r\n%s\r\n" % (len(data), data))

    def _raw(self, data: bytes) -> None:
        if self._budget is not None and len(data) >= self._budget:
            self.wfile.write(data[: self._budget])
            raise _HungUp
        if self._budget is not None:
            self._budget -= len(data)
        self.wfile.write(data)

    def _form(self, body: bytes) -> dict[str, list[bytes]]:
        if not self.headers.get("Content-Type", "").startswith("multipart/form-data"):
            return {}
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        form: dict[str, list[bytes]] = {}
        for part in message.iter_parts():
            name = str(part.get_param("name", header="content-disposition"))
            form.setdefault(name, []).append(bytes(part.get_payload(decode=True)))
        return form
