"""Sampling with vLLM's offline engine: all samples enter its queue at once and come out as they finish."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from segrl.generation.sampling import Sampling, answered
from segrl.loading import DTYPES, load_tokenizer
from segrl.resolving import near
from segrl.text.prompting import render
from segrl.types import Trace, given

# A value that is already set stays.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: its schedule repeats, and a kill leaves no engine behind
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; without it vLLM's CPU build takes, and clears, half of the memory
}


def generate(
    groups: Iterable[Sequence[Trace]], sampling: Sampling, *, dtype: str, engine: Mapping[str, Any]
) -> Iterator[Trace]:
    """The traces as they finish; each sample is a request with its own seed, and the prefix cache shares its prompt."""
    llm_engine = _engine(sampling.model_path, dtype, engine)
    tokenizer = load_tokenizer(given(sampling.model_path))
    samples, prompts = {}, {}
    for sample in (sample for group in groups for sample in group):
        samples[sample.id], prompts[sample.id] = sample, render(sample.problem, tokenizer, sampling.template)
        ids = tokenizer(prompts[sample.id], add_special_tokens=False)["input_ids"]
        llm_engine.add_request(sample.id, {"type": "token", "prompt_token_ids": ids}, _parameters(sampling, sample))
    try:
        while llm_engine.has_unfinished_requests():
            for output in llm_engine.step():
                [completion] = output.outputs
                sample, prompt = samples[output.request_id], prompts[output.request_id]
                tokens = len(completion.token_ids)
                yield answered(sample, completion.text, completion.finish_reason, tokens, prompt)
    except BaseException:  # unfinished requests are still in the engine's queue
        _kept.clear()
        raise


_kept: dict[str, Any] = {}  # the last engine: an evaluation uses the same engine for each benchmark, sampled and greedy


def _engine(model_path: str | None, dtype: str, options: Mapping[str, Any]):
    key = json.dumps([model_path, dtype, dict(options)], sort_keys=True, default=str)
    if key not in _kept:
        _kept.clear()  # frees its memory before the next engine takes its own
        _kept[key] = _started(model_path, dtype, options)
    return _kept[key]


def _started(model_path: str | None, dtype: str, options: Mapping[str, Any]):
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ImportError(
            f"backend=vllm needs vllm, which cannot be imported ({error}); `segrl doctor` names the command that "
            "installs it, backend=transformers needs nothing more"
        ) from error
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}, expected one of {DTYPES}")
    known = [field.name for field in fields(EngineArgs)]
    for name in options:
        if name not in known:
            raise ValueError(f"vLLM's engine takes no {name!r}{near(name, known)}")
    # vLLM rewinds a seeded request's generator after each chunk of its prompt; torch's CPU generator does not allow it.
    whole_prompts = {"enable_chunked_prefill": False} if current_platform.is_cpu() else {}
    return LLMEngine.from_engine_args(
        EngineArgs(**{"model": model_path, "dtype": dtype, "disable_log_stats": True, **whole_prompts, **options})
    )


def _parameters(sampling: Sampling, sample: Trace):
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop),
        seed=sample.meta["seed"],
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
