"""export.py: the package from the notebooks, with `__all__` at 100 columns like everything else.

nbdev wraps `__all__` at 120 columns, and has no setting for it.
"""

import re
import sys
from pathlib import Path
from textwrap import wrap

from nbdev.doclinks import nbdev_export


def main() -> None:
    nbdev_export()
    for path in Path("atesc").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        narrow = re.sub(r"^__all__ = \[[^\]]*\]", rewrapped, text, count=1, flags=re.M)
        if narrow != text:
            path.write_text(narrow, encoding="utf-8")


def rewrapped(match: re.Match[str]) -> str:
    """A list of names at 100 columns."""
    text = " ".join(match[0].split())
    return "\n".join(wrap(text, 100, subsequent_indent=" " * 11, break_long_words=False))


if __name__ == "__main__":
    sys.exit(main())
