"""Traces and rows, in and out: jsonl, parquet, hub datasets, benchmarks, and the parquet rows verl trains on."""

from segrl.data.benchmarks import BENCHMARKS, load_benchmark
from segrl.data.files import read_rows, write_rows
from segrl.data.traces import load_traces, save_traces, verl_rows, write_verl_parquet

__all__ = [
    "BENCHMARKS",
    "load_benchmark",
    "load_traces",
    "read_rows",
    "save_traces",
    "verl_rows",
    "write_rows",
    "write_verl_parquet",
]
