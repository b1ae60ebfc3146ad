"""Make a multilingual corpus for benchmarks from LibreOffice's help, as Debian packages it.

    apt-get download $(apt-cache pkgnames libreoffice-help-)    # in a folder of its own
    python scripts/bench_corpus_help.py FOLDER corpus.jsonl

Each page becomes one document, `{"text": ..., "id": path, "language": ...}`: its tags, scripts and style sheets are
removed, its text is not changed. Release 7.4 has about 200 MB in 34 packages. Documents are ordered by a hash of
their path, so that each prefix is a fair sample of the languages. `dpkg-deb`, which every Debian has, unpacks the
packages into a temporary folder.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HELP = Path("usr/share/libreoffice/help")
HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>", re.DOTALL)
BLOCK = re.compile(r"</?(?:p|div|br|tr|li|h[1-6]|title|pre|table|ul|ol)\b[^>]*>")
TAG = re.compile(r"<[/!]?[a-zA-Z][^>]*>")


def read_page(content: str) -> str:
    """Return the text of an HTML page, a line for each block. Python's HTMLParser would take ten times as long."""
    text = html.unescape(TAG.sub("", BLOCK.sub("\n", HIDDEN.sub("", content))))
    return "\n".join(line for line in map(str.strip, text.splitlines()) if line)


def write_corpus(packages: Path, output: Path) -> dict[str, int]:
    """Write the pages of all packages as JSONL; return the bytes of text of each language."""
    found = sorted(packages.glob("libreoffice-help-*.deb"))
    if not found:
        sys.exit(f"{packages} has no file libreoffice-help-*.deb; see the top of this script")
    sizes: dict[str, int] = {}
    temporary = output.with_suffix(".part")
    with tempfile.TemporaryDirectory() as folder, temporary.open("w", encoding="utf-8") as out:
        for package in found:
            subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        root = Path(folder) / HELP
        names = [str(page.relative_to(root)) for page in root.glob("*/text/**/*.html")]
        for name in sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest()):
            text = read_page((root / name).read_text(encoding="utf-8"))
            language = name.partition("/")[0]
            out.write(json.dumps({"text": text, "id": name, "language": language}, ensure_ascii=False) + "\n")
            sizes[language] = sizes.get(language, 0) + len(text.encode())
    temporary.rename(output)
    return sizes


def main() -> None:
    """Write the corpus and print how much text each language has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="a folder with libreoffice-help-*.deb")
    parser.add_argument("output", type=Path, help="the JSONL file to write")
    given = parser.parse_args()
    sizes = write_corpus(given.packages, given.output)
    for language, size in sorted(sizes.items()):
        print(f"  {language:<8}{size / 1e6:7.1f} MB")
    print(f"{given.output}: {sum(sizes.values()) / 1e6:.0f} MB of text in {len(sizes)} languages")


if __name__ == "__main__":
    main()
