"""The list of probes: long enough, each with a sentence, each with a control or the reason why there is none."""

import ast

import pytest

from ci_controller.probes.all import MODULES, PROBES
from ci_controller.probes.attempt import sentence
from ci_controller.probes.report import files
from tests.sandbox.controls import CONTROLS, HARMFUL, NoControl, Without

DANGEROUS = {"load_module", "load_other_kernel", "reboot", "use_swap_file", "set_clock", "trigger_sysrq"}


def test_the_list_does_not_shrink() -> None:
    assert len(PROBES) >= 89


def test_each_probe_has_a_control_or_a_reason() -> None:
    assert set(CONTROLS) == set(PROBES)
    assert all(control.because for control in CONTROLS.values() if isinstance(control, NoControl))


def test_most_probes_are_shown_to_succeed_without_our_protection() -> None:
    assert sum(isinstance(control, Without) for control in CONTROLS.values()) >= 75


def test_what_would_harm_the_host_is_never_run_unprotected() -> None:
    assert {name for name, control in CONTROLS.items() if control is HARMFUL} == DANGEROUS


@pytest.mark.parametrize("name", PROBES)
def test_each_probe_says_what_it_tries(name: str) -> None:
    assert sentence(name).endswith((".", ").")) or ":" in sentence(name)


def test_what_goes_into_the_container_is_the_whole_program_and_old_python_reads_it() -> None:
    sent = files()
    assert {f"ci_controller/probes/{module.__name__.rpartition('.')[2]}.py" for module in MODULES} < set(sent)
    for path, text in sent.items():
        ast.parse(text, path, feature_version=(3, 8))
