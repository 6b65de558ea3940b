"""The revisions that identify an attack's outcomes cover every part of kwbench that makes its proposals."""

import pytest

from kwbench import relaxation
from kwbench.attacks import build_attack
from kwbench.attacks.apgd import Apgd
from kwbench.attacks.pgd import Pgd
from kwbench.gradients import Exact, Relaxed


def test_an_attack_names_its_own_revision_and_that_of_its_gradient_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pgd, "revision", 7)
    monkeypatch.setattr(Exact, "revision", 8)
    assert build_attack("pgd", {}).revisions() == {"attack": 7, "gradient": 8}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("pgd", {"gradient": {"kind": "relaxed"}}), ("local-search", {})],
)
def test_an_attack_on_relaxed_gradients_names_the_relaxation(
    name: str, parameters: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Relaxed, "revision", 8)
    monkeypatch.setattr(relaxation, "REVISION", 9)
    revisions = build_attack(name, parameters).revisions()
    assert (revisions["gradient"], revisions["relaxation"]) == (8, 9)


@pytest.mark.parametrize(("search", "kind"), [("pgd", Pgd), ("apgd", Apgd)])
def test_a_transfer_attack_names_the_search_on_its_surrogate(
    search: str, kind: type[Pgd | Apgd], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kwbench.attacks.transfer import Transfer

    monkeypatch.setattr(kind, "revision", 5)
    assert Transfer(search=search).revisions()["search"] == 5  # type: ignore[arg-type]
