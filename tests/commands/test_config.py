import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf, ReadonlyConfigError

from segrl.attribution import PAPER
from segrl.commands import schema
from segrl.commands.cli import COMMANDS, main
from segrl.commands.config import CONFIG_DIR, ON_VERL, OWN_GROUPS, ConfigError, compose
from segrl.credit.checks import check_supported
from segrl.launch import editable
from segrl.report.page import SETTINGS as SLIDERS

COMMANDS_DIR = Path(schema.__file__).parent
OWN = sorted({*COMMANDS} - {*ON_VERL})  # sft and grpo compose verl's config and are tested with it


@cache
def bare(command):
    return compose(command, [])


def functions_of(module):
    """The functions of a module of commands by name, and with them those that it imports from another such module."""
    tree = ast.parse((COMMANDS_DIR / f"{module}.py").read_text())
    functions = {node.name: (module, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        place = (node.module or "").rpartition(".") if isinstance(node, ast.ImportFrom) else ("", "", "")
        if place[0] == "segrl.commands":
            there = functions_of(place[2])
            functions |= {name.asname or name.name: there[name.name] for name in node.names if name.name in there}
    return functions


def read_by(command):
    """Every attribute and text in the command's function and in those that it calls."""
    module, _, function = COMMANDS[command][0].removeprefix("segrl.commands.").partition(":")
    reached, ahead, words = set(), [functions_of(module)[function]], set()
    while ahead:
        module, node = ahead.pop()
        reached.add((module, node.name))
        functions, words_here = functions_of(module), list(ast.walk(node))
        words |= {part.attr for part in words_here if isinstance(part, ast.Attribute)}
        words |= {part.value for part in words_here if isinstance(part, ast.Constant) and isinstance(part.value, str)}
        names = {part.id for part in words_here if isinstance(part, ast.Name)} & set(functions)
        ahead += [functions[name] for name in names if (functions[name][0], functions[name][1].name) not in reached]
    return words


@pytest.mark.parametrize("command", OWN)
def test_a_command_has_only_keys_that_it_reads(command):
    """``report`` reads four by a table of names; what the yaml refers to as ``${key}`` is read too."""
    read = read_by(command) | set(re.findall(r"\$\{(\w+)\}", OmegaConf.to_yaml(bare(command))))
    assert set(bare(command)) - read == (set(SLIDERS) - read if command == "report" else set())


def test_what_samples_takes_the_models_own_dtype_and_what_attributes_float32():
    dtypes = {command: bare(command).dtype for command in OWN if "dtype" in bare(command)}
    sampling = {"generate", "harvest", "evaluate", "analyze"}
    assert dtypes == {command: "auto" if command in sampling else "float32" for command in dtypes}
    assert sampling <= set(dtypes)


def test_doctor_has_no_key_and_compare_three():
    assert list(bare("doctor")) == []
    assert list(bare("compare")) == ["a", "b", "out"]


@pytest.mark.parametrize(("command", "key"), [("doctor", "out"), ("compare", "model_path"), ("segment", "device")])
def test_a_key_that_the_command_does_not_read_is_refused(command, key):
    with pytest.raises(ConfigError, match=f"^there is no key '{key}'"):
        compose(command, [f"{key}=x"])


@pytest.mark.parametrize("command", OWN)
def test_no_value_is_left_missing(command):
    def missing(node, path=""):
        for key in node:
            if OmegaConf.is_missing(node, key):
                yield f"{path}{key}"
            elif OmegaConf.is_config(node[key]) and OmegaConf.is_dict(node[key]):
                yield from missing(node[key], f"{path}{key}.")

    assert list(missing(bare(command))) == []


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIG_DIR)))
def test_every_yaml_is_loaded(path):
    """A command's yaml composes by itself, a group's yaml in a command that has the group."""
    if set(ON_VERL) & set(path.relative_to(CONFIG_DIR).with_suffix("").parts):
        pytest.importorskip("verl")
    assert isinstance(yaml.safe_load(path.read_text()), dict)
    group, name = path.parent.name, path.stem
    if path.parent == CONFIG_DIR:
        assert bare(name) is not None
    elif group in OWN_GROUPS:
        assert compose(path.parent.parent.name, [f"{group}={name}"])
    else:
        homes = [command for command in COMMANDS if group in yaml_defaults(command)]
        assert homes, f"no command uses the group {group}"
        for command in homes if name != "default" else homes[:1]:  # each composes with its defaults above
            assert compose(command, [f"{group}={name}"])


def yaml_defaults(command):
    """The groups in a command's defaults list."""
    path = CONFIG_DIR / f"{command}.yaml"
    defaults = yaml.safe_load(path.read_text()).get("defaults", []) if path.exists() else []
    return {key.removeprefix("optional ") for entry in defaults if isinstance(entry, dict) for key in entry}


def test_every_command_has_its_yaml_and_every_yaml_its_command():
    assert {path.stem for path in CONFIG_DIR.glob("*.yaml")} == set(COMMANDS)


def test_group_names_are_not_verls():
    verls = {"actor", "algorithm", "critic", "data", "distillation", "engine", "model", "model_engine", "optim"}
    verls |= {"profiler", "ref", "reward", "rollout", "transfer_queue"}
    assert not verls & {path.name for path in CONFIG_DIR.rglob("*") if path.is_dir()}


def test_a_typo_names_its_neighbour_and_a_wrong_type_the_key():
    with pytest.raises(ConfigError, match=r"no key 'selection.tua', did you mean 'tau'\?"):
        compose("select", ["selection.tua=1"])
    with pytest.raises(ConfigError, match=r"selection.tau: Value 'high' of type 'str' could not be converted to Float"):
        compose("select", ["selection.tau=high"])
    with pytest.raises(ConfigError, match=r"no key 'modelpath', did you mean 'model_path'\?"):
        compose("select", ["modelpath=x"])
    with pytest.raises(ConfigError, match="there is no selection=nothing, expected one of authors"):
        compose("select", ["selection=nothing"])


def test_presets_and_values_reach_the_config():
    config = compose("select", ["selection=authors", "attribution=authors", "selection.tau=0.5"])
    assert list(config.selection.force) == [0, -2, -1]
    assert config.selection.tau == 0.5
    assert config.attribution.compat == "authors"


def on_path(section) -> dict:
    return {name: section[name] for name in PAPER}


def test_the_papers_path_is_that_of_the_paper():
    """The file, the constant of the library, the recipes of the paper, and its analysis."""
    for command in ("attribute", "select"):
        assert on_path(compose(command, ["attribution=paper"]).attribution) == PAPER
    assert on_path(compose("attribute", ["attribution=authors"]).attribution) == PAPER
    analysis = compose("analyze", [])
    assert (analysis.measure, on_path(analysis.attribution)) == ("ig", PAPER)


@pytest.mark.e2e
def test_the_papers_recipes_take_the_papers_measure_and_the_others_the_best():
    gate = {"path": "values", "output": "log_odds", "nodes": 1, "tolerance": None}
    for path in sorted((CONFIG_DIR / "sft" / "preset").glob("*.yaml")):
        config, measured = compose("sft", [f"preset={path.stem}"]), path.stem != "toy_cpu"
        expected = ("ig", PAPER) if measured else ("first_and_last", gate)
        assert (config.measure, on_path(config.attribution)) == expected, path.stem
        assert config.segrl.normalise == "trace"  # Eq. 9
    assert (compose("select", []).measure, on_path(compose("select", []).attribution)) == ("first_and_last", gate)


def test_harvest_samples_as_the_paper_did_by_one_preset():
    config = compose("harvest", ["preset=paper"])
    sampling = config.generation
    assert (sampling.n, sampling.temperature, sampling.max_tokens, config.keep) == (32, 0.6, 32_768, "correct")
    assert compose("harvest", ["preset=paper", "keep=both"]).keep == "both"


def test_a_free_mapping_takes_any_key_and_no_other_does():
    more = ["measure_options={a: 1}", "segmentation.options.pattern=x", "+segmentation.options.crlf=true"]
    config = compose("select", more)
    assert (config.measure_options, config.segmentation.options) == ({"a": 1}, {"pattern": "x", "crlf": True})
    with pytest.raises(ConfigError, match=r"there is no key 'selection.options'"):
        compose("select", ["selection.options={a: 1}"])


def test_a_composed_config_is_frozen():
    with pytest.raises(ReadonlyConfigError):
        compose("select", []).limit = 3


# --- the command line ------------------------------------------------------------------------------------------------


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in COMMANDS)
    assert len(shown.splitlines()) < 40
    assert main(["help", "compare"]) == 0
    assert capsys.readouterr().out.startswith("segrl compare: ")


def test_a_commands_config(capsys):
    assert main(["select", "selection.tau=0.6", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["selection"]["tau"] == 0.6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["selct"], "no command is called 'selct', did you mean 'select'?"),
        (["select", "selection.tua=1"], "no key 'selection.tua', did you mean 'tau'?"),
        (["select", "--verbose"], "unknown flag '--verbose', expected one of --cfg, --help"),
        (["select", "--help", "selektion"], "--help has nothing on 'selektion', did you mean 'selection'?"),
        (["select", "--help", "x"], "on 'x', expected one of attribution, evidence, segmentation, selection"),
        (["select", "traces"], "'traces' is no key=value; `segrl select --help` lists the keys"),
        (["select"], "traces and out must be given, like traces=..."),
        (["select", "out=x"], "traces must be given, like traces=..."),
        (["select", "out=x.jsonl", "traces=nowhere.jsonl", "measure=length"], "nowhere.jsonl"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []


def test_help_starts_without_torch():
    code = "from segrl.commands.cli import main; main(['--help']); main(['evaluate', '--help']); "
    code = f"import sys; {code} sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_the_module_runs_as_the_command():
    run = subprocess.run([sys.executable, "-m", "segrl", "selct"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert "did you mean 'select'" in run.stderr


def test_a_key_beside_verls_is_known():
    pytest.importorskip("verl")
    assert compose("grpo", ["segrl.rule_options.low=0.5"]).segrl.rule_options == {"low": 0.5, "high": 2.0}
    with pytest.raises(ConfigError, match=r"no key 'segrl.mesure', did you mean 'measure'\?"):
        compose("grpo", ["segrl.mesure=x"])
    with pytest.raises(ConfigError, match=r"no key 'segrl\.foo'; `segrl grpo --help segrl` lists those there are"):
        compose("grpo", ["segrl.foo=x"])


def test_a_rule_of_ones_own_has_nothing_of_the_default_method():
    pytest.importorskip("verl")

    def weighing(*typed):
        section = compose("grpo", list(typed)).segrl
        return section.rule, section.measure, section.rule_options

    support = ("rank", "support", {"low": 0.0, "high": 2.0})
    assert weighing() == weighing("method=support") == support
    assert weighing("segrl.measure=entropy") == ("rank", "entropy", support[2])
    assert weighing("segrl.rule=top") == ("top", "contribution", {})
    assert weighing("segrl.rule=uniform") == weighing("method=uniform") == ("uniform", "contribution", {})
    assert weighing("segrl.rule=linear", "method=support") == ("linear", "support", support[2])


def test_a_misspelt_method_names_its_neighbour():
    pytest.importorskip("verl")
    with pytest.raises(ConfigError, match="there is no method=grial, did you mean 'grail'"):
        compose("grpo", ["method=grial", "out=here"])
    with pytest.raises(ConfigError, match="there is no method=null, expected one of"):
        compose("grpo", ["method=null", "out=here"])


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "grpo" / "method").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_method_can_be_followed(path):
    """Its options are those of its measures and its rule, and nothing in them is refused."""
    pytest.importorskip("verl")
    config = compose("grpo", ["preset=toy_cpu", f"method={path.stem}"])
    assert check_supported(editable(config)).rule == config.segrl.rule


@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_a_misspelt_preset_names_its_neighbour(command):
    """Hydra leaves it out without a word, and the bundled model would be trained."""
    with pytest.raises(ConfigError, match="there is no preset=r1_distil_qwen_7b, did you mean 'r1_distill"):
        compose(command, ["preset=r1_distil_qwen_7b", "out=here"])


@pytest.mark.parametrize(
    ("command", "typed", "sentence"),
    [
        ("attribute", "attribution.rule=left", "attribution.rule= is now attribution.quadrature="),
        ("attribute", "+attribution.rule=left", "attribution.rule= is now attribution.quadrature="),
        ("export", "masking.weighting=rank", "masking.weighting= is now masking.rule="),
        ("export", "masking.weighting_options.low=0", "masking.weighting_options= is now masking.rule_options="),
        ("sft", "segrl.weighting=rank", "segrl.weighting= is now segrl.rule="),
        ("sft", "++segrl.weighting=rank", "segrl.weighting= is now segrl.rule="),
        ("grpo", "grpo_preset=toy_cpu", "grpo_preset= is now preset=toy_cpu"),
        ("grpo", "+grpo_preset=toy_cpu", "grpo_preset= is now preset=toy_cpu"),
        ("sft", "sft_preset=toy_cpu", "sft_preset= is now preset=toy_cpu"),
        ("evaluate", "evaluation=paper", "evaluation= is now preset=paper"),
        ("quickstart", "size=short", "size= is now preset=short"),
        ("quickstart", "grpo=method=grail", "grpo= is now for_grpo=method=grail"),
    ],
)
def test_a_former_name_is_refused_with_the_new_one(command, typed, sentence):
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        compose(command, [typed])
