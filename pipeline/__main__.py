"""Entry point of `python -m pipeline`, the same as the command `pipeline`."""

# `python -m` searches the current folder first. A file such as random.py or a folder such as
# stages/ in it would be imported in place of the module of that name, so the folder is removed
# before anything else is imported, even pathlib, unless this package is in it.
import os
import sys

root = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
if sys.path and sys.path[0] == os.getcwd() != root:  # noqa: PTH109
    del sys.path[0]

from pipeline.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
