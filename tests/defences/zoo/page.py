"""The page of the zoo, reports/defences.md, from the record."""

from collections.abc import Sequence
from dataclasses import dataclass

from defences.zoo.defence import EPS, Defence
from defences.zoo.registry import DEFENCES
from defences.zoo.sound import SOUND_MODELS, SoundModel
from kwbench.formatting import interval_text, markdown, percent
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import AttackSummary, Summary
from kwbench.verdict import Verdict, verdict_on_record

SECOND_OPINION = "second opinion"
USUAL, AUTOATTACK, ADAPTIVE = "usual", "autoattack", "adaptive"
# Points by which strong may be above the second opinion.
TOLERANCE = 2.0


def newest(store: Store, suite: str) -> dict[str, Summary]:
    """Return the newest complete evaluation on record of each model under a suite, by the model's name."""
    standing = [summary for summary in summaries(store) if summary.evaluation.spec.suite == suite and summary.complete]
    return {summary.model: summary for summary in sorted(standing, key=lambda summary: summary.evaluation.recency)}


@dataclass(frozen=True)
class Row:
    """The two evaluations of a defence or sound model."""

    entry: Defence | SoundModel
    opinion: Summary
    strong: Summary

    def accuracy(self, label: str) -> float | None:
        """Return the accuracy in percent under the attack of the second opinion whose label begins like this; None without."""
        attack: AttackSummary | None = next((one for one in self.opinion.attacks if one.name.startswith(label)), None)
        if attack is None:
            return None
        assert attack.accuracy is not None, f"{self.entry.name}: {attack.name} is incomplete"
        return 100 * attack.accuracy.value

    @property
    def second(self) -> float:
        """The lower of AutoAttack, where it was run, and the adaptive attack, in percent."""
        return min(accuracy for accuracy in map(self.accuracy, (AUTOATTACK, ADAPTIVE)) if accuracy is not None)

    @property
    def a_rob(self) -> float:
        """Strong's robust accuracy in percent."""
        assert self.strong.a_rob is not None, f"{self.entry.name}: {self.strong.missing}"
        return 100 * self.strong.a_rob.value

    @property
    def difference(self) -> float:
        """Points by which strong is above the second opinion, to a tenth."""
        return round(self.a_rob - self.second, 1)

    @property
    def within(self) -> bool:
        """Whether strong is at most two points above the second opinion."""
        return self.difference <= TOLERANCE

    @property
    def verdict(self) -> Verdict:
        """The verdict of strong."""
        verdict = verdict_on_record(self.strong)
        assert verdict is not None, f"{self.entry.name}: not diagnosed"
        return verdict

    @property
    def seconds(self) -> float:
        """Seconds of strong's attacks."""
        return sum(attack.seconds for attack in self.strong.attacks)

    @property
    def fixed_before(self) -> bool:
        """Whether the second opinion was on record before strong was asked for."""
        return self.opinion.evaluation.id < self.strong.evaluation.id


def rows(store: Store, entries: Sequence[Defence | SoundModel]) -> list[Row]:
    """Return the entries that are on record, in their order."""
    opinions, strong = newest(store, SECOND_OPINION), newest(store, "strong")
    on_record = [(entry, opinions.get(entry.name), strong.get(entry.name)) for entry in entries]
    return [Row(entry, one, two) for entry, one, two in on_record if one is not None and two is not None and two.findings]


def page(store: Store) -> str:
    """Return the page: the tally, the defences, and the sound models."""
    broken, sound = rows(store, DEFENCES), rows(store, SOUND_MODELS)
    parts = [
        "# Broken defences\n",
        "Made by `make defences`. Each defence is a short re-implementation on the digits (8 x 8 pixels), attacked in linf "
        f"{EPS}. Robust accuracies in percent; `strong` with its 95 % interval. The second opinion is the lower of AutoAttack "
        "(rand for random models; Square alone where the gradient is zero or reaches no pixel) and of the attack written for "
        "the defence, on the same network and the same images. It is on record before `strong` starts.\n",
        *tally(broken, sound),
        "## Defences\n",
        _table(_COLUMNS, [_cells(row) for row in broken]),
        "## How they answer, and the attack written for them\n",
        _table(
            ("defence", "paper", "how it answers", "usual attack", "the attack written for it goes by"),
            [
                [_name(row), _paper(row.entry), row.entry.how, row.entry.usual.name, row.entry.adaptive]
                for row in broken
                if isinstance(row.entry, Defence)
            ],
        ),
        "## Sound models\n",
        "Their gradients lead where they seem to. The usual attack is PGD-40; the second opinion is an attack on the model "
        "itself. `overestimated` would be a false alarm. `inconclusive` is none, but says too little.\n",
        _table(
            (*_COLUMNS, "how it answers", "eps"), [[*_cells(row), row.entry.how, row.strong.threat.eps_text] for row in sound]
        ),
    ]
    return "\n".join(parts)


def tally(broken: Sequence[Row], sound: Sequence[Row]) -> list[str]:
    """Return the lines at the head of the page: defences found, false confirmations, false alarms."""
    within = [row for row in broken if row.within]
    missed = [row for row in broken if not row.within]
    confirmed = [row for row in missed if row.verdict.conclusion == "confirmed"]
    alarms = [row for row in sound if row.verdict.conclusion in ("overestimated", "degenerate")]
    unsure = [row for row in sound if row.verdict.conclusion == "inconclusive"]
    sizes = ", ".join(map(str, sorted({row.strong.n for row in (*broken, *sound)})))
    late = sum(not row.fixed_before for row in broken)
    lines = [
        f"- **{len(within)} of {len(broken)} defences**: `strong` is at most {TOLERANCE:.0f} points above the second opinion"
        f"{_listed(', not on', missed)}.",
        f"- **{len(confirmed)} false `confirmed`**{_listed(':', confirmed)}.",
        f"- **{len(alarms)} false alarms** on {len(sound)} sound models{_listed(':', alarms)}; "
        f"{len(unsure)} are inconclusive{_listed(':', unsure)}.",
        f"- n = {sizes} images. On {late} defences the second opinion was put on record after `strong`.\n",
    ]
    measured = {row.entry.name for row in (*broken, *sound)}
    names = [*(defence.name for defence in DEFENCES), *(model.name for model in SOUND_MODELS)]
    missing = [f"`{name}`" for name in names if name not in measured]
    return [*lines, *([f"{len(missing)} have not been measured yet: {', '.join(missing)}.\n"] if missing else [])]


def _listed(before: str, found: Sequence[Row]) -> str:
    return f"{before} {', '.join(_name(row) for row in found)}" if found else ""


_COLUMNS = ("model", "A_std", "usual", "AutoAttack", "adaptive", "second opinion", "strong", "difference", "verdict", "seconds")


def _cells(row: Row) -> list[str]:
    accuracies = [row.accuracy(label) for label in (USUAL, AUTOATTACK, ADAPTIVE)]
    return [
        _name(row) + (" (random)" if row.strong.stochastic else ""),
        "–" if row.strong.a_std is None else percent(row.strong.a_std.value, row.strong.n),
        *("–" if value is None else f"{value:.1f}" for value in (*accuracies, row.second)),
        f"**{interval_text(row.strong.a_rob, row.strong.n)}**",
        f"{row.difference:+.1f}" if row.within else f"**{row.difference:+.1f} missed**",
        row.verdict.conclusion,
        f"{row.seconds:.0f}",
    ]


def _name(row: Row) -> str:
    return f"`{row.entry.name}`"


def _paper(entry: Defence | SoundModel) -> str:
    if isinstance(entry, SoundModel):
        return "–"
    link = f", [{entry.arxiv}](https://arxiv.org/abs/{entry.arxiv})" if entry.arxiv else ""
    return markdown(entry.paper) + link


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    numbers = ("A_std", "usual", "AutoAttack", "adaptive", "second opinion", "strong", "difference", "seconds", "eps")
    head = [columns, ["--:" if column in numbers else ":--" for column in columns]]
    return "\n".join(f"| {' | '.join(line)} |" for line in (*head, *lines)) + "\n"
