import json
import os
import subprocess
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from segrl.commands import doctor
from segrl.commands.doctor import Check, render, requirements

INSTALLED = {"captum": "0.9.0", "torch": "2.13.0+cpu", "transformers": "5.17.0", "verl": "0.9.1"}
DECLARED = [
    "captum>=0.8",
    "torch>=2.11",
    "transformers>=5.5.3",
    'transformers<5.11,>=5.5.3; extra == "gpu"',
    'verl[vllm]==0.9.1; extra == "gpu"',
    'TransferQueue>=0.1.10; extra == "gpu"',
    'ruff; extra == "dev"',
]


@pytest.fixture
def world(monkeypatch):
    """What is installed, and what segrl declares."""

    def version(name):
        if name not in INSTALLED:
            raise metadata.PackageNotFoundError(name)
        return INSTALLED[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda _: DECLARED)


def cure(requirement: Requirement) -> str:
    return f"get {requirement.name}"


def test_the_core_is_what_is_declared_without_an_extra(world):
    segrl_itself, *packages = requirements("core", cure)
    assert segrl_itself.name == "segrl"
    assert packages == [
        Check("core", "captum", "0.9.0"),
        Check("core", "torch", "2.13.0+cpu"),
        Check("core", "transformers", "5.17.0"),
    ]


def test_a_missing_and_a_wrong_version_come_with_their_cure(world):
    wrong, fine, missing = requirements("verl", cure, extra="gpu")
    assert wrong == Check("verl", "transformers", "5.17.0, needs <5.11,>=5.5.3", False, "get transformers")
    assert fine == Check("verl", "verl", "0.9.1")
    assert missing == Check("verl", "TransferQueue", "missing", False, "get TransferQueue")


def test_segrl_that_is_not_installed_is_the_one_thing_to_mend(monkeypatch):
    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", not_found)
    [check] = requirements("core", cure)
    assert not check.ok
    assert check.cure.startswith("pip install --no-deps -e")
    assert requirements("dev", cure) == []


def test_a_missing_library_is_named():
    check = doctor.shared_library("verl", "libsegrl_of_nobody.so.1", "apt-get install nothing")
    assert (check.name, check.ok, check.cure) == ("libsegrl_of_nobody.so.1", False, "apt-get install nothing")


def test_render_says_of_each_part_whether_it_is_complete():
    text = render(
        [
            Check("machine", "cores", "2"),
            Check("core", "torch", "2.13.0"),
            Check("verl", "verl", "missing", False, "make install"),
        ]
    )
    assert "core: segment, attribute, select, grade, report -- complete" in text
    assert "verl: sft, grpo, generation with vLLM -- 1 to mend" in text
    assert "--  verl              missing   mend with: make install" in text


@pytest.mark.parametrize(("broken", "status"), [("core", 1), ("verl", 0), ("dev", 0)])
def test_only_an_incomplete_core_changes_the_exit_status(monkeypatch, capsys, broken, status):
    monkeypatch.setattr(doctor, "report", lambda: [Check(part, "x", "", part != broken) for part in doctor.PARTS])
    assert doctor.main() == status
    assert "1 to mend" in capsys.readouterr().out


def test_a_control_group_limits_cores_and_memory(monkeypatch):
    limits = {"cpu.max": "50000 100000", "memory.max": str(2**20)}
    monkeypatch.setattr(doctor, "_cgroup", limits.get)
    assert (doctor.cores(), doctor.memory()) == (0.5, 2**20)


def test_no_control_group_leaves_the_machine_as_it_is(monkeypatch):
    unlimited = {"cpu.max": "max 100000", "memory.max": "max"}
    monkeypatch.setattr(doctor, "_cgroup", unlimited.get)
    assert doctor.cores() == len(os.sched_getaffinity(0))
    assert doctor.memory() > 2**20


def answer(monkeypatch, said: dict) -> list[Check]:
    output = "a line that some import printed\n" + json.dumps(said) + "\n"
    done = subprocess.CompletedProcess([], 0, stdout=output)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    return doctor.ask_verl()


def test_a_plugin_that_verl_was_told_to_leave_out_is_named(monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    _, plugin = answer(monkeypatch, {"platform": "cpu", "by_verl": False, "trainer": "Trainer"})
    assert (plugin.ok, plugin.cure) == (False, "unset VERL_USE_EXTERNAL_PLUGINS")


def test_a_plugin_that_does_not_import_shows_its_error(monkeypatch):
    def fails(*_, **__):
        raise subprocess.CalledProcessError(1, [], stderr="Traceback ...\nImportError: no module named x\n")

    monkeypatch.setattr(subprocess, "run", fails)
    [plugin] = doctor.ask_verl()
    assert (plugin.ok, plugin.state) == (False, "ImportError: no module named x")


@pytest.mark.e2e
def test_verl_has_loaded_the_plugin():
    pytest.importorskip("transfer_queue")
    assert [check.name for check in doctor.ask_verl() if check.ok] == ["platform", "plugin"]


def test_flash_attention_comes_with_the_command_that_installs_it():
    check = doctor.flash_attention_here()
    assert check.name == "flash-attn"
    assert check.ok or check.cure == "pip install flash-attn --no-build-isolation"
