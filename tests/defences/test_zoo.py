"""The zoo is what its report says: defences that classify, fall to the attack written for them, and are all on the page."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from defences.zoo.adaptive import adaptive_images, correct_share
from defences.zoo.defence import EPS, Defence
from defences.zoo.page import SECOND_OPINION, Row, page, rows, tally
from defences.zoo.registry import DEFENCES
from defences.zoo.run import REPORT, measure
from defences.zoo.sound import SOUND_MODELS, SoundModel
from kwbench.geometry import distance
from kwbench.randomness import seeded_globally
from kwbench.record.store import Store
from kwbench.statistics import Interval
from kwbench.threat import ThreatModel
from kwbench.verdict import verdict_on_record
from support.small_models import first_images, trained_cnn

THREAT = ThreatModel.of("linf", EPS)
BY_NAME: dict[str, Defence] = {defence.name: defence for defence in DEFENCES}


@pytest.mark.trial
@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)
def test_a_defence_classifies(defence: Defence) -> None:
    batch = first_images(64)
    with seeded_globally(0):
        right = correct_share(defence.factory(), batch.x, batch.y, draws=1 if defence.draws == 1 else 10)
    assert right.mean() >= defence.accuracy


def test_names_are_unique_and_papers_are_named() -> None:
    names = [*(defence.name for defence in DEFENCES), *(model.name for model in SOUND_MODELS)]
    assert len(set(names)) == len(names)
    assert len(DEFENCES) >= 30
    assert len(SOUND_MODELS) >= 12
    for defence in DEFENCES:
        assert re.fullmatch(r"(\d{4}\.\d{4,5})?", defence.arxiv), defence.name
        assert re.search(r"\d{4}", defence.paper), defence.name


def test_a_defence_always_gets_the_same_weights() -> None:
    factory = BY_NAME["merged_binary"].factory
    one = factory()
    torch.manual_seed(5)
    two = factory.__wrapped__()  # type: ignore[attr-defined]
    for first, second in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_adaptive_attack_stays_in_the_ball_and_breaks_a_network_that_hides_its_gradient() -> None:
    batch, defence = first_images(32), BY_NAME["rounded_features"]
    images = adaptive_images(defence.factory(), defence.substitute(), batch.x, batch.y, THREAT, steps=20)
    assert float(distance(batch.x, images, "linf").max()) <= THREAT.radius + 1e-6
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert correct_share(defence.factory(), images, batch.y, draws=1).mean() <= 1 / 32


def test_the_adaptive_attack_leaves_an_image_as_it_is_that_no_proposal_breaks() -> None:
    batch, nowhere = first_images(8), ThreatModel.of("linf", "0.0001")
    right = correct_share(trained_cnn(), batch.x, batch.y, draws=1)
    images = adaptive_images(trained_cnn(), trained_cnn(), batch.x, batch.y, nowhere, steps=10)
    assert right.all()
    torch.testing.assert_close(images, batch.x, rtol=0, atol=0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of one defence on eight images."""
    path = tmp_path_factory.mktemp("zoo") / "defences.db"
    store = Store.open(str(path), create=True)
    try:
        assert measure(ENTRIES, store, 8, path.with_suffix(".md")) == []
    finally:
        store.close()
    return path


ENTRIES = (BY_NAME["scaled_logits"],)


def _row(path: Path) -> Row:
    store = Store.open(str(path))
    try:
        (row,) = rows(store, ENTRIES)
    finally:
        store.close()
    return row


def test_an_evaluation_has_all_opinions_on_record_the_second_one_before_strong(measured: Path) -> None:
    row = _row(measured)
    assert row.fixed_before
    assert row.opinion.evaluation.spec.suite == SECOND_OPINION
    assert row.second == row.accuracy("autoattack") == row.accuracy("adaptive") == row.a_rob == 0
    assert row.within
    assert row.opinion.n == row.strong.n == 8
    assert row.verdict == verdict_on_record(row.strong)


def test_the_same_command_has_nothing_left_to_do(measured: Path) -> None:
    def evaluations() -> list[tuple[int, str]]:
        return [(evaluation.id, evaluation.asked) for evaluation in store.evaluations()]

    store = Store.open(str(measured))
    try:
        before = evaluations()
        assert measure(ENTRIES, store, 8, measured.with_suffix(".md")) == []
        assert evaluations() == before
    finally:
        store.close()


def test_the_page_shows_the_defence_and_what_is_missing(measured: Path) -> None:
    store = Store.open(str(measured))
    try:
        text = page(store)
    finally:
        store.close()
    assert text == measured.with_suffix(".md").read_text(encoding="utf-8")
    assert "**1 of 1 defences**" in text
    assert f"{len(DEFENCES) + len(SOUND_MODELS) - 1} have not been measured yet: " in text
    assert "| `scaled_logits` | 100.0 |" in text


def test_the_tally_names_misses_false_confirmations_and_false_alarms(measured: Path) -> None:
    row = _row(measured)
    assert row.verdict.conclusion == "confirmed"

    class Confirmed(Row):
        verdict = row.verdict

    # Strong leaves half of the images, which the second opinion breaks, and still confirms it.
    missed = Confirmed(row.entry, row.opinion, replace(row.strong, a_rob=Interval(0.5, 0.2, 0.8)))
    text = "\n".join(tally([row, missed], []))
    assert "**1 of 2 defences**" in text
    assert "not on `scaled_logits`" in text
    assert "**1 false `confirmed`**: `scaled_logits`" in text
    # Exact gradients leave all images of a sound model, of which strong leaves none.
    clean = row.strong.clean_values
    assert clean is not None
    alarmed = replace(row, entry=SOUND_MODELS[0], strong=replace(row.strong, protocol_values=clean, robust_values=0 * clean))
    assert alarmed.verdict.conclusion == "overestimated"
    assert "**1 false alarms** on 1 sound models: `natural`" in "\n".join(tally([row], [alarmed]))


def test_the_committed_report_knows_exactly_the_defences_and_models_of_the_zoo() -> None:
    text = REPORT.read_text(encoding="utf-8")
    head, broken, how, sound = re.split(r"^## .*$", text, flags=re.MULTILINE)
    measured = [re.findall(r"^\| `(\w+)`", part, flags=re.MULTILINE) for part in (broken, how, sound)]
    assert measured[0] == measured[1]
    missing = re.findall(r"`(\w+)`", head.partition("have not been measured yet:")[2])
    for names, entries in ((measured[0], DEFENCES), (measured[2], SOUND_MODELS)):
        known = [entry.name for entry in entries]
        assert names == [name for name in known if name not in missing]
    within = sum("missed" not in line for line in broken.splitlines() if line.startswith("| `"))
    assert f"**{within} of {len(measured[0])} defences**" in head


@pytest.mark.trial
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("entry", [*DEFENCES, *SOUND_MODELS], ids=lambda entry: entry.name)
def test_strong_finds_what_the_second_opinion_finds(entry: Defence | SoundModel, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "defences.db"), create=True)
    try:
        assert measure([entry], store, 128, tmp_path / "defences.md") == []
        (row,) = rows(store, [entry])
    finally:
        store.close()
    assert row.within, row.difference
    if isinstance(entry, SoundModel):
        assert row.verdict.conclusion not in ("overestimated", "degenerate"), row.verdict.sentence()
