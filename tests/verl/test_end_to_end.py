"""verl's real trainers on the bundled model: torchrun, FSDP2 and gloo; Ray, vLLM and the TransferQueue."""

import json
import re
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("verl")

from transformers import AutoModelForCausalLM, AutoTokenizer

import segrl
from segrl import toy
from segrl.config import CONFIG_DIR
from segrl.data import save_traces, write_rows, write_verl_parquet
from segrl.importance import from_strength
from segrl.records import selection_row

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (toy.MODEL_PATH / "model.safetensors").exists(), reason="no model is bundled"),
]


@pytest.fixture
def environment(plain_environment):
    """Offline, on loopback, and with this folder's modules to import."""
    ours = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    path = [str(Path(segrl.__file__).parents[1]), str(Path(__file__).parent)]
    return plain_environment | ours | {"PYTHONPATH": ":".join(path)}


@pytest.fixture
def ray_dir():
    """Ray's sockets lie here, and their paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


# --- SFT -------------------------------------------------------------------------------------------------------------


def oracle_selections(traces):
    """The needed thoughts, by the toy world's own labels."""
    tokenizer = AutoTokenizer.from_pretrained(toy.MODEL_PATH)
    for trace in traces:
        trace = segrl.tokenize(trace, tokenizer)
        segments = segrl.segment(trace)
        keep = [kind in ("needed", "close", "answer") for kind in trace.meta["kinds"]]
        assert len(keep) == len(segments)
        keep_S = segments.thought_S.new_tensor(keep)
        selection = segrl.Selection(keep_S, tuple("forced" if one else "dropped" for one in keep))
        yield selection_row(trace, segments, from_strength(keep_S.double(), segments), selection)


@pytest.mark.timeout(400)
def test_selective_sft_trains_and_exports_a_model(tmp_path, environment, bounded):
    traces = toy.sample_traces(32, seed=7)
    save_traces(traces, tmp_path / "traces.jsonl")
    write_rows(tmp_path / "selections.parquet", list(oracle_selections(traces)))
    command = [sys.executable, "-m", "segrl", "sft", "sft_preset=toy_cpu", f"traces={tmp_path / 'traces.jsonl'}"]
    command += [
        f"model_path={toy.MODEL_PATH}",
        f"selections={tmp_path / 'selections.parquet'}",
        f"out={tmp_path / 'out'}",
        "trainer.total_epochs=1",
    ]
    log = bounded(command, environment, 360, tmp_path / "log")

    assert re.search(r"selective SFT: 32 traces, \d+ response tokens, \d+ of them kept \(\d\d\.\d%\), 2 steps", log)
    assert len(re.findall(r"step:\d+ - .*train/loss:\d", log)) == 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert all(f"| {name} |" in card for name in ("data", "measure", "tau", "beta", "segrl", "verl"))
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Modulo ten:"}], tokenize=False)
    prompt = tokenizer(asked, return_tensors="pt")["input_ids"]
    assert model.generate(prompt, max_new_tokens=4, do_sample=False).shape[1] == prompt.shape[1] + 4
    base = AutoModelForCausalLM.from_pretrained(toy.MODEL_PATH)
    assert any((a != b).any() for a, b in zip(model.parameters(), base.parameters(), strict=True))


# --- GRPO ------------------------------------------------------------------------------------------------------------


def grpo_command(folder: Path, ray_dir: str, *overrides: str) -> list[str]:
    """verl's own entry point, unchanged; the plugin comes through its environment."""
    rows = str(folder / "rows.parquet")
    write_verl_parquet(toy.sample_problems(64, seed=11), rows, "toy", "train")
    settings = {
        "trainer.v1.trainer_mode": "segrl",
        "+segrl.rule": "rank",
        "+segrl.calibration_nodes": 12,
        "+segrl.dump_dir": folder / "dump",
        "actor_rollout_ref.model.path": toy.MODEL_PATH,
        "data.train_files": rows,
        "data.val_files": rows,
        "reward.custom_reward_function.path": "pkg://segrl.verl.reward",
        "trainer.default_local_dir": folder / "checkpoints",
        "trainer.total_training_steps": 2,
        "data.train_batch_size": 8,
        "data.max_response_length": 256,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
        "actor_rollout_ref.model.external_lib": "probe",
        "actor_rollout_ref.actor.policy_loss.loss_mode": "probe",
        "+ray_kwargs.ray_init._temp_dir": ray_dir,
        "hydra.run.dir": folder,
    }
    entry = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", str(CONFIG_DIR), "+grpo_preset=toy_cpu"]
    return [*entry, *(f"{key}={value}" for key, value in settings.items()), *overrides]


@pytest.mark.timeout(900)
def test_weighted_advantages_reach_the_loss_under_verls_own_main(tmp_path, environment, bounded, ray_dir):
    probes = tmp_path / "probe"
    probes.mkdir()
    plugin = {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "segrl.verl", "SEGRL_PROBE_DIR": str(probes)}
    plugin["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    log = bounded(grpo_command(tmp_path, ray_dir), environment | plugin, 840, tmp_path / "log")

    reached = [row for path in probes.glob("*.json") for row in json.loads(path.read_text())]
    lines = [json.loads(line) for path in (tmp_path / "dump").glob("*.jsonl") for line in path.open()]
    weighed = [line for line in lines if line["uniform"] is None]
    assert len(reached) == len(lines) == 2 * 8 * 4
    assert weighed, f"no rollout was right with two thoughts:\n{log[-2000:]}"
    for line in weighed:
        expected = pytest.approx([line["advantage"] * weight for weight in line["weights"]], rel=1e-5)
        assert any(len(row) == len(line["weights"]) and row == expected for row in reached), line["key"]
        thinking = line["boundaries"][-2] if line["kinds"][-1] == "answer" else line["boundaries"][-1]
        assert sum(line["weights"][:thinking]) / thinking == pytest.approx(1.0)
    varied = [row for row in reached if max(row) - min(row) > 1e-6]
    assert len(varied) == len(weighed)
    for step in (1, 2):
        line = next(line for line in log.splitlines() if f"step:{step} - " in line)
        for metric in ("segrl/attributed_share", "segrl/segments_per_response", "segrl/cost", "timing_s/attribution"):
            assert f"{metric}:" in line
