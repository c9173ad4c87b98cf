"""Integrated gradients side by side: segrl, the paper's loop, captum.

    python scripts/bench_attribution.py toy      100 toy traces, the bundled model: time, certificate, agreement
    python scripts/bench_attribution.py length   a random Qwen2 of 4 layers, width 256, vocabulary 32k: 512 to 8k tokens
    python scripts/bench_attribution.py memory   its peak memory at 4k tokens, a process of its own for each method
    python scripts/bench_attribution.py workers  1 against 2 Ray workers

Methods take turns on the same traces within one run; a ratio is the median over those turns. The paper's loop and
captum's call are those of scripts/peers.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from peers import authors_loop, captum_call
from torch import Tensor

import segrl
from segrl import Trace, toy
from segrl.attribution import PAPER
from segrl.attribution.calibration import calibrate
from segrl.attribution.evaluator import Batching, Evaluator, Row
from segrl.attribution.path import resolve_baseline
from segrl.attribution.target import Explained, explain
from segrl.data.files import write_json
from segrl.importance import segment_scores
from segrl.importance.ranking import spearman
from segrl.selection import select

HELD_OUT, CALIBRATION = 2_000_000, 2_000_001  # seeds of traces that no training has seen
TAU = 0.7
CAPTUM = "captum, 50 right Riemann"

# --- part a: the toy world --------------------------------------------------------------------------------------------


def bench_toy(arguments) -> dict:
    model, tokenizer = toy.load_model()
    traces = [segrl.tokenize(trace, tokenizer) for trace in toy.sample_traces(arguments.traces, seed=HELD_OUT)]
    others = [segrl.tokenize(trace, tokenizer) for trace in toy.sample_traces(32, seed=CALIBRATION)]
    with tempfile.TemporaryDirectory() as folder:
        files = {moves: f"{folder}/{moves}.json" for moves in ("all", "response")}
        for moves, file in files.items():
            write_json(file, calibrate(model, others, tokenizer, interpolate=moves))
        methods = toy_methods(model, tokenizer, files)
        wanted = [name for name in methods if arguments.only in name or name == arguments.against]
        attributions, seconds = take_turns({name: methods[name] for name in wanted}, traces, arguments.turn)
    references = {
        moves: segrl.attribute(
            model, traces, tokenizer, **{**PAPER, "nodes": 300, "tolerance": None, "interpolate": moves}
        )
        for moves in files
    }
    rows = {f"reference, {moves}": certificate(reference) for moves, reference in references.items()}
    for name, of_method in attributions.items():
        reference = references["response" if "response" in name else "all"]
        rows[name] = {
            "evaluations": statistics.mean(attribution.evaluations for attribution in of_method),
            "seconds": sum(seconds[name]) / len(traces),
            "ratio": ratio(seconds, arguments.against, name),
            **({"of captum": ratio(seconds, CAPTUM, name)} if CAPTUM in seconds else {}),
            **agreement(traces, of_method, reference),
            **certificate(of_method),
        }
    return rows


class PeerAttribution:
    """What a method of the field gives: scores over the response and no certificate."""

    gap = unevenness = float("nan")
    flags = ()

    def __init__(self, trace: Trace, inside: Tensor, evaluations: int) -> None:
        self.scores_T = torch.zeros(trace.tokens)
        self.scores_T[: len(inside)] = inside
        self.evaluations = evaluations


def toy_methods(model, tokenizer, calibrations: dict[str, str]) -> dict[str, Callable]:
    def by_segrl(**options):
        return lambda traces: segrl.attribute(model, traces, tokenizer, **{**PAPER, **options})

    def by_peer(method, nodes=50):
        def run(traces):
            return [PeerAttribution(t, method(explain(t, tokenizer)), nodes) for t in traces]

        return run

    methods = {
        "the paper's loop, 50": by_peer(lambda sequence: authors_loop(model, sequence, PAD)),
        "the paper's loop, 50 in batches of 10": by_peer(lambda sequence: authors_loop(model, sequence, PAD, batch=10)),
        "the paper's loop, 200": by_peer(lambda sequence: authors_loop(model, sequence, PAD, nodes=200), nodes=200),
        "captum, 50 Gauss-Legendre": by_peer(lambda sequence: captum_call(model, sequence, PAD, "gausslegendre")),
        CAPTUM: by_peer(lambda sequence: captum_call(model, sequence, PAD, "riemann_right")),
        "12 even": by_segrl(tolerance=None),
        "108 even": by_segrl(nodes=108, tolerance=None),
    }
    for moves, file in calibrations.items():
        few = {"interpolate": moves, "tolerance": None, "certificate": False}
        methods |= {
            f"refined, {moves}": by_segrl(interpolate=moves),
            f"refined at tolerance 0.3, {moves}": by_segrl(interpolate=moves, tolerance=0.3),
            f"calibrated 6, {moves}": by_segrl(interpolate=moves, quadrature=file, nodes=6),
            f"online: midpoint 1, {moves}": by_segrl(nodes=1, **few),
            f"online: midpoint 4, {moves}": by_segrl(nodes=4, **few),
            f"online: calibrated 4, {moves}": by_segrl(quadrature=file, nodes=4, **few),
            f"online: calibrated 1, {moves}": by_segrl(quadrature=file, nodes=1, **few),
        }
    return methods


def take_turns(methods: dict[str, Callable], traces: list[Trace], turn: int) -> tuple[dict, dict]:
    """The attributions and the seconds of each method; methods take turns on a handful of traces."""
    attributions: dict[str, list] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for start in range(0, len(traces), turn):
        for name, method in methods.items():
            began = time.perf_counter()
            attributions[name] += method(traces[start : start + turn])
            seconds[name].append(time.perf_counter() - began)
        print(f"{start + turn} of {len(traces)} traces", file=sys.stderr, flush=True)
    return attributions, seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def certificate(attributions: list) -> dict:
    """A method's own estimates of its error, and the share of traces that it refined."""
    gaps = [float("nan") if a.gap is None else a.gap for a in attributions]  # None without a certificate
    return {
        "gap": statistics.median(gaps),
        "gap<=0.05": sum(gap <= 0.05 for gap in gaps) / len(gaps),
        "unevenness": statistics.median(a.unevenness for a in attributions),
        "refined": sum(a.evaluations > 14 for a in attributions) / len(attributions),
        "coarse": sum("coarse" in a.flags for a in attributions) / len(attributions),
    }


def agreement(traces: list[Trace], attributions: list, reference: list) -> dict:
    """Against the reference: ranks and shares of segments, and the sets that tau and beta select."""
    ranks, jaccard, variation, equal, close = [], [], [], 0, 0
    for trace, *pair in zip(traces, attributions, reference, strict=True):
        segments = segrl.segment(trace)
        scores, right = (segment_scores(attribution.scores_T, segments) for attribution in pair)
        thoughts = scores.thought_S
        if int(thoughts.sum()) > 2:
            ranks.append(spearman(scores.strength_S[thoughts], right.strength_S[thoughts]))
        variation.append(float((scores.share_S - right.share_S).abs().sum() / 2))
        a, b = (set(select(s, TAU, force=()).keep_S.nonzero().flatten().tolist()) for s in (scores, right))
        jaccard.append(len(a & b) / len(a | b) if a | b else 1.0)
        equal += a == b
        close += a != b and borderline(right)
    n = len(traces)
    return {
        "spearman": statistics.mean(ranks),
        "variation": statistics.mean(variation),
        "jaccard": statistics.mean(jaccard),
        "equal sets": equal / n,
        "unequal within 1e-3 of tau": close / n,
    }


def borderline(scores) -> bool:
    """Whether a small error decides the set: a cumulative share lies within 1e-3 of tau."""
    shares = scores.share_S.sort(descending=True).values.cumsum(0)
    return bool(((shares - TAU).abs() < 1e-3).any())


# --- part b: length ---------------------------------------------------------------------------------------------------


def bench_length(arguments) -> dict:
    model = random_model()
    rows = {}
    for tokens in arguments.lengths:
        sequence = random_explained(tokens)
        evaluate = Evaluator(model, [sequence], PAD)
        methods = {
            "the paper's loop": lambda sequence=sequence: authors_loop(model, sequence, PAD, nodes=3),
            "the paper's, batched": lambda sequence=sequence: authors_loop(model, sequence, PAD, nodes=3, batch=3),
            "captum": lambda sequence=sequence: captum_call(model, sequence, PAD, "gausslegendre", nodes=3),
            "segrl": lambda evaluate=evaluate: list(three_nodes(evaluate)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        rates = []
        for _ in range(arguments.repeats):
            rates.append(matmul_rate())
            for name, method in methods.items():
                began = time.perf_counter()
                method()
                seconds[name].append((time.perf_counter() - began) / 3)
        for name in methods:
            took = statistics.median(seconds[name])
            rows[f"{tokens} tokens, {name}"] = {
                "seconds an evaluation": took,
                "ratio": ratio(seconds, name, "segrl"),
                "share of matmul rate": statistics.median(
                    flops(model, tokens) / s / rate for s, rate in zip(seconds[name], rates, strict=True)
                ),
            }
        print(f"{tokens} tokens done", file=sys.stderr, flush=True)
    return rows


def three_nodes(evaluate: Evaluator):
    return Batching().run(evaluate, [Row(0, alpha, 1.0) for alpha in (0.25, 0.5, 0.75)])


def random_model():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    width = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}
    config = Qwen2Config(vocab_size=32_000, num_hidden_layers=4, max_position_embeddings=16_384, **width)
    return Qwen2ForCausalLM(config).eval()


def random_explained(tokens: int) -> Explained:
    ids = torch.randint(10, 32_000, (tokens,), generator=torch.Generator().manual_seed(tokens))
    trace = Trace("random", "")
    return Explained(trace, "", ids, slice(100, tokens - 12), (tokens - 5, tokens - 1), torch.zeros(tokens).bool())


def flops(model, tokens: int) -> float:
    """The flops of one gradient: forward (2) and back to the input (2) through every weight but the head's and the last
    feed-forward's, which only a few rows need; causal attention forward (2 products) and back (5)."""
    config = model.config
    few_rows = ("embed", "lm_head", f"layers.{config.num_hidden_layers - 1}.mlp")
    weights = sum(p.numel() for name, p in model.named_parameters() if not any(part in name for part in few_rows))
    attention = 7 * 2 * tokens * tokens / 2 * config.hidden_size * config.num_hidden_layers
    return 4 * weights * tokens + attention


def matmul_rate() -> float:
    """Flops a second of a plain matrix product of the model's own shape."""
    a, b = torch.randn(2048, 256), torch.randn(256, 1024)
    for _ in range(3):
        a @ b
    began = time.perf_counter()
    for _ in range(40):
        a @ b
    return 40 * 2 * 2048 * 256 * 1024 / (time.perf_counter() - began)


# --- memory and workers -----------------------------------------------------------------------------------------------


def bench_memory(arguments) -> dict:
    """Peak resident memory above that of the loaded model, each method in a process of its own."""
    rows = {}
    for name in ("captum", "segrl", "segrl checkpointed"):
        command = [sys.executable, __file__, "peak", "--method", name, "--tokens", str(arguments.tokens)]
        rows[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for row in rows.values():
        row["ratio"] = row["MiB above the model"] / rows["captum"]["MiB above the model"]
    return rows


def peak(arguments) -> dict:
    model, sequence = random_model(), random_explained(arguments.tokens)
    captum_call(model, random_explained(64), PAD, "gausslegendre", nodes=2)  # imports and buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    if arguments.method == "captum":
        captum_call(model, sequence, PAD, "gausslegendre", nodes=2)
    else:
        evaluate = Evaluator(model, [sequence], PAD)
        checkpointing = arguments.method.endswith("checkpointed")
        for alpha in (0.25, 0.75):
            evaluate([Row(0, alpha, 1.0)], checkpointing)
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"MiB above the model": above, "seconds": time.perf_counter() - began}


def bench_workers(arguments) -> dict:
    """The seconds of `segrl attribute` as a whole, its start included."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/traces.parquet"
        segrl.save_traces(toy.sample_traces(arguments.traces, seed=HELD_OUT), file)
        rows = {}
        for workers in (1, 2):
            out = [
                f"out={folder}/{workers}",
                "executor=ray",
                f"workers={workers}",
                "attribution=paper",
                "attribution.nodes=108",
                "shard=8",
            ]
            began = time.perf_counter()
            command = [sys.executable, "-m", "segrl", "attribute", f"traces={file}", *out]
            subprocess.run(command, check=True, capture_output=True)
            rows[f"{workers} workers"] = {"seconds": time.perf_counter() - began}
    rows["2 workers"]["ratio"] = rows["1 workers"]["seconds"] / rows["2 workers"]["seconds"]
    return rows


# --- printing ---------------------------------------------------------------------------------------------------------


def table(rows: dict[str, dict]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, row in rows.items():
        cells = [f"{row[c]:.3g}" if c in row else "" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


PAD = 0
PARTS = {"toy": bench_toy, "length": bench_length, "memory": bench_memory, "workers": bench_workers, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--traces", type=int, default=100)
    parser.add_argument("--turn", type=int, default=10, help="traces a method takes before the next one's turn")
    parser.add_argument("--only", default="", help="toy: the methods whose names hold this")
    parser.add_argument("--against", default="the paper's loop, 50")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="*", default=(512, 2048, 4096, 8192))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--method", default="segrl")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    global PAD
    if arguments.part == "toy":
        PAD = resolve_baseline("pad", toy.load_model()[1])
    rows = PARTS[arguments.part](arguments)
    print(json.dumps(rows) if arguments.part == "peak" else table(rows))


if __name__ == "__main__":
    main()
