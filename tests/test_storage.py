"""A local folder and a prefix of a bucket are the same storage: one interface, one set of laws."""

import errno
import os
import pickle
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fault_proxy import Fault

from pipeline import WindowConfig, read_manifest, write_shards
from pipeline.base import retry
from pipeline.rules import ConfigError
from pipeline.shards import write
from pipeline.storage.errors import explain
from pipeline.storage.names import is_uri, split_uri
from pipeline.storage.open import open_shared, open_storage
from pipeline.storage.probe import honours_conditions

SECRET = "wJalrXUtnFEMI"  # of the fixture's server


@pytest.fixture(params=["local", "remote"])
def storage(request, tmp_path):
    if request.param == "local":
        return open_storage(tmp_path / "folder")
    return open_storage(request.getfixturevalue("bucket"))


def test_what_is_put_is_read_back(storage):
    storage.put("a.bin", b"0123456789")
    storage.put("sub/b.bin", memoryview(b"abc"))
    assert (storage.read("a.bin"), storage.read("sub/b.bin")) == (b"0123456789", b"abc")
    assert storage.size("a.bin") == 10
    assert [bytes(one) for one in storage.read_ranges("a.bin", [(8, 10), (0, 3), (4, 4)])] == [b"89", b"012", b""]
    assert storage.read_ranges("a.bin", []) == []


def test_a_file_is_put_as_its_bytes(storage, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    storage.put("x", file)
    assert storage.read("x") == b"content"


def test_a_listing_has_every_object_below_a_prefix_in_order(storage):
    for name in ("b/2", "b/10/x", "bb/1", "a"):
        storage.put(name, name.encode())
    assert [(one.name, one.size) for one in storage.list()] == [("a", 1), ("b/10/x", 6), ("b/2", 3), ("bb/1", 4)]
    assert [one.name for one in storage.list("b")] == ["b/10/x", "b/2"]
    assert list(storage.list("nothing")) == []


def test_an_object_is_created_once_and_the_same_content_is_no_conflict(storage):
    etag = storage.put("x", b"one")
    assert storage.put("x", b"one") == etag
    with pytest.raises(FileExistsError, match="with another content"):
        storage.put("x", b"two")
    assert storage.read("x") == b"one"
    storage.put("x", b"two", if_absent=False)
    assert storage.read("x") == b"two"


def test_a_swap_succeeds_only_on_what_was_seen(storage):
    first = storage.put("x", b"one")
    second = storage.put_if_match("x", b"two", first)
    assert storage.put_if_match("x", b"two", first) == second  # a lost answer: it is there already
    with pytest.raises(FileExistsError, match="changed by another run"):
        storage.put_if_match("x", b"three", first)
    assert storage.read("x") == b"two"


def test_what_is_missing_says_so_and_is_deleted_in_silence(storage):
    for ask in (storage.read, storage.size, lambda name: storage.read_ranges(name, [(0, 1)])):
        with pytest.raises(FileNotFoundError):
            ask("nothing")
    storage.put("x", b"1")
    storage.delete(["x", "nothing"])
    storage.delete([])
    assert list(storage.list()) == []


def test_a_range_beyond_the_end_is_an_error(storage):
    storage.put("x", b"0123456789")
    with pytest.raises(OSError, match="ends at byte 10"):
        storage.read_ranges("x", [(5, 15)])
    with pytest.raises(OSError, match="ends at byte 10"):
        storage.copy_range("x", 5, 15, lambda *_: None)


def copy(storage, name, start, stop):
    """The pieces that a storage hands on, joined; each begins where the one before ends."""
    content, at = b"", start

    def take(offset, piece):
        nonlocal content, at
        assert offset == at
        content, at = content + bytes(piece), at + len(piece)

    etag = storage.copy_range(name, start, stop, take)
    return content, etag


def test_a_range_that_is_copied_is_handed_on_in_order(storage):
    content = os.urandom(3 << 20)
    etag = storage.put("x", content)
    for start, stop in ((0, len(content)), (1_000_000, 2_500_000), (len(content) - 1, len(content)), (7, 7)):
        copied, version = copy(storage, "x", start, stop)
        assert copied == content[start:stop]
        assert version == (etag if start < stop else version)


def test_after_a_lost_connection_only_the_missing_bytes_are_asked_for(bucket, proxy, monkeypatch):
    monkeypatch.setattr(retry, "pause", lambda _: None)
    storage, content = open_storage(bucket), os.urandom(8 << 20)
    storage.put("large", content)
    proxy.set(Fault(kind="truncate", match="large", times=2))
    assert copy(storage, "large", 0, len(content))[0] == content
    asked = [one.range for one in proxy.log() if one.method == "GET"]
    starts = [int(one.removeprefix("bytes=").partition("-")[0]) for one in asked]
    assert len(starts) == 3
    assert 0 == starts[0] < starts[1] < starts[2]


def test_an_object_that_is_replaced_between_two_tries_of_a_copy_is_noticed(bucket, proxy, monkeypatch):
    storage, content = open_storage(bucket), os.urandom(8 << 20)
    storage.put("large", content)
    other = content[:-1] + bytes([content[-1] ^ 1])
    monkeypatch.setattr(retry, "pause", lambda _: storage.put("large", other, if_absent=False))
    proxy.set(Fault(kind="truncate", match="large", method="GET"))
    with pytest.raises(OSError, match="was replaced while it was read"):
        copy(storage, "large", 0, len(content))


def test_a_shared_storage_is_one_until_the_settings_change(bucket, monkeypatch):
    first = open_shared(bucket)
    assert open_shared(bucket) is first
    assert open_shared(f"{bucket}/x") is not first
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ACCESS_KEY_ID", "another")
        assert open_shared(bucket) is not first
    assert open_shared(bucket) is first


@pytest.mark.parametrize("name", ["../x", "a/../b", "/x", "a//b", "./x", "a\nb", "a\0b", ""])
def test_no_name_leads_elsewhere(storage, name):
    with pytest.raises(ValueError, match="is no name of an object"):
        storage.put(name, b"1")


def test_conditions_are_honoured_by_a_folder_and_a_good_store(storage):
    assert honours_conditions(storage, "probes")
    assert list(storage.list()) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://key:secret@bucket/x", "must have no user, password or port"),
        ("s3://bucket/x?X-Amz-Signature=secret", "must have no query"),
        ("s3://bucket/x#secret", "must have no query or fragment"),
        ("s3://", "must name a bucket"),
        ("s3://bucket/a/../b", "must have no part that is empty"),
        ("s3://bucket//a", "must have no part that is empty"),
        ("ftp://host/x", "or a URI with s3://, gs://, az://"),
    ],
)
def test_a_uri_with_a_secret_or_of_another_kind_is_refused_without_repeating_it(uri, message):
    assert is_uri(uri)
    with pytest.raises(ValueError, match=message) as refused:
        open_storage(uri)
    assert "secret" not in str(refused.value)


def test_a_uri_is_taken_apart_and_put_together():
    assert str(split_uri("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert str(split_uri("GS://bucket")) == "gs://bucket"
    assert split_uri("az://box/part-?/*.jsonl", glob=True).key == "part-?/*.jsonl"
    assert not is_uri(Path("s3://bucket"))
    assert not is_uri("a/b")


def test_credentials_are_in_no_repr_pickle_or_error(bucket, monkeypatch):
    storage = open_storage(bucket)
    storage.put("x", b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.read("x") == b"1"
    with pytest.raises(FileExistsError) as raised:
        storage.put("x", b"2")
    for text in (repr(storage), str(vars(storage)), str(raised.value), pickle.dumps(storage).decode("latin-1")):
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
    assert repr(storage) == f"RemoteStorage({bucket!r})"


def test_a_bucket_that_is_missing_is_named_and_is_no_missing_object(bucket):
    for ask in (
        lambda: open_storage("s3://no-such-bucket/x").read("y"),
        lambda: read_manifest("s3://no-such-bucket/x"),
    ):
        with pytest.raises(OSError, match="the bucket no-such-bucket does not exist") as raised:
            ask()
        assert not isinstance(raised.value, FileNotFoundError)


@pytest.mark.parametrize("key", ["shards.path", "cache.path"])
def test_a_missing_bucket_is_found_before_the_corpus_is_read(bucket, tmp_path, monkeypatch, key):
    places = {"shards.path": tmp_path / "ds", "cache.path": tmp_path / "cache", key: "s3://no-such-bucket/x"}
    monkeypatch.setattr(write, "prepare_job", lambda *_, **__: pytest.fail("the corpus was read"))
    with pytest.raises(ValueError, match=r"^s3://no-such-bucket/x/.*the bucket no-such-bucket does not exist"):
        write_shards(places["shards.path"], corpus=["some text"], cache=places["cache.path"])


def test_the_object_by_which_consoles_show_a_folder_is_none(bucket, moto_server):
    for name in ("x/", "x/data/"):
        moto_server.client().put_object(Bucket=bucket.removeprefix("s3://"), Key=name, Body=b"")
    assert list(open_storage(f"{bucket}/x/data").list()) == []
    assert write_shards(f"{bucket}/x", corpus=["some text"], tokenizer="bytes", window=WindowConfig(max_length=4))


def test_without_the_extra_one_line_says_which_one_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"need the package obstore: pip install 'obstore>=0\.12'"):
        open_storage("s3://bucket/x").read("y")


def test_a_forked_process_is_refused_instead_of_waiting_for_ever(bucket):
    storage = open_storage(bucket)
    storage.put("x", b"1")
    child = os.fork()
    if not child:
        try:
            storage.read("x")
        except OSError as error:
            os._exit(7 if "spawn" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_plain_http_to_another_machine_needs_a_word(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.example:9000")
    with pytest.raises(ConfigError, match="AWS_ALLOW_HTTP"):
        open_storage("s3://bucket/x").read("y")


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:9000",
        "ftp://host",
        "http://",
        "http://host/?x=1",
        "http://host#x",
        "http://a b",
        "http://[::1",
        "http://h:x",
    ],
)
def test_an_endpoint_that_is_no_address_of_a_server_is_refused(monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL must be the address of a server"):
        open_storage("s3://bucket/x").read("y")


def test_an_endpoint_with_a_login_is_refused_without_repeating_it(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://key:secret@host")
    with pytest.raises(ConfigError, match="got 'https://host'"):
        open_storage("s3://bucket/x").read("y")


def free_address():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize(
    ("endpoint", "message", "tries"),
    [
        ("http://{free}", r"the store at http://127.0.0.1:\d+ refuses connections; check the endpoint", 5),
        ("http://no-such-host.invalid", "the store at http://no-such-host.invalid has a name that is not known", 5),
        ("https://{http}", r"the store at https://127.0.0.1:\d+ does not speak https", 0),
    ],
)
def test_an_endpoint_that_is_no_store_is_named(scripted, monkeypatch, caplog, endpoint, message, tries):
    http, waited = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"), []
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.format(free=free_address(), http=http))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setattr(retry, "pause", waited.append)
    with pytest.raises(OSError, match=message) as raised:
        open_storage("s3://bucket/x").read("y")
    assert len(waited) == tries
    assert str(raised.value.filename) == "s3://bucket/x/y"
    assert sum(raised.value.strerror in line for line in caplog.messages) == bool(tries)  # once, at the first try


WITHOUT_ROLE = """Generic {} error: Error performing PUT http://169.254.169.254/latest/api/token in 2ms - Server
returned non-2xx status code: {}: no role"""


@pytest.mark.parametrize(
    ("scheme", "variable"), [("s3", "AWS_ACCESS_KEY_ID"), ("gs", "GOOGLE_"), ("az", "AZURE_STORAGE_")]
)
@pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found"])
def test_without_credentials_each_kind_of_store_names_its_own_variables(scheme, variable, status):
    found = explain(
        OSError(WITHOUT_ROLE.format(scheme, status)), split_uri(f"{scheme}://bucket/x"), f"{scheme}://bucket/x/y"
    )
    assert found.errno == errno.EACCES
    assert f"no credentials were found; set {variable}" in found.strerror


@pytest.mark.parametrize("ask", [lambda uri: open_storage(uri).read("y"), read_manifest])
def test_a_setting_that_is_missing_is_named(monkeypatch, ask):
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=r"^az://box/x: .*; check AZURE_STORAGE_ACCOUNT_NAME"):
        ask("az://box/x")


@pytest.fixture
def scripted(monkeypatch):
    """A server that answers as its list says: (status, body) for each request, the last one for ever."""
    answers, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Thu, 26 Nov 2026 20:00:00 GMT")
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_PUT = do_HEAD = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(retry, "pause", lambda _: None)
    for name, value in {"ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    yield answers, asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_an_answer_that_may_pass_is_asked_for_again(scripted, status):
    answers, asked = scripted
    answers += [(status, b""), (status, b""), (200, b"content")]
    assert open_storage("s3://bucket/x").read("y") == b"content"
    assert len(asked) == 3


@pytest.mark.parametrize(("status", "kind"), [(403, PermissionError), (404, FileNotFoundError), (400, OSError)])
def test_an_answer_that_stays_is_believed_at_once(scripted, status, kind):
    answers, asked = scripted
    answers += [(status, b"<Error><Code>Secret</Code></Error>")]
    with pytest.raises(kind) as raised:
        open_storage("s3://bucket/x").read("y")
    assert len(asked) == 1
    assert "Secret" not in str(raised.value)
    assert status != 403 or "answered 403 Forbidden to GET" in str(raised.value)
    assert "s3://bucket/x/y" in str(raised.value)


def test_a_store_that_stays_ill_is_given_up(scripted):
    answers, asked = scripted
    answers += [(500, b"")]
    with pytest.raises(OSError, match="the store answered 500"):
        open_storage("s3://bucket/x").read("y")
    assert len(asked) == 6


def test_a_lost_answer_is_no_conflict_and_a_conflict_that_passes_is_tried_again(scripted):
    answers, _ = scripted
    answers += [(500, b""), (412, b""), (200, b"mine")]  # the first request did its work
    assert open_storage("s3://bucket/x").put("y", b"mine") == '"1"'
    answers[:] = [(409, b""), (404, b""), (200, b"")]  # another one's upload is under way, and fails
    with pytest.raises(FileNotFoundError):
        open_storage("s3://bucket/x").put("y", b"mine")


LISTING = """<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><IsTruncated>false</IsTruncated>
<Contents><Key>{}</Key><LastModified>2026-11-26T20:00:00.000Z</LastModified><ETag>"1"</ETag><Size>1</Size></Contents></ListBucketResult>"""


@pytest.mark.parametrize("name", ["x/../y", "x//y", "x/./y", "x/a&#10;b", "x/&#27;[2J"])
def test_a_listing_with_a_hostile_name_is_refused_and_quoted(scripted, name):
    answers, _ = scripted
    answers += [(200, LISTING.format(name).encode())]
    with pytest.raises((OSError, ValueError), match=r"rename it|is no name") as refused:
        list(open_storage("s3://bucket/x").list())
    assert str(refused.value).isprintable()
