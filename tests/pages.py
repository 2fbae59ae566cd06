"""A page of the documentation as a script: its Python blocks in their order, in one namespace.

``python pages.py PAGE`` runs them as if they were the script, guards and all. A cluster's processes read this file
again, and not the page.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """What is between two fences, and how many lines of the page are above it."""

    language: str
    text: str
    above: int


def blocks(page: Path, language: str) -> list[Block]:
    """Return a page's blocks of one language."""
    text = page.read_text()
    found = [Block(match[1], match[2], text.count("\n", 0, match.start(2))) for match in FENCE.finditer(text)]
    return [block for block in found if block.language == language]


def imports(text: str, module: str) -> bool:
    """Tell whether a block imports a module."""
    return re.search(rf"^(?:from|import) {module}\b", text, re.MULTILINE) is not None


def main() -> None:
    """Run a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--put", action="append", default=[], metavar="OLD->NEW", help="what is otherwise here")
    parser.add_argument("--without", action="append", default=[], metavar="MODULE", help="leave out what imports it")
    parser.add_argument("--path", action="append", default=[], help="where modules are looked for first")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the environment")
    given = parser.parse_args()
    sys.path[:0] = given.path
    os.environ.update(pair.split("=", 1) for pair in given.set)
    for block in blocks(given.page, "python"):
        if any(imports(block.text, module) for module in given.without):
            continue
        text = block.text
        for old, new in (pair.split("->") for pair in given.put):
            text = text.replace(old, new)
        # as many empty lines as there are above it, so that a traceback names the page's own
        exec(compile("\n" * block.above + text, given.page, "exec"), globals())


if __name__ == "__main__":
    main()
