"""The window explorer, driven in a real browser: what it counts and marks is what the pipeline writes."""

import json
import shutil

import numpy as np
import pytest
from browser import Page
from support import sections

from pipeline import WindowDataset, read_manifest, write_shards
from pipeline.cli.explorer import MOST_TOKENS, explorer, read_stretch
from pipeline.cli.show_page import page
from pipeline.cli.shown import find_segments, show_pieces
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens.store import open_store
from pipeline.windows import count_windows

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> & \\u003c 'q' \"p\" @DATA@ @SCRIPT@ "


@pytest.fixture
def shards(tmp_path):
    def write(*texts, **options):
        given = sections(tokenizer="bytes", cache_path=tmp_path / "cache", **{"max_length": 16, "stride": 8, **options})
        return write_shards(tmp_path / "shards", corpus=list(texts), **given).path

    return write


def write_page(path, file, window=0):
    manifest, data_set = read_manifest(path), WindowDataset(path)
    store = open_store(path.parent / "cache" / "stores" / f"{manifest.store}.json")
    tokenizer = load_tokenizer("bytes")
    slide = explorer(
        manifest,
        data_set.reader,
        window,
        documents=find_segments(manifest, store, "train"),
        show_pieces=lambda ids: show_pieces(ids, tokenizer),
    )
    file.write_text(page("a page", [], tokenizer, explorer=slide), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    with Page(BROWSER, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def browser(chromium):
    chromium.reset()
    return chromium


def set_slider(browser, name, value):
    browser.run(f"""(() => {{ const one = document.getElementById("{name}");
        one.max = Math.max(one.max, {value}); one.value = {value}; one.dispatchEvent(new Event("input")); }})()""")


def read_count(browser):
    return int(browser.run('document.getElementById("count").textContent').replace(",", ""))


@pytest.mark.slow
@pytest.mark.parametrize("documents", ["join", "separate"])
def test_the_count_is_that_of_the_windows_for_every_setting(shards, browser, tmp_path, documents):
    texts = ["The kettle sang and sang. " * 9, "She poured the tea.", "x" * 17, "y" * 15, "The tea was too hot. " * 20]
    path = shards(*texts, documents=documents)
    browser.open(write_page(path, tmp_path / "page.html"))
    assert read_count(browser) == len(WindowDataset(path)), "the data set's own windows"
    sizes = [len(text) + (documents == "separate") for text in texts]
    if documents == "join":
        sizes = [sum(sizes) + len(texts) - 1]
    settings = [(1, 1), (16, 8), (16, 16), (16, 20), (7, 3), (64, 1), (100, 64), (17, 16), (500, 10), (3, 40), (15, 15)]
    for pad in (False, True):
        if pad:
            browser.run('document.getElementById("pad").click()')
        for max_length, stride in settings:
            set_slider(browser, "max_length", max_length)
            set_slider(browser, "stride", stride)
            tail = "pad" if pad else "drop"
            want = count_windows(np.array(sizes), max_length=max_length, stride=stride, tail=tail).sum()
            assert read_count(browser) == want, (max_length, stride, tail)
    assert not browser.complaints()


@pytest.mark.slow
def test_keys_choose_windows_and_what_is_marked_is_what_the_data_set_contains(shards, browser, tmp_path):
    path = shards("The kettle sang and sang. She poured the tea, and the tea was too hot to drink.", tail="pad")
    data_set, tokenizer = WindowDataset(path), load_tokenizer("bytes")
    browser.open(write_page(path, tmp_path / "page.html"))
    browser.run('document.getElementById("text").focus()')
    browser.press("Home")
    for number, item in enumerate(data_set):
        real = item["target_ids"] >= 0
        rows = browser.run("""[...document.querySelectorAll("#pairs tr")].map(
            row => [...row.cells].slice(1).map(cell => cell.textContent))""")
        inputs = [tokenizer.decode([token]) for token in item["input_ids"][real].tolist()]
        targets = [tokenizer.decode([token]) for token in item["target_ids"][real].tolist()]
        padding = int((~real).sum())
        assert rows == [inputs + ["padding"] * padding, targets + ["-100"] * padding]
        marked = browser.run('document.querySelectorAll("#text .is-input").length')
        assert marked == len(inputs)
        assert f"Window {number}:" in browser.run('document.getElementById("chosen").textContent')
        browser.press("ArrowRight")
    browser.press("End")
    browser.press("ArrowLeft")
    assert f"Window {len(data_set) - 2}:" in browser.run('document.getElementById("chosen").textContent')
    assert padding, "the last window is padded"


@pytest.mark.slow
def test_it_fits_a_phone_follows_the_dark_mode_and_its_address_and_bars_lie_under_their_tokens(
    shards, browser, tmp_path
):
    path = shards("The kettle sang and sang. She poured the tea. " * 40)
    address = write_page(path, tmp_path / "page.html")
    still = {"name": "prefers-reduced-motion", "value": "reduce"}  # bars are where they belong at once
    browser.call("Emulation.setEmulatedMedia", features=[still])
    for width in (360, 1200):
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
        )
        browser.open(f"{address}#max_length=10&stride=5&start=25")
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run('document.getElementById("stride").value') == "5"
        assert "Window 5:" in browser.run('document.getElementById("chosen").textContent')
        gap = browser.run("""Math.max(...[...document.querySelectorAll("#text .bar.input")].map(bar => {
            const box = bar.getBoundingClientRect();
            const above = [...document.querySelectorAll("#text .token")].map(one => one.getBoundingClientRect())
                .filter(one => one.bottom <= box.top + 1 && one.bottom > box.top - 45);
            return Math.min(...above.map(one => Math.abs(one.left - box.left)));
        }))""")
        assert gap <= 2, "each bar starts where a token above it does"
    colours = []
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours.append(browser.run('getComputedStyle(document.querySelector("#text .bar.input")).backgroundColor'))
    assert colours[0] != colours[1]


@pytest.mark.slow
def test_hostile_text_is_shown_as_text(shards, browser, tmp_path):
    path = shards(HOSTILE * 3, max_length=8, stride=8)
    address = write_page(path, tmp_path / "page.html")
    browser.open(address)
    assert not browser.complaints()
    assert browser.run('document.querySelectorAll("img, #text script").length') == 0
    shown = browser.run('[...document.querySelectorAll("#text .token")].map(one => one.textContent).join("")')
    assert HOSTILE in shown.replace("\\\\", "\\").replace("\\'", "'")
    browser.run("document.head.appendChild(document.createElement('script')).textContent = 'window.was_run = 1'")
    assert browser.run("window.was_run") is None, "the page's policy lets no other script run"


def test_the_page_has_no_tag_that_the_text_could_end(shards, tmp_path):
    path = shards(HOSTILE * 3, max_length=8, stride=8)
    write_page(path, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("<script") == html.count("</script>") == 2
    data = json.loads(html.split('id="explorer-data">')[1].split("</script>")[0])
    assert "".join(data["pieces"]).startswith("</script>")


@pytest.mark.parametrize("stride", [1, 8, 16, 24])
def test_the_stretch_is_the_text_around_the_window_with_gaps_where_no_window_has_a_token(shards, stride):
    text = "".join(f"{number:07} " for number in range(600))
    path = shards(text, stride=stride, allow_gaps=stride > 16, windows_per_group=4096)
    ids = list(text.encode())
    for window in (0, 7, 100):
        start, first, found = read_stretch(WindowDataset(path).reader, window)
        assert start == window * stride
        assert first <= start
        assert len(found) <= MOST_TOKENS
        want = [ids[token] if token % stride <= 16 else None for token in range(first, first + len(found))]
        assert found == want
