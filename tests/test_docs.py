"""What the README and docs/ say is so: commands compose, links resolve, Python runs, generated pages are up to date."""

import ast
import re
import shlex
import sys
from importlib.util import find_spec
from itertools import takewhile

import pytest
from omegaconf import OmegaConf
from testkit.readme import BLOCK, ROOT, own_measure
from testkit.script_files import loaded

from segrl.commands.cli import COMMANDS, PLANNED, main
from segrl.commands.config import ON_VERL, compose
from segrl.commands.describing import command_keys
from segrl.commands.examples import EXAMPLES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"\s*(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?segrl (.*)")
PLACEHOLDER = re.compile(r"<[^<>\n]*>")
TWO_WORDS = {("attribute", "calibrate"): "calibrate", ("analyze", "truth"): "truth"}
TWO_WORDS |= {("cost", planned): planned for planned in PLANNED}


def commands():
    """The arguments of every `segrl ...` in a block or between backticks, and a page that has it."""
    for page in PAGES:
        text = page.read_text()
        typed = [line for _, body in BLOCK.findall(text) for line in body.replace("\\\n", " ").splitlines()]
        typed += [line for line in text.splitlines() if line.startswith("    segrl ")]
        for line in [*typed, *INLINE.findall(BLOCK.sub("", text))]:
            found = COMMAND.match(PLACEHOLDER.sub("x", line))
            words = shlex.split(found[1], comments=True) if found else []
            name, overrides = TWO_WORDS.get(tuple(words[:2])), words[2:]
            if name is None:
                name, overrides = "".join(words[:1]), words[1:]
            if name in COMMANDS or (line in typed and words):  # between backticks "segrl <command>" may stand for any
                given = takewhile(
                    lambda word: word != "--help", overrides
                )  # what stands behind it is a section or a key
                yield (name, *(word for word in given if not word.startswith("--"))), page.name


FOUND = dict(sorted(commands()))
# verl's config takes a second to compose.
CASES = [pytest.param(words, marks=[pytest.mark.e2e] * (words[0] in ON_VERL)) for words in FOUND]


def test_there_are_commands_to_look_at():
    assert set(FOUND.values()) >= {"README.md", "verl.md", "your_own_measure.md", "cost.md"}
    assert {words[0] for words in FOUND} >= {"generate", "attribute", "select", "sft", "grpo", "evaluate", "report"}


@pytest.mark.parametrize("words", CASES, ids=lambda words: " ".join(words)[:90])
def test_every_command_composes(words):
    """Keys exist and values fit; of `key=...` the key."""
    name, *overrides = words
    assert name in COMMANDS, f"{FOUND[words]} has segrl {name}"
    if name in ON_VERL and find_spec("verl") is None:
        pytest.skip("composes over verl's config, and verl is not installed")
    config = compose(name, [one for one in overrides if not one.endswith("=...")])
    for key in (one.removesuffix("=...") for one in overrides if one.endswith("=...")):
        assert OmegaConf.select(config, key, default=0) != 0, f"{FOUND[words]}: segrl {name} has no key {key}"


# The hub's models, vLLM on a GPU, verl with flash attention.
NEEDS_GPU = re.compile(r"preset=(r1_|one_gpu|two_nodes|paper)|deepseek-ai/|Qwen/")
# What is run here, in this order, in one folder: the examples of these commands' help, then what the pages have.
HELPED = ("generate", "harvest", "segment", "attribute", "select", "export", "evaluate", "grade", "compare")
HELPED += ("report", "show", "cost")
EXAMPLES_RUN = (example for command in HELPED for example in EXAMPLES[command] if not NEEDS_GPU.search(example))
RUN = (
    *(example.removeprefix("segrl ") for example in EXAMPLES_RUN),
    "select traces=runs/traces out=runs/mine.parquet measure=my_measures:surprise",
    "report traces=... out=report.html",
    "truth out=runs/truth measures=[ig,random,my_measures:surprise]",
)
FEWER = {"evaluate": "limit=2", "truth": "limit=2"}
ELSEWHERE = {
    **dict.fromkeys(
        (
            "explain problem=What is 3 + 4 * 2? answer=11 model_path=...",
            "explain problem=What is 3 + 4 * 2? answer=11 model_path=... response=out.txt page=out.html",
            "explain traces=runs/traces id=toy-900000-0#0",
            "explain traces=runs/traces id=toy-900000-0#0 page=explained.html",
            "select traces=runs/traces measure=mistake out=runs/mistake.parquet",
            "select traces=runs/traces measure=pmi attribution.target=contrast out=runs/pmi.parquet",
            "select traces=runs/traces measure=alone attribution.target=contrast out=runs/alone.parquet",
            "report traces=runs/traces selections=[runs/mistake.parquet,runs/pmi.parquet,runs/alone.parquet] "
            "out=report.html",
        ),
        "tests/commands/test_explaining.py",
    ),
    "cost model_path=... length=... rollouts=... gpus=...": "tests/cost/test_hours.py",
    "report rollouts=x out=rollouts.html": "tests/report/test_rollouts.py",
    "report rollouts=x metrics=x out=rollouts.html": "tests/report/test_rollouts.py",
    "calibrate attribution=paper": "tests/commands/test_commands.py",
    "calibrate traces=runs/traces attribution=paper out=runs/nodes.json": "tests/commands/test_commands.py",
    "analyze limit=4 out=runs/analysis": "tests/commands/test_analysing.py",
    "truth limit=2 measures=[first_and_last,contribution,random] out=runs/truth": "tests/commands/test_analysing.py",
    "sft preset=toy_cpu traces=runs/traces out=runs/sft": "tests/verl/test_end_to_end.py",
    "truth world=toy half=dev": "tests/scripts/test_truth_tables.py",
    "grpo preset=toy_cpu": "tests/scripts/test_examples.py",
    "grpo preset=toy_cpu out=runs/toy": "tests/scripts/test_examples.py",
    "grpo preset=toy_cpu out=runs/mine segrl.measure=my_measures:surprise": "tests/verl/test_grpo_runs.py",
    "grpo preset=toy_cpu out=runs/curriculum segrl.curriculum.order=shuffled segrl.curriculum.drop_solved=0.95 "
    "segrl.curriculum.convergence=gaussian segrl.curriculum.convergence_step=20": "tests/verl/test_grpo_runs.py",
    "grpo segrl.dump_dir=...": "tests/verl/test_end_to_end.py",
    "grpo method=acpo": "tests/verl/test_end_to_end.py",
    "grpo method=contrast": "tests/verl/test_end_to_end.py",
    "grpo method=uniform": "tests/verl/test_grpo_runs.py",
    "generate data_path=...": "tests/commands/test_quickstart.py",
    "quickstart model_path=... data_path=...": "tests/commands/test_quickstart.py",
}


def test_every_command_is_run_or_needs_a_gpu():
    """Those of the benchmarks ran for their figures, and take too long here."""
    typed = {" ".join(words) for words, page in FOUND.items() if len(words) > 1 and page != "benchmarks.md"}
    assert {one for one in typed if not NEEDS_GPU.search(one)} <= {*RUN, *ELSEWHERE}
    assert all((ROOT / file).exists() for file in ELSEWHERE.values())


@pytest.mark.e2e
def test_commands_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_measures.py").write_text(own_measure())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_measures", raising=False)
    for line in RUN:
        words = line.replace("traces=...", "traces=runs/traces").split()
        assert main([*words, *filter(None, [FEWER.get(words[0])])]) == 0, line
    assert (tmp_path / "report.html").exists()
    assert len(list((tmp_path / "runs" / "export").iterdir())) == 2
    assert "my_measures:surprise" in capsys.readouterr().out


def slug(heading):
    """GitHub's anchor of a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return plain.replace(" ", "-")


def anchors(page):
    return {slug(line.lstrip("#")) for line in BLOCK.sub("", page.read_text()).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for given in LINK.findall(BLOCK.sub("", page.read_text())):
        target = given[0] or given[1]
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{page.name} links to {target}, which has {anchors(there)}"


@pytest.mark.e2e
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_python_runs(page, tmp_path, monkeypatch):
    """Blocks of a page share their names; one that opens with the name of a file is that file, and is imported."""
    blocks = [body for language, body in BLOCK.findall(page.read_text()) if language == "python"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {}
    for body in blocks:
        file = re.match(r"# (\w+\.py)\n", body)
        if file:
            (tmp_path / file[1]).write_text(body)
        exec(compile(body, f"{page.name}", "exec"), names)


def test_the_configs_page_is_up_to_date():
    script = loaded("write_config_docs")
    assert script.OUT.read_text() == script.page(), "run python scripts/write_config_docs.py"


def test_every_key_of_every_command_is_on_the_configs_page():
    rows = re.findall(r"^\| `([\w.]+)` \|.* \| \S.* \|$", (ROOT / "docs" / "configs.md").read_text(), re.MULTILINE)
    assert {name for command in COMMANDS for name in command_keys(command).keys} == set(rows)


def texts_of(package):
    """Every text in the code, with spaces for what is filled in."""
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_of_troubleshooting_are_messages_of_the_code():
    said = " ".join("\n".join([*texts_of(ROOT / "segrl"), (ROOT / "Makefile").read_text()]).split())
    rows = [line.split(" | ")[0] for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines()]
    messages = [message for row in rows if row.startswith("| ") for message in INLINE.findall(row)]
    assert len(messages) > 30
    for message in messages:
        assert all(part.strip() in said for part in message.split("…")), message


def test_scripts_and_examples_that_are_named_are_there():
    for page in PAGES:
        for path in re.findall(r"\b(?:scripts|examples)/[\w./-]+\.(?:py|sh|yaml)", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.e2e
def test_the_readmes_own_measure_weighs_grpo_and_selects(tmp_path, monkeypatch, capsys):
    """The fifteen lines, run where they are meant to run: in the arithmetic of a GRPO step, and in `segrl select`."""
    import torch
    from testkit.pages import trace_of

    from segrl import toy
    from segrl.credit.rollout import Rollout, evidence_of, weigh_rollout
    from segrl.credit.settings import CreditSettings
    from segrl.data import save_traces
    from segrl.types import Stream

    body = own_measure()
    assert len(body.splitlines()) <= 15
    (tmp_path / "my_measures.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_measures", raising=False)
    trace, segments = trace_of(["a b", "c d", "e f", "</think> \\boxed{12}"])
    rollout = Rollout("a_0_0", trace, segments, torch.full((8,), 0.5), 1.0)
    credit = CreditSettings("rank", {"low": 0.0, "high": 2.0}, "my_measures:surprise")  # over method=support
    logp_T = -torch.tensor([1.0, 2.0, 4.0, 5.0, 0.1, 0.1, 9.0, 9.0])  # means 1.5, 4.5 and 0.1: ranks 1, 2 and 0
    weighed = weigh_rollout(rollout, evidence_of(rollout, Stream(logp_T), credit), credit, step=1)
    assert weighed.weights_T.tolist() == pytest.approx([1.0, 1.0, 2.0, 2.0, 0.0, 0.0, 1.0, 1.0])
    save_traces(toy.sample_traces(2, seed=1), tmp_path / "t.jsonl")
    given = [f"traces={tmp_path / 't.jsonl'}", f"out={tmp_path / 'o.parquet'}", "measure=my_measures:surprise"]
    assert main(["select", *given]) == 0
    assert "2 traces" in capsys.readouterr().out
