"""vLLM on the toy model, offline and as a server, beside the transformers backend."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from importlib.util import find_spec

import pytest

from segrl import toy
from segrl.commands.cli import main
from segrl.data import load_traces

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:.*max_new_tokens.*"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed"),
]
ENVIRONMENT = {
    **os.environ,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}
ASKED = ["generate", f"model_path={toy.MODEL_PATH}", "limit=64", "generation.batch=16", "generation.max_tokens=200"]
GREEDY, DRAWN = ["generation.temperature=0"], ["generation.n=2", "limit=16"]
ENGINE = ["backend=vllm", "generation.vllm.engine={enforce_eager: true, max_num_seqs: 32}"]


def in_a_process(*arguments, **environment):
    """vLLM changes much of the process that it runs in."""
    command = [sys.executable, "-m", "segrl", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


def contents(folder):
    return [(trace.id, trace.response, dict(trace.meta)) for trace in load_traces(folder)]


@pytest.fixture(scope="module")
def greedy(tmp_path_factory):
    """What transformers says."""
    out = tmp_path_factory.mktemp("greedy")
    assert main([*ASKED, *GREEDY, f"out={out}"]) == 0
    return contents(out)


def agreement(one, other):
    """Rounding differs, and after a near tie the texts part: almost all must be equal, in text, finish and length."""
    assert [id for id, _, _ in one] == [id for id, _, _ in other]
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def test_greedy_responses_are_those_of_transformers(tmp_path, greedy):
    code, shown = in_a_process(*ASKED, *GREEDY, *ENGINE, f"out={tmp_path}")
    assert code == 0, shown
    print(f"vllm and transformers: {agreement(contents(tmp_path), greedy):.3f} equal")
    assert agreement(contents(tmp_path), greedy) >= 0.95


def test_samples_repeat_by_name_and_an_interrupted_run_goes_on(tmp_path):
    code, shown = in_a_process(*ASKED, *DRAWN, *ENGINE, f"out={tmp_path}")
    assert code == 0, shown
    whole = contents(tmp_path)
    assert len({response for _, response, _ in whole}) > 16
    for name in ("part-00000.parquet", "part-00001.parquet"):
        (tmp_path / name).unlink()
    code, shown = in_a_process(*ASKED, *DRAWN, *ENGINE, f"out={tmp_path}")
    assert code == 0, shown
    again = contents(tmp_path)
    print(f"resumed: {agreement(again, whole):.3f} equal")
    assert agreement(again, whole) >= 0.95


@pytest.mark.slow
def test_an_evaluation_starts_one_engine(tmp_path):
    """For its sampled and its greedy pass; the greedy one is that of transformers."""
    asked = ["evaluate", *ASKED[1:], *ENGINE, "greedy=true", "limit=16", f"out={tmp_path / 'vllm'}"]
    code, shown = in_a_process(*asked, VLLM_LOGGING_LEVEL="INFO")
    assert code == 0, shown
    assert shown.count("Initializing a V1 LLM engine") == 1
    assert "dtype=torch.float32" in shown  # the bundled model's own
    assert main(["generate", *ASKED[1:], *GREEDY, "limit=16", f"out={tmp_path / 'greedy'}"]) == 0
    found = contents(tmp_path / "vllm" / "responses" / "problems-greedy")
    assert agreement(found, contents(tmp_path / "greedy")) >= 0.9


def test_the_dtype_is_the_models_own_and_an_engine_option_that_is_none_is_a_sentence(tmp_path):
    model = shutil.copytree(toy.MODEL_PATH, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    asked = ["generate", f"model_path={model}", "limit=2", "backend=vllm", "generation.vllm.engine={max_len: 2}"]
    code, shown = in_a_process(*asked, f"out={tmp_path / 'out'}")
    assert code == 2
    assert "vLLM's engine takes no 'max_len', did you mean" in shown
    assert "Traceback" not in shown
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["dtype"] == "bfloat16"


def test_vllms_own_server_gives_the_same(tmp_path, greedy):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Its console script looks for a distribution called vllm, which the CPU build is not.
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(toy.MODEL_PATH)]
    serve += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    serve += ["--no-enable-chunked-prefill"]  # seeds need it on a CPU; see _engine in segrl/generation/vllm.py
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(serve, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        wait_for(port, server, tmp_path / "log")
        url = f"server=http://127.0.0.1:{port}"
        assert main([*ASKED, *GREEDY, "backend=openai", url, f"out={tmp_path / 'out'}"]) == 0
        chat = ["generation.openai.endpoint=chat", "limit=4", f"out={tmp_path / 'chat'}"]
        assert main([*ASKED, *GREEDY, "backend=openai", url, *chat]) == 0
        for at_once in (32, 4):
            drawn = ["limit=6", "generation.n=2", f"generation.openai.concurrency={at_once}"]
            assert main([*ASKED, "backend=openai", url, *drawn, f"out={tmp_path / str(at_once)}"]) == 0
    finally:
        server.terminate()
        server.wait(60)
    print(f"server and transformers: {agreement(contents(tmp_path / 'out'), greedy):.3f} equal")
    assert agreement(contents(tmp_path / "out"), greedy) >= 0.95
    assert agreement(contents(tmp_path / "32"), contents(tmp_path / "4")) >= 0.9
    # The toy's template is the same on both sides, so a chat's responses are too.
    chatted = [response for _, response, _ in contents(tmp_path / "chat")]
    assert chatted == [response for _, response, _ in contents(tmp_path / "out")[:4]]


def wait_for(port, server, log):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and server.poll() is None:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/v1/models")
            if json.loads(connection.getresponse().read())["data"]:
                return
        except (OSError, ValueError):
            time.sleep(0.3)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")
