"""Whatever goes wrong while samples are written: none is lost, none is doubled, and the message says what to do."""

import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from testkit.tiny import byte_level_tokenizer, tiny_model

from segrl import Trace, toy
from segrl.commands.cli import main
from segrl.commands.generating import HELD_OUT
from segrl.data import load_traces, save_traces
from segrl.generation import vllm

pytestmark = pytest.mark.filterwarnings("ignore:.*max_new_tokens.*")
ASKED = ["generate", "limit=8", "generation.n=3", "generation.batch=2", "generation.max_tokens=200"]


def start(out, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "segrl", *ASKED, f"out={out}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def contents(folder):
    return [(trace.id, trace.response, dict(trace.meta)) for trace in load_traces(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert main([*ASKED, f"out={out}"]) == 0
    return contents(out)


@pytest.mark.e2e
@pytest.mark.parametrize(("shards", "later"), [((1, 5), 0.0), ((4, 7), 0.13)])
def test_a_run_that_is_killed_twice_ends_like_one_that_was_not(tmp_path, whole, shards, later):
    assert len(whole) == 24
    for until in shards:
        process = start(tmp_path)
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("part-*.parquet"))) < until and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(later)
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert until <= len(list(tmp_path.glob("part-*.parquet"))) < 12
    assert main([*ASKED, f"out={tmp_path}"]) == 0
    assert contents(tmp_path) == whole


@pytest.mark.e2e
def test_a_full_disk_is_a_sentence_and_costs_one_shard(tmp_path, whole):
    """A limit on the size of files stands for the disk: the same system call fails, in the middle of a shard."""
    assert main([*ASKED, f"out={tmp_path}"]) == 0
    for part in sorted(tmp_path.glob("part-*.parquet"))[3:]:
        part.unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    process = start(tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)))
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 2, shown
    assert "part-00003.parquet was not written (File too large); what stood there before is untouched" in shown
    assert "Traceback" not in shown
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert main([*ASKED, f"out={tmp_path}"]) == 0
    assert contents(tmp_path) == whole


def test_a_model_that_emits_nothing_is_a_sentence(tmp_path, capsys):
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits are equal, and the first token is the pad
    model.save_pretrained(tmp_path / "mute")
    byte_level_tokenizer().save_pretrained(tmp_path / "mute")
    few = ["limit=2", "generation.max_tokens=4", "generation.temperature=0", f"model_path={tmp_path / 'mute'}"]
    for command, responses in (("generate", tmp_path / "g"), ("harvest", tmp_path / "h" / "candidates")):
        assert main([command, *few, "generation.n=1", f"out={tmp_path / command[0]}"]) == 2
        shown = capsys.readouterr().err
        assert "the model emitted nothing: all 2 responses are empty, 0 of them ended by the model itself" in shown
        assert len(load_traces(responses)) == 2


@pytest.mark.e2e
def test_another_job_may_not_go_on_in_the_folder_but_other_circumstances_may(tmp_path, capsys):
    few = ["generate", "limit=2", "generation.batch=1", "generation.max_tokens=4", f"out={tmp_path}"]
    assert main(few) == 0
    assert main([*few, "generation.temperature=0.5"]) == 2
    assert "temperature was 1.0, now 0.5" in capsys.readouterr().err
    assert main([*few, "backend=vllm"]) == 2
    assert "backend was 'transformers', now 'vllm'" in capsys.readouterr().err
    assert main([*few, "generation.batch=0"]) == 2
    assert "generation.batch=0, expected 1 or more" in capsys.readouterr().err
    assert main([*few, "device=cpu", "generation.openai.retries=9"]) == 0
    others = [Trace(one.id, one.problem, "", "0") for one in toy.sample_problems(2, seed=HELD_OUT)]  # of the same ids
    save_traces(others, tmp_path / "p.jsonl")
    assert main([*few, f"data_path={tmp_path / 'p.jsonl'}"]) == 2
    assert "problems was '" in capsys.readouterr().err


def test_without_vllm_its_backend_says_what_to_do(tmp_path, capsys, monkeypatch):
    for name, value in vllm.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert main(["generate", "limit=2", "backend=vllm", f"out={tmp_path}"]) == 2
    assert "backend=vllm needs vllm, which cannot be imported" in capsys.readouterr().err


def test_a_backend_of_ones_own_and_a_typo(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_backend.py").write_text(
        "from segrl.generation.sampling import answered\n"
        "def echo(groups, sampling):\n"
        "    for group in reversed(list(groups)):\n"
        "        yield from (answered(one, one.problem.upper(), 'stop', 1) for one in group)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    few = ["generate", "limit=3", "generation.batch=2", f"out={tmp_path / 'out'}"]
    assert main([*few, "backend=my_backend:echo"]) == 0
    problems = toy.sample_problems(3, seed=900_000)
    assert [t.response for t in load_traces(tmp_path / "out")] == [p.problem.upper() for p in problems]
    assert main([*few, "backend=vlm"]) == 2
    assert "no backend is called 'vlm', did you mean 'vllm'?" in capsys.readouterr().err
