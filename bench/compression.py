"""What each way of making resnet8 smaller costs and gives on CIFAR-10, beside the dense model trained as long.

make bench-compression
python bench/compression.py --only "channels 50 %"     one row (and the dense control) instead of all
python bench/compression.py --markdown                 also print the table as it is in docs/compression.md
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")

from compression_rows import CIFAR10, RESNET8, Bench, specs
from compression_table import latencies, lines, markdown, rows_of
from edgeferry_converter.quiet import quiet
from table import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="keep results and checkpoints here, and go on from them")
    parser.add_argument("--only", metavar="ROW", action="append", help="rows whose name begins so; again for more")
    parser.add_argument("--kept", action="store_true", help="make nothing: report the rows that --scratch holds")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/compression.md as well")
    options = parser.parse_args()
    if not (RESNET8.is_file() and CIFAR10.is_dir()):
        parser.error(f"needs {RESNET8} and {CIFAR10}")
    warnings.simplefilter("ignore")  # TensorFlow's, of its own innards
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        with quiet(verbose=False):
            bench = Bench(scratch)
            made = {}
            for spec in specs():
                wanted = spec.recipe is None or not options.only or spec.name.startswith(tuple(options.only))
                if wanted and (bench.holds(spec) or not options.kept):
                    made |= {one.name: one for one in bench.made(spec)}
                    print(f"{spec.name}: {sum(one.seconds for one in made.values()):.0f} s", flush=True)
            times = latencies([one.file for one in made.values()], bench.material)
        table = lines(made, times)
        if not options.only:
            report("compression", rows_of(table, sum(one.seconds for one in made.values())))
        if options.markdown or options.only:
            print(markdown(table))


if __name__ == "__main__":
    main()
