"""Serve an S3 server on this machine through a proxy that adds latency, makes faults and counts requests.

    python scripts/fault_proxy.py --to 127.0.0.1:9000 --latency 0.03

It prints the port it listens on. Tests start it as a process with `FaultProxy`, which also says what to do to requests
and returns the log of those that came. The proxy signs nothing: it passes the client's `Host` on, so that signatures
stay valid.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTROL = "/-/control"  # no bucket has this name
CHUNK = 1 << 18
KINDS = ("status", "cut", "truncate", "flip", "lose", "stall")
Stream: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What to do to some requests.

    Args:
        kind: `status` answers with `status` and passes nothing on; `cut` closes the connection instead; `truncate`
            closes it in the middle of the answer's body; `flip` changes a bit in the middle of the body; `lose` lets
            the server carry the request out and closes the connection in place of the answer; `stall` never answers.
        status: for `status`.
        method: of the requests that it concerns; None: of all.
        match: a part of their path with its query.
        skip: this many of them pass first.
        times: then it happens to this many; None: to all.

    """

    kind: str
    status: int = 503
    method: str | None = None
    match: str = ""
    skip: int = 0
    times: int | None = 1

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"a fault is one of {', '.join(KINDS)}; got {self.kind!r}"

    def is_about(self, method: str, path: str) -> bool:
        """Tell whether the fault concerns a request."""
        return self.method in (None, method) and self.match in path


@dataclass(slots=True, kw_only=True)
class Request:
    """A request that the proxy has seen."""

    method: str
    path: str  # with its query
    range: str | None  # as in its header
    start: float  # seconds, when it was complete here
    status: int = 0  # 0: no answer was passed on
    fault: str | None = None
    received: int = 0  # bytes of its body
    sent: int = 0  # bytes of the answer's body
    stop: float | None = None  # seconds, when the answer was passed on; None: it is not over


class Head(NamedTuple):
    """The start of a request or an answer."""

    first: bytes
    headers: dict[bytes, bytes]  # names in lower case
    raw: bytes  # as it came

    @property
    def length(self) -> int | None:
        """The bytes of the body, if they are stated."""
        found = self.headers.get(b"content-length")
        return None if found is None else int(found)


class Proxy:
    """The server's side: what to do to requests, and what was done."""

    def __init__(self, to: tuple[str, int], *, latency: float) -> None:
        self.to, self.latency = to, latency
        self.faults: list[Fault] = []
        self.seen: dict[int, int] = defaultdict(int)  # requests that each fault concerns
        self.log: list[Request] = []
        self.idle: list[Stream] = []  # connections to the server

    async def serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (head := await read_head(client)) is not None and await self.answer(head, client, back):
                pass
        back.close()

    async def answer(self, head: Head, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> bool:
        """Answer a request. Return False if the connection is to be closed."""
        method, path = (part.decode("latin-1") for part in head.first.split(b" ")[:2])
        if b"expect" in head.headers:
            back.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await client.readexactly(head.length or 0)
        if path == CONTROL:
            return self.control(json.loads(body or b"{}"), back)
        asked = head.headers.get(b"range")
        request = Request(
            method=method,
            path=path,
            range=None if asked is None else asked.decode("latin-1"),
            start=time.monotonic(),
            received=len(body),
        )
        self.log.append(request)
        fault = self.choose_fault(method, path)
        request.fault = None if fault is None else fault.kind
        if self.latency:
            await asyncio.sleep(self.latency)
        if fault is not None and fault.kind == "status":
            request.status = fault.status
            back.write(b"HTTP/1.1 %d Fault\r\nContent-Length: 0\r\n\r\n" % fault.status)
            request.stop = time.monotonic()
            return True
        if fault is not None and fault.kind == "cut":
            request.stop = time.monotonic()
            return False
        if fault is not None and fault.kind == "stall":
            await client.read()  # until the client gives up
            request.stop = time.monotonic()
            return False
        is_open = await self.forward(head, body, request, back)
        request.stop = time.monotonic()
        return is_open

    async def forward(self, head: Head, body: bytes, request: Request, back: asyncio.StreamWriter) -> bool:
        """Pass a request on, and its answer back. Return False if the connection is to be closed."""
        lines = [line for line in head.raw.split(b"\r\n") if not line.lower().startswith((b"expect:", b"connection:"))]
        sent = b"\r\n".join(lines) + body
        while True:
            is_fresh = not self.idle
            server, there = self.idle.pop() if self.idle else await asyncio.open_connection(*self.to, limit=CHUNK)
            with contextlib.suppress(ConnectionError):
                there.write(sent)
                if (found := await read_head(server)) is not None:
                    break
            there.close()  # the server had closed an idle connection
            if is_fresh:
                return False
        if request.fault == "lose":
            await relay(server, None, found, is_head=request.method == "HEAD", request=request)
            there.close()
            return False
        request.status = int(found.first.split(b" ")[1])
        back.write(found.raw)
        is_complete = await relay(server, back, found, is_head=request.method == "HEAD", request=request)
        if not is_complete or found.headers.get(b"connection", b"").lower() == b"close":
            there.close()
            return False
        self.idle.append((server, there))
        return True

    def choose_fault(self, method: str, path: str) -> Fault | None:
        """Return what to do to a request, if anything."""
        for number, fault in enumerate(self.faults):
            if fault.is_about(method, path):
                count = self.seen[number]
                self.seen[number] += 1
                if count >= fault.skip and (fault.times is None or count < fault.skip + fault.times):
                    return fault
        return None

    def control(self, wanted: dict[str, Any], back: asyncio.StreamWriter) -> bool:
        """Do what `FaultProxy` asks for, and answer with the log."""
        content = json.dumps([asdict(request) for request in self.log]).encode()
        if "faults" in wanted:
            self.faults, self.latency = [Fault(**fault) for fault in wanted["faults"]], wanted["latency"]
            self.seen.clear()
            self.log.clear()
        back.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        return True


async def read_head(stream: asyncio.StreamReader) -> Head | None:
    """Read the start of a request or an answer; None at the end of the connection."""
    try:
        raw = await stream.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = raw[:-4].split(b"\r\n")
    fields = (line.split(b":", 1) for line in lines)
    return Head(first, {name.lower(): value.strip() for name, value in fields}, raw)


async def relay(
    server: asyncio.StreamReader,
    back: asyncio.StreamWriter | None,
    head: Head,
    *,
    is_head: bool,
    request: Request,
) -> bool:
    """Pass the body of an answer on, to nobody if `back` is None. Return False if the connection is to be closed."""
    status = int(head.first.split(b" ")[1])
    if is_head or status in (204, 304):
        return True
    if head.headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return await relay_chunks(server, back, request)
    left = head.length
    half = (left or 0) // 2
    while left is None or left:
        content = await server.read(CHUNK if left is None else min(CHUNK, left))
        if not content:
            return False
        left = None if left is None else left - len(content)
        if request.sent <= half < request.sent + len(content):
            content = damage(content, half - request.sent, request.fault)
        await pass_on(content, back)
        request.sent += len(content)
        if request.fault == "truncate" and request.sent >= half:
            return False
    return True


async def relay_chunks(server: asyncio.StreamReader, back: asyncio.StreamWriter | None, request: Request) -> bool:
    """Pass a body in chunks on."""
    while True:
        line = await server.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        await pass_on(line + await server.readexactly(size + 2), back)
        request.sent += size
        if not size:
            return True


async def pass_on(content: bytes, back: asyncio.StreamWriter | None) -> None:
    """Send bytes to the client, if there is one."""
    if back is not None:
        back.write(content)
        await back.drain()


def damage(content: bytes, at: int, fault: str | None) -> bytes:
    """Return a part of a body with a fault `at` a byte of it."""
    if fault == "truncate":
        return content[:at]
    return b"%b%c%b" % (content[:at], content[at] ^ 1, content[at + 1 :]) if fault == "flip" else content


class FaultProxy:
    """A running proxy, as the process that started it sees it.

    Args:
        endpoint: of the S3 server, `http://127.0.0.1:9000`.
        latency: seconds that each request waits before it is passed on.

    """

    def __init__(self, endpoint: str, *, latency: float = 0.0) -> None:
        to = endpoint.removeprefix("http://").rstrip("/")
        command = [sys.executable, __file__, "--to", to, "--latency", str(latency)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None, "piped"
        self.port = int(self._process.stdout.readline())
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def set(self, *faults: Fault, latency: float = 0.0) -> None:
        """Forget the log and the faults of before, and make these from now on."""
        self._control({"faults": [asdict(fault) for fault in faults], "latency": latency})

    def log(self) -> list[Request]:
        """Return the requests that came since `set`, in the order of their start."""
        return [Request(**request) for request in self._control({})]

    def _control(self, wanted: dict[str, Any]) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("POST", CONTROL, json.dumps(wanted))
        found = json.loads(connection.getresponse().read())
        connection.close()
        return found

    def close(self) -> None:
        """End the proxy."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def count_round_trips(log: Sequence[Request]) -> int:
    """Return how many requests at most came one after the other, each started after the end of the one before.

    >>> one, two, three = (Request(method="GET", path="", range=None, start=s, stop=s + 2) for s in (0, 1, 3))
    >>> count_round_trips([one, two, three])
    2

    """
    # Greedy: the request that ends first of those that start after the end of the last one counted.
    last, count = float("-inf"), 0
    for request in sorted((one for one in log if one.stop is not None), key=lambda one: one.stop or 0):
        if request.start >= last:
            last, count = request.stop or 0, count + 1
    return count


async def run(to: str, *, port: int, latency: float) -> None:
    """Serve until the process is ended; print the port."""
    host, _, number = to.rpartition(":")
    proxy = Proxy((host, int(number)), latency=latency)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port, limit=CHUNK)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Run the proxy."""
    parser = argparse.ArgumentParser(description="A proxy that adds latency.")
    parser.add_argument("--to", required=True, help="host and port of the server, 127.0.0.1:9000")
    parser.add_argument("--port", type=int, default=0, help="where to listen; 0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that each request waits")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(given.to, port=given.port, latency=given.latency))


if __name__ == "__main__":
    main()
