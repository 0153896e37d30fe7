"""Runs rows on the native engine of another processor: `python -m tests.engine.native.emulated CASES RESULTS`.

Both files are pickles: a list of (processor or None, spec, weights, rows); and the machine, whether the engine finds
fused multiply-adds on it, and a list of `Results`.
"""

import pickle
import sys
from pathlib import Path
from platform import machine

from service.engine.native.compiler import Processor
from service.engine.native.engine import NativeEngine
from tests.engine.native.models import run_rows


def main() -> None:
    cases, results = map(Path, sys.argv[1:])
    found = []
    for processor, spec, weights, rows in pickle.loads(cases.read_bytes()):
        engine = NativeEngine(spec, weights, threads=2, processor=processor)
        found.append(run_rows(engine, *rows))
    results.write_bytes(pickle.dumps((machine(), Processor.host().has_fma, found)))


if __name__ == "__main__":
    main()
