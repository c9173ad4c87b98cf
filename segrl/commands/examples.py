"""Commands to try: what `segrl <command> --help` and docs/configs.md show. They follow one another in runs/."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "quickstart": (
        "segrl quickstart",
        "segrl quickstart model_path=Qwen/Qwen2.5-0.5B-Instruct data_path=train.jsonl",
    ),
    "sft": (
        "segrl sft preset=toy_cpu traces=runs/traces out=runs/sft",
        "segrl sft preset=r1_distill_qwen_1.5b traces=limo.jsonl out=runs/limo",
    ),
    "grpo": (
        "segrl grpo preset=toy_cpu out=runs/toy",
        "segrl grpo preset=r1_distill_qwen_1.5b method=uniform data_path=train.jsonl out=runs/plain",
    ),
    "generate": (
        "segrl generate limit=4 out=runs/traces",
        "segrl generate backend=vllm model_path=Qwen/Qwen2.5-7B-Instruct data_path=train.jsonl out=runs/7b",
    ),
    "harvest": (
        "segrl harvest traces=runs/traces out=runs/harvest",
        "segrl harvest preset=paper model_path=Qwen/Qwen2.5-7B-Instruct data_path=train.jsonl out=runs/best",
    ),
    "segment": ("segrl segment traces=runs/traces out=runs/segments.jsonl",),
    "attribute": (
        "segrl attribute traces=runs/traces out=runs/attributions",
        "segrl attribute traces=runs/traces attribution=paper out=runs/ig",
    ),
    "calibrate": ("segrl calibrate traces=runs/traces attribution=paper out=runs/nodes.json",),
    "select": (
        "segrl select traces=runs/traces out=runs/selections.parquet",
        "segrl select traces=runs/traces measure=contribution selection.tau=0.6 out=runs/gate.parquet",
    ),
    "export": ("segrl export traces=runs/traces selections=runs/selections.parquet out=runs/export",),
    "evaluate": (
        "segrl evaluate preset=toy_cpu out=runs/scores",
        "segrl evaluate preset=paper backend=vllm model_path=runs/grpo/model out=runs/paper",
    ),
    "grade": ("segrl grade traces=runs/traces out=runs/graded",),
    "compare": ("segrl compare a=runs/scores b=runs/graded",),
    "explain": (
        "segrl explain",
        'segrl explain problem="What is 3 + 4 * 2?" answer=11 model_path=Qwen/Qwen2.5-0.5B-Instruct',
        "segrl explain traces=runs/traces id='toy-900000-0#0' page=explained.html",
    ),
    "report": ("segrl report traces=runs/traces selections=runs/selections.parquet out=report.html",),
    "show": ("segrl show traces=runs/traces selections=runs/selections.parquet",),
    "analyze": ("segrl analyze limit=4 out=runs/analysis",),
    "truth": ("segrl truth limit=2 measures=[first_and_last,contribution,random] out=runs/truth",),
    "doctor": ("segrl doctor",),
    "cost": (
        "segrl cost length=8192 rollouts=1024 gpu=h100 gpus=8",
        "segrl cost grpo preset=r1_distill_qwen_7b gpu=h200",
    ),
}
