"""Evaluation protocols: from files, from names, and with parameters overridden."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kwbench.attacks import build_attack
from kwbench.config.suite import Suite, SuiteAttack, override, read_suite, suite_names, suite_of
from kwbench.data import dataset_names
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.model import Model
from kwbench.threat import ThreatModel


def written(folder: Path, text: str) -> Suite:
    file = folder / "mine.yaml"
    file.write_text(text)
    return read_suite(str(file))


def parameters(suite: Suite) -> dict[str, dict[str, Any]]:
    return {attack.label: attack.parameters for attack in suite.attacks}


@pytest.fixture(scope="module")
def surrogate() -> Model:
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), name="stub", classes=10, shape=(1, 8, 8))


@pytest.mark.parametrize("name", suite_names())
def test_every_shipped_suite_is_well_formed_and_all_its_attacks_can_be_built(name: str, surrogate: Model) -> None:
    whole = read_suite(name)
    assert whole.name == name
    assert whole.description
    assert set(whole.datasets) <= set(dataset_names())
    for suite in (whole, *whole.datasets.values()):
        for attack in suite.attacks:
            built = build_attack(attack.attack, attack.parameters, lambda _: surrogate)
            assert built.norms
        for stochastic in (False, True):
            assert any(attack.applies(stochastic) for attack in suite.attacks)


def test_the_suite_all_holds_every_attack_that_the_card_names() -> None:
    attacks = {attack.attack for attack in read_suite("all").attacks}
    assert {"fgsm", "pgd", "mim", "deepfool", "cw", "square", "transfer", "autoattack", "gaussian-noise"} <= attacks
    assert suite_of(["all"]) == read_suite("all")


def test_a_suite_file_sets_every_part_of_a_protocol(tmp_path: Path) -> None:
    suite = written(
        tmp_path,
        """
        description: Mine.
        threat: {norm: linf, eps: 8/255}
        paper_attacks: [pgd]
        attacks:
          pgd: {steps: 7, gradient: {kind: eot, draws: 3}}
          strong: {attack: pgd, when: deterministic, steps: 100}
          drawn: {attack: pgd, when: stochastic}
        """,
    )
    assert suite.name == "mine"
    assert suite.threat == ThreatModel.of("linf", "8/255")
    assert suite.paper_attacks == ("pgd",)
    assert suite.attacks[0] == SuiteAttack("pgd", "pgd", "always", {"steps": 7, "gradient": {"kind": "eot", "draws": 3}})
    assert (suite.attacks[1].attack, suite.attacks[1].parameters) == ("pgd", {"steps": 100})
    assert [attack.label for attack in suite.attacks if attack.applies(False)] == ["pgd", "strong"]
    assert [attack.label for attack in suite.attacks if attack.applies(True)] == ["pgd", "drawn"]


PER_DATA_SET = """
description: Mine.
threat: {norm: linf, eps: 0.1}
paper_attacks: [pgd]
attacks: {pgd: {steps: 7}, fgsm: {}}
datasets:
  svhn: {threat: {norm: linf, eps: 0.047}}
  mnist: {n: 5, paper_attacks: [pgd-20], attacks: {pgd-20: {attack: pgd, steps: 20}}}
  cifar10: {attacks: {pgd: {steps: 9}}}
"""


def test_a_suite_may_define_another_protocol_for_some_data_sets(tmp_path: Path) -> None:
    suite = written(tmp_path, PER_DATA_SET)
    elsewhere, svhn, mnist, cifar10 = (suite.on(name) for name in ("digits", "svhn", "mnist", "cifar10"))
    assert elsewhere == written(tmp_path, PER_DATA_SET.partition("datasets:")[0])
    assert svhn == replace(elsewhere, threat=ThreatModel.of("linf", "0.047"))
    assert (mnist.n, mnist.threat, mnist.paper_attacks) == (5, elsewhere.threat, ("pgd-20",))
    assert parameters(mnist) == {"pgd-20": {"steps": 20}}
    # Other attacks do not count as the paper's unless the suite lists them.
    assert (cifar10.paper_attacks, parameters(cifar10)) == (None, {"pgd": {"steps": 9}})
    assert {suite.name for suite in (elsewhere, svhn, mnist, cifar10)} == {"mine"}


def test_settings_apply_on_every_data_set_that_has_the_attack(tmp_path: Path) -> None:
    suite = override(written(tmp_path, PER_DATA_SET), ["pgd.steps=3"])
    assert [parameters(suite.on(name)) for name in ("digits", "mnist", "cifar10")] == [
        {"pgd": {"steps": 3}, "fgsm": {}},
        {"pgd-20": {"steps": 20}},
        {"pgd": {"steps": 3}},
    ]
    assert suite.on("svhn").name == suite.name == "mine with pgd.steps=3"
    assert parameters(override(suite, ["pgd-20.steps=4"]).on("mnist")) == {"pgd-20": {"steps": 4}}


def test_a_suite_without_a_threat_or_a_paper_leaves_both_open(tmp_path: Path) -> None:
    suite = written(tmp_path, "attacks: {pgd: {}}\n")
    assert (suite.threat, suite.paper_attacks) == (None, None)
    assert written(tmp_path, "paper_attacks: []\nattacks: {pgd: {}}\n").paper_attacks == ()


def test_a_cascade_has_conditions_and_escalations(tmp_path: Path) -> None:
    suite = written(
        tmp_path,
        """
        cascade: true
        protocol: [pgd]
        attacks:
          pgd: {}
          drawn: {attack: pgd, when: stochastic, escalate: 1}
          es: {attack: pgd, after: pgd, escalate: 2, steps: 3}
          last: {attack: square, after: [drawn, es]}
        """,
    )
    assert (suite.cascade, suite.protocol, suite.by_name) == (True, ("pgd",), False)
    stages = [(stage.label, stage.doubled, stage.after) for stage in suite.stages(stochastic=False)]
    assert stages == [
        ("pgd", 0, ()),
        ("es", 0, ("pgd",)),
        ("es x2", 1, ("es",)),
        ("es x4", 2, ("es x2",)),
        ("last", 0, ("drawn", "es")),
    ]
    assert [stage.label for stage in suite.stages(stochastic=True)][:3] == ["pgd", "drawn", "drawn x2"]
    # A parameter that is set applies to the escalations too.
    assert {stage.attack.parameters.get("steps") for stage in override(suite, ["es.steps=9"]).stages(False)[1:4]} == {9}


CASCADE = "cascade: true\ndiagnose: true\nprotocol: [mim]\nattacks: {mim: {}, es: {attack: pgd, escalate: 1, after: mim}}\n"


def test_a_suite_may_be_followed_by_a_cascade_on_its_robust_samples(tmp_path: Path) -> None:
    (tmp_path / "cascade.yaml").write_text(CASCADE)
    suite = written(tmp_path, f"then: {tmp_path / 'cascade.yaml'}\nattacks: {{pgd: {{}}, fgsm: {{}}}}\n")
    stages = suite.stages(stochastic=False)
    assert [stage.label for stage in stages] == ["pgd", "fgsm", "mim", "es", "es x2"]
    # Its protocol attacks every sample.
    assert [stage.label for stage in stages if stage.cascade] == ["es", "es x2"]
    assert (suite.cascade, suite.protocol, suite.diagnose) == (False, ("mim",), True)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("attacks: {mim: {}}", "attacks.mim: 'cascade' has an attack of this label"),
        ("attacks: {es x2: {attack: pgd}}", "attacks.es x2: 'cascade' has an attack of this label"),
        ("cascade: true\nattacks: {pgd: {}}", "then: a suite without cascade and protocol"),
        ("protocol: [pgd]\nattacks: {pgd: {}}", "then: a suite without cascade and protocol"),
    ],
)
def test_suites_that_cannot_precede_a_cascade_are_refused(tmp_path: Path, own: str, message: str) -> None:
    (tmp_path / "cascade.yaml").write_text(CASCADE)
    with pytest.raises(UsageError, match=message):
        written(tmp_path, f"then: {tmp_path / 'cascade.yaml'}\n{own}\n")


def test_a_protocol_outside_a_cascade_may_stand_anywhere(tmp_path: Path) -> None:
    assert written(tmp_path, "protocol: [pgd]\nattacks: {fgsm: {}, pgd: {escalate: 1}}\n").protocol == ("pgd",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attacks: {}\n", "attacks: there is none"),
        ("description: x\n", "attacks: Field required"),
        ("attacks: {pgd: {}}\nthread: {}\n", "unknown key 'thread'; did you mean 'threat'"),
        ("attacks: {pgd: {}, pgd: {}}\n", "duplicate key"),
        ("attacks: {pgd: {when: sometimes}}\n", "attacks.pgd.when"),
        ("attacks: {pgd: {attack: 3}}\n", "attacks.pgd.attack"),
        ("attacks:\n  pgd:\n", "attacks.pgd: must be a mapping of keys to values"),
        ("attacks: [pgd]\n", "attacks: must be a mapping"),
        ("attacks: {clean: {attack: pgd}}\n", "'clean' is the name of the images themselves"),
        ("attacks: {pgd: {}}\npaper_attacks: [pgb]\n", "paper_attacks: 'pgb' is not among the attacks; did you mean 'pgd'"),
        ("attacks: {pgd: {after: fgsm}, fgsm: {}}\n", "pgd.after: 'fgsm' is not among .* before it; must come before 'pgd'"),
        ("attacks: {pgd: {after: pgd}}\n", "attacks.pgd.after: 'pgd' is not among the attacks before it"),
        ("attacks: {pgd: {}, fgsm: {after: [pgb]}}\n", "attacks.fgsm.after: 'pgb' .*; did you mean 'pgd'"),
        ("attacks: {pgd: {escalate: -1}}\n", "attacks.pgd.escalate"),
        ("attacks: {pgd: {escalate: 11}}\n", "attacks.pgd.escalate"),
        ("attacks: {pgd: {escalate: true}}\n", "attacks.pgd.escalate"),
        ("cascade: true\nattacks: {pgd: {escalate: 1, screen: 0}}\n", "attacks.pgd.screen"),
        ("attacks: {pgd: {escalate: 1, screen: 8}}\n", "attacks.pgd.screen: is for the attacks of a cascade"),
        ("cascade: true\nprotocol: [pgd]\nattacks: {pgd: {screen: 8}}\n", "without escalation or screen, to see"),
        ("attacks: {pgd: {escalate: 1}, pgd x2: {attack: pgd}}\n", "attacks.pgd x2: 'pgd' escalates to this label"),
        ("attacks: {pgd: {}}\nprotocol: [pgb]\n", "protocol: 'pgb' is not among the attacks; did you mean 'pgd'"),
        ("cascade: true\nprotocol: [pgd]\nattacks: {fgsm: {}, pgd: {}}\n", "protocol: in a cascade .*'fgsm' is in the way"),
        ("cascade: true\nprotocol: [pgd]\nattacks: {pgd: {escalate: 1}}\n", "protocol: in a cascade .*'pgd' is in the way"),
        ("cascade: 1\nattacks: {pgd: {}}\n", "cascade"),
        ("attacks: {pgd: {}}\nthreat: {norm: linf, eps: 8}\n", "eps: 8 exceeds 1"),
        ("attacks: {pgd: {}}\nthreat: {norm: l3, eps: 8}\n", "norm: 'l3' is unknown"),
        ("attacks: {pgd: {}}\nthreat: {norm: linf}\n", "threat.eps: Field required"),
        ("attacks: {pgd: {}}\nthreat: {norm: linf, eps: 0.1, esp: 1}\n", "'threat.esp'; did you mean 'eps'"),
        ("attacks: {pgd: {step_size: .nan}}\n", "attacks.pgd.step_size: must be a finite number"),
        ("attacks: {pgd: {}}\nn: 0\n", "n: Input should be greater"),
        ("attacks: {pgd: {}}\ndatasets: {mnist: {eps: 1}}\n", "unknown key 'datasets.mnist.eps'"),
        ("attacks: {pgd: {}}\ndatasets: {MNIST: {n: 1}}\n", "datasets.MNIST: names match"),
        ("attacks: {pgd: {}}\ndatasets: {mnist: {attacks: {}}}\n", "datasets.mnist: attacks: there is none"),
        ("attacks: {pgd: {}}\ndatasets: {mnist: {paper_attacks: [pgb]}}\n", "datasets.mnist: paper_attacks: 'pgb' is not"),
    ],
)
def test_malformed_suites_are_refused_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        written(tmp_path, text)


def test_unknown_and_missing_suites_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suite 'controlls' is unknown; did you mean 'controls'"):
        read_suite("controlls")
    with pytest.raises(CannotEvaluate, match=r"none\.yaml: cannot be read"):
        read_suite(str(tmp_path / "none.yaml"))


def test_names_make_a_suite_of_defaults() -> None:
    suite = suite_of(["fgsm", "foolbox:LinfPGD"])
    assert suite.name == "fgsm+foolbox:LinfPGD"
    assert suite.by_name
    assert suite.attacks == (SuiteAttack("fgsm", "fgsm"), SuiteAttack("foolbox:LinfPGD", "foolbox:LinfPGD"))
    for names, message in (([], "names no attack"), (["pgd", "pgd"], "named twice"), (["clean"], "the images themselves")):
        with pytest.raises(UsageError, match=message):
            suite_of(names)


def test_settings_override_one_parameter_each_and_leave_the_suite_itself_alone() -> None:
    suite = Suite("mine", (SuiteAttack("pgd", "pgd", parameters={"steps": 3, "gradient": {"kind": "eot", "draws": 2}}),))
    changed = override(suite, ["pgd.steps=7", "pgd.gradient.draws=9", "pgd.step_size=2/255", "pgd.random_start=false"])
    assert parameters(changed) == {
        "pgd": {"steps": 7, "gradient": {"kind": "eot", "draws": 9}, "step_size": "2/255", "random_start": False}
    }
    assert parameters(suite) == {"pgd": {"steps": 3, "gradient": {"kind": "eot", "draws": 2}}}
    assert changed.name == "mine with pgd.steps=7, pgd.gradient.draws=9, pgd.step_size=2/255, pgd.random_start=false"
    assert override(suite, []) == suite


def test_a_nested_parameter_can_be_set_where_there_was_none() -> None:
    changed = override(suite_of(["pgd"]), ["pgd.gradient.kind=eot", "pgd.gradient.draws=4"])
    attack: Any = build_attack("pgd", changed.attacks[0].parameters)
    assert attack.gradient.draws == 4


def test_labels_may_hold_dots() -> None:
    suite = Suite("mine", (SuiteAttack("pgd", "pgd"), SuiteAttack("pgd.1", "pgd"), SuiteAttack("pgd-0.1", "pgd")))
    assert parameters(override(suite, ["pgd-0.1.steps=5", "pgd.1.steps=6", "pgd.steps=7"])) == {
        "pgd": {"steps": 7},
        "pgd.1": {"steps": 6},
        "pgd-0.1": {"steps": 5},
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pgd", "write LABEL.PARAMETER=VALUE"),
        ("pgd=3", "write LABEL.PARAMETER=VALUE"),
        ("pgd.=3", "write LABEL.PARAMETER=VALUE"),
        ("pgd..x=3", "write LABEL.PARAMETER=VALUE"),
        (".steps=3", "write LABEL.PARAMETER=VALUE"),
        ("pgd.steps", "write LABEL.PARAMETER=VALUE"),
        ("pdg.steps=3", "no attack 'pdg'; did you mean 'pgd'"),
        ("pgd.steps.inner=3", "'steps' is 5 and has no parts"),
        ("pgd.steps=[1", "--set pgd.steps="),
        ("pgd.steps=.nan", "must be a finite number"),
        ("pgd.steps=!!int 3", "tags are not allowed"),
        ("pgd.steps=2001-01-01", "would be read as a date"),
    ],
)
def test_malformed_settings_are_refused(setting: str, message: str) -> None:
    suite = Suite("mine", (SuiteAttack("pgd", "pgd", parameters={"steps": 5}),))
    with pytest.raises(UsageError, match=message):
        override(suite, [setting])


def test_unknown_attack_parameters_in_a_suite_are_refused_when_the_attack_is_built() -> None:
    with pytest.raises(UsageError, match="'pgd' has no parameter 'stepz'; did you mean 'steps'"):
        build_attack("pgd", {"stepz": 3})


def test_a_stub_surrogate_returns_logits(surrogate: Model) -> None:
    assert surrogate(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
