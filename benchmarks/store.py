"""The store: how often and how fast bytes are read, and what its faults cost. Each part is a module beside this one.

python benchmarks/store.py [--quick]
"""

import argparse

from result import write
from store_care import care
from store_peers import peers

PARTS = (peers, care)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="smaller objects, and fewer")
    chosen = options.parse_args()
    write("store", [row for part in PARTS for row in part(chosen.quick)], chosen.quick)


if __name__ == "__main__":
    main()
