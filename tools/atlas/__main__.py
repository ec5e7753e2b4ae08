"""python -m tools.atlas [--page FILE] [--peer NAME ...]: ask libraries, write the page.

Beside docs/atlas.md stands docs/atlas.json: the answers as data, of the same session.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from conformance.reports.suggest import must_be_one_of
from conformance.subjects.peers import PEERS

from .again import differences
from .collect import collect, listed
from .page import page
from .publish import text as published

DATA = "atlas.json"


def main(arguments: list[str] | None = None) -> int:
    """Measure the peers that are asked for, all of them if none is; write or print the page."""
    parser = argparse.ArgumentParser("tools.atlas", description=__doc__)
    parser.add_argument("--page", help="where the page goes, such as docs/atlas.md")
    parser.add_argument("--peer", action="append", help="only this one; repeatable")
    parser.add_argument("--keep", metavar="FOLDER", help="keep answers, reports and data there")
    parser.add_argument("--data", metavar="FILE", help="write the page from data that was kept")
    options = parser.parse_args(arguments)
    for name in options.peer or []:
        if name not in PEERS:
            parser.error(must_be_one_of("--peer", PEERS, name))
    if options.data:
        data = json.loads(Path(options.data).read_text("utf-8"))
    else:
        data = measure(options.peer or list(PEERS), options.keep)
    write(page(data), options.page)
    if options.page:
        write(published(data), Path(options.page).with_suffix(".json"))
    wrong = differences(data) + [f"{n}: {why}" for n, why in data["conversions"].items() if why]
    print("\n".join(wrong), file=sys.stderr)
    return 0 if any(peer["answers"] for peer in data["peers"].values()) and not wrong else 1


def measure(names: list[str], keep: str | None) -> dict:
    """Measure these peers; what was found on the way stays only where it is to be kept."""
    entries = listed(names)
    if keep is None:
        with tempfile.TemporaryDirectory() as folder:
            return collect(entries, Path(folder))
    data = collect(entries, Path(keep))
    (Path(keep) / DATA).write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    return data


def write(text: str, path: str | Path | None) -> None:
    if path is None:
        print(text)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, "utf-8")


if __name__ == "__main__":
    sys.exit(main())
