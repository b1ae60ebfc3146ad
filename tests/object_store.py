"""S3 servers for tests, each started when the first test asks for it and at most once in a process of pytest.

A test that asks for `bucket` gets the URI of a new bucket of its own, and an environment by which S3 clients find it:

    def test_...(bucket, proxy):
        proxy.set(Fault(kind="status", status=503, method="GET", match="data/", times=2), latency=0.03)
        ...                                    # all requests go through the proxy
        assert count_round_trips(proxy.log()) <= 4
"""

import itertools
import os

import pytest
from fault_proxy import FaultProxy
from local_s3 import run_moto, run_rclone, run_seaweed

numbers = itertools.count()


@pytest.fixture(scope="session")
def moto_server():
    """The usual server: S3 with conditional writes."""
    with run_moto() as server:
        yield server


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory):
    """A complete object store, which checks signatures; takes seconds to start."""
    with run_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory):
    """A store that ignores conditions."""
    with run_rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_proxy(moto_server):
    """The proxy in front of moto."""
    with FaultProxy(moto_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def new_bucket(monkeypatch):
    """Make a new bucket of a server, and let S3 clients of this test and of programs it starts find the server."""

    def make(server):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        return server.make_bucket(f"bucket-{os.getpid()}-{next(numbers)}")

    return make


@pytest.fixture
def bucket(new_bucket, moto_server):
    """The URI of a new bucket, which no proxy is in front of unless the test asks for `proxy` as well."""
    return new_bucket(moto_server)


@pytest.fixture
def proxy(bucket, moto_server, moto_proxy, monkeypatch):
    """The proxy, through which all requests to the test's bucket now go."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server.behind(moto_proxy.endpoint).endpoint)
    moto_proxy.set()
    yield moto_proxy
    moto_proxy.set()
