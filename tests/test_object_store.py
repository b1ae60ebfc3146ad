"""The tests' own S3 servers and proxy do what other tests rely on."""

import os
import sys

import local_s3
import obstore
import pytest
from fault_proxy import Fault, Request, count_round_trips
from obstore.store import from_url

ONCE = {"max_retries": 0}


def open_bucket(uri, **options):
    return from_url(
        uri,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
        retry_config=ONCE,
        **options,
    )


def get(store, name):
    return bytes(obstore.get(store, name).bytes())


def test_the_proxy_counts_requests_and_bytes(bucket, proxy):
    store = open_bucket(bucket)
    obstore.put(store, "a/b.bin", b"x" * 1000)
    assert bytes(obstore.get_range(store, "a/b.bin", start=10, end=20)) == b"x" * 10
    written, read = proxy.log()
    assert (written.method, written.status, written.received) == ("PUT", 200, 1000)
    assert (read.method, read.status, read.sent, read.range) == ("GET", 206, 10, "bytes=10-19")
    assert read.path.endswith("a/b.bin")
    assert count_round_trips([written, read]) == 2


@pytest.mark.parametrize("kind", ["status", "cut", "truncate", "lose"])
def test_a_fault_reaches_the_client_once(bucket, proxy, kind):
    store = open_bucket(bucket)
    obstore.put(store, "one", bytes(5000))
    proxy.set(Fault(kind=kind, method="GET"))
    with pytest.raises(Exception, match=r".") as caught:
        get(store, "one")
    assert not isinstance(caught.value, FileNotFoundError)
    assert get(store, "one") == bytes(5000)
    assert [request.fault for request in proxy.log()] == [kind, None]


def test_a_lost_answer_is_of_a_request_that_was_carried_out(bucket, proxy):
    store = open_bucket(bucket)
    proxy.set(Fault(kind="lose", method="PUT"))
    with pytest.raises(Exception, match=r"."):
        obstore.put(store, "one", b"content")
    assert get(store, "one") == b"content"


def test_a_flipped_bit_is_not_noticed_on_the_way(bucket, proxy):
    store = open_bucket(bucket)
    obstore.put(store, "one", bytes(5000))
    proxy.set(Fault(kind="flip", method="GET", match="one", skip=1))
    first, second, third = (get(store, "one") for _ in range(3))
    assert first == third == bytes(5000)
    assert sum(second) == 1


def test_latency_is_added_to_each_request(bucket, proxy):
    store = open_bucket(bucket)
    obstore.put(store, "one", b"content")
    proxy.set(latency=0.1)
    get(store, "one")
    (request,) = proxy.log()
    assert request.stop - request.start >= 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("server", "is_kept"), [("moto", True), ("seaweed", True), ("rclone", False)])
def test_the_servers_differ_in_what_a_condition_means_to_them(server, is_kept, new_bucket, request):
    store = open_bucket(new_bucket(request.getfixturevalue(f"{server}_server")))
    obstore.put(store, "one", b"first", mode="create")
    if is_kept:
        with pytest.raises(obstore.exceptions.AlreadyExistsError):
            obstore.put(store, "one", b"second", mode="create")
    else:
        obstore.put(store, "one", b"second", mode="create")
    assert get(store, "one") == (b"first" if is_kept else b"second")


def test_round_trips_are_requests_one_after_the_other():
    times = [(0, 2), (0, 3), (2, 4), (3.5, 5), (4, 6), (6, 7)]
    log = [Request(method="GET", path="", range=None, start=start, stop=stop) for start, stop in times]
    assert count_round_trips(log) == 4  # 0-2, 2-4, 4-6, 6-7


def test_a_server_whose_port_is_taken_starts_on_another_one():
    ports = []

    def command(port):
        ports.append(port)
        return ["false"] if len(ports) == 1 else [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]

    with local_s3.run(command) as server:
        assert server.endpoint == f"http://127.0.0.1:{ports[1]}"
    with pytest.raises(AssertionError, match="false ended with 1"), local_s3.run(lambda _: ["false"]):
        pass
