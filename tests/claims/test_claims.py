"""The papers' claims: each has its mapping, the lint finds what is wrong and nothing else, and the page says it."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kwbench.claims import PAPERS, Claim, ClaimComparison, compare_claims, full_size_registry, lint, map_claim, read_claims
from kwbench.claims.full_size import full_size_entries
from kwbench.claims.lint import (
    IMAGES,
    LARGEST_CLASS,
    above_standard,
    coarse_grid,
    largest_class,
    not_the_worst,
    off_the_grid,
    over_100,
    reach_of,
    short_of_eps,
    ten_times,
)
from kwbench.claims.mapping import PUBLISHED, protocol_of
from kwbench.config.registry import Registry, read_registry
from kwbench.config.suite import Suite, read_suite
from kwbench.errors import DamagedData, UsageError
from kwbench.networks.entries import build_module
from kwbench.record.store import Store
from kwbench.report import write_report
from kwbench.report.claims import claims_markdown, claims_table
from kwbench.report.data import ReportData
from kwbench.report.html.worst import worst_pictures
from kwbench.threat import ThreatModel
from papers.packed import unpack
from support.records import deterministic, drawn, record, rows, specification

REPORTS = Path(__file__).resolve().parents[2] / "reports"
CLAIMS = read_claims()
# What the record that is kept has for figures, by how the pictures' names begin.
FIGURES = (
    "answers-examples",
    "answers-probabilities",
    "fit",
    "gamma-xiao2020-figure4",
    "landscape-image",
    "landscape-map",
    "layers",
    "learning",
    "logits",
    "patterns",
    "sparsity",
    "sweep-eps",
    "sweep-pgd.steps",
    "transfer",
    "weights",
)
HEADER = Path(read_claims.__defaults__[0]).read_text(encoding="utf-8").splitlines()[0]  # type: ignore[index]
ROW = "xiao2020,1,CIFAR-10,ResNet-18,no,Natural,ReLU,PGD,linf,0.031,0.0,,,"


def claim(attack: str = "PGD", text: str = "50.0", **fields: str) -> Claim:
    threat = {"norm": "linf", "eps": "0.031"} if attack not in ("A_std", "clean") else {"norm": "", "eps": ""}
    whole = {
        "paper": "xiao2020",
        "table": "1",
        "dataset": "CIFAR-10",
        "architecture": "ResNet-18",
        "pretrained": "no",
        "training": "Natural",
        "activation": "ReLU",
        "quoted_from": "",
        "note": "",
        **threat,
        **fields,
    }
    return Claim(attack=attack, text=text, inferred=(), **whole)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The claims page on the record that is kept, beside the record."""
    folder = tmp_path_factory.mktemp("kept")
    unpack(REPORTS / "papers.db.xz", folder / "papers.db")
    measured = Store.open(str(folder / "papers.db"))
    write_report(measured, folder, {"claims"})
    measured.close()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


@cache
def suite_named(name: str) -> Suite:
    return read_suite(name)


def find(found: list[ClaimComparison], paper: str, table: str, **fields: str) -> list[ClaimComparison]:
    return [
        each
        for each in found
        if (each.claim.paper, each.claim.table) == (paper, table)
        and all(getattr(each.claim, name) == value for name, value in fields.items())
    ]


class TestTheData:
    def test_every_cell_of_the_four_papers_is_there(self) -> None:
        assert len(CLAIMS) == 435
        assert Counter(each.paper for each in CLAIMS) == {
            "xiao2020": 296,
            "costa2020": 72,
            "panousis2021": 35,
            "hicheur2024": 32,
        }

    def test_threat_models_are_exact_and_kept_apart(self) -> None:
        radii = Counter((each.dataset, str(each.threat)) for each in CLAIMS if each.threat is not None)
        assert set(radii) == {
            ("CIFAR-10", "linf 0.031"),
            ("CIFAR-10", "linf 8/255"),
            ("CIFAR-10", "linf 0.3"),
            ("SVHN", "linf 0.047"),
            ("MNIST", "linf 0.3"),
        }

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("paper,table", r"claims\.csv:1: the columns must be"),
            (f"{HEADER}\n{ROW},", "2: 15 columns where 14"),
            (f"{HEADER}\n{ROW}\n{ROW}", "3: the same cell as line 2"),
            (f"{HEADER}\n{ROW.replace('xiao2020', 'xiao')}", "2: paper: 'xiao' is none of"),
            (f"{HEADER}\n{ROW.replace('no', 'maybe')}", "2: pretrained: 'maybe' is none of"),
            (f"{HEADER}\n{ROW.replace('linf', 'l3')}", "2: norm: 'l3' is none of"),
            (f"{HEADER}\n{ROW.replace('linf', '')}", "2: norm: '' is none of"),
            (f"{HEADER}\n{ROW.replace('0.031', '-1')}", "2: eps: -1 is not positive"),
            (f"{HEADER}\n{ROW.replace(',0.0,', ',nan,')}", "2: accuracy_percent: 'nan' is not a decimal"),
            (f"{HEADER}\n{ROW.replace(',0.0,', ',-3.0,')}", "2: accuracy_percent: '-3.0' is not a decimal"),
            (f"{HEADER}\n{ROW.replace('ResNet-18', '')}", "2: architecture: is empty"),
            (f"{HEADER}\n{ROW.replace(',0.0,,,', ',0.0,,width,')}", "2: inferred: 'width' is no column"),
        ],
    )
    def test_damaged_claims_are_refused_by_line_and_column(self, tmp_path: Path, lines: str, message: str) -> None:
        (tmp_path / "claims.csv").write_text(f"{lines}\n")
        with pytest.raises(DamagedData, match=message):
            read_claims(tmp_path / "claims.csv")


class TestMapping:
    def test_every_cell_has_a_place_or_a_reason_why_it_has_none(self) -> None:
        for each in CLAIMS:
            mapping = map_claim(each)
            assert mapping.comparable == (mapping.model is not None or mapping.full_size is not None), each.name
            assert mapping.comparable == (mapping.protocol is not None), each.name
        without = Counter(map_claim(each).why_not.partition(",")[0] for each in CLAIMS if not map_claim(each).comparable)
        assert without == {
            "a number for other authors' networks": 11,
            "an aggregate of two norms above 100 %": 1,
        }

    def test_at_least_160_cells_can_be_measured_on_networks_that_come_with_kwbench(self) -> None:
        assert sum(map_claim(each).model is not None for each in CLAIMS) >= 160

    def test_every_cell_names_attacks_that_its_suite_has_at_the_cells_radius(self) -> None:
        for each in CLAIMS:
            protocol = protocol_of(each)
            assert protocol is not None, each.name
            dataset = {"CIFAR-10": "cifar10", "SVHN": "svhn", "MNIST": "mnist"}[each.dataset]
            suite = suite_named(protocol.suite).on(dataset)
            assert {attack.label for attack in suite.attacks} >= set(protocol.labels), each.name
            assert each.threat in (None, suite.threat), each.name
            if protocol.reading == "worst":
                assert suite.paper_attacks

    def test_the_networks_at_full_size_are_a_registry_with_recipes(self, tmp_path: Path) -> None:
        path = tmp_path / "papers.yaml"
        path.write_text(full_size_registry())
        own = read_registry(path).own
        named = {map_claim(each).full_size for each in CLAIMS} - {None}
        assert named <= own.keys()
        assert all(entry.recipe is not None and entry.checkpoint is None for entry in own.values())
        # What else there is are the sources of transfer attacks.
        assert {name.rpartition("-")[2] for name in own.keys() - named} <= {"copy", "cifar10/vgg19", "svhn/vgg19"}

    def test_weights_of_imagenet_see_pixels_as_they_were_trained_with_and_no_others_do(self) -> None:
        for name, entry in full_size_entries().items():
            assert (entry.normalise is not None) == (entry.recipe is not None and entry.recipe.pretrained is not None), name

    def test_each_of_them_can_be_built_and_answers(self) -> None:
        seen = set()
        for name, entry in full_size_entries().items():
            shape = (1, 28, 28) if name.startswith("mnist/") else (3, 32, 32)
            kind = (entry.architecture.model_dump_json(), entry.activation.name, shape)
            if kind not in seen:
                seen.add(kind)
                build_module(entry, shape, 10)
        assert len(seen) == 22

    def test_a_network_that_is_the_papers_own_differs_in_nothing(self) -> None:
        ours = [each for each in CLAIMS if map_claim(each).model is not None]
        same = {(each.paper, each.architecture, each.activation) for each in ours if map_claim(each).full_size is None}
        same -= {(each.paper, each.architecture, each.activation) for each in ours if map_claim(each).differs}
        assert same == {("panousis2021", "WideResNet-34-1", "stochastic LWTA")}


class TestLint:
    def test_it_finds_what_is_known_to_be_wrong_and_nothing_else(self) -> None:
        found = lint(CLAIMS)
        assert [(each.rule, len(each.claims)) for each in found] == [
            ("over 100", 1),
            ("not the worst", 1),
            ("not the worst", 1),
            ("above standard", 1),
            ("largest class", 2),
            ("coarse grid", 48),
            ("off the grid", 1),
            ("off the grid", 2),
            ("short of eps", 24),
            ("short of eps", 7),
            ("short of eps", 8),
            ("short of eps", 1),
            ("ten times", 0),
        ]
        assert {each.kind for each in found if each.rule in ("short of eps", "ten times", "largest class")} == {
            "could not have worked"
        }

    def test_an_accuracy_above_100_is_none(self) -> None:
        assert over_100([claim(text="100.0"), claim(text="99.9")]) == []
        (remark,) = over_100(CLAIMS)
        assert [(each.paper, each.text) for each in remark.claims] == [("hicheur2024", "114.6")]

    def test_a_worst_case_is_not_above_its_least(self) -> None:
        row = [claim("A_std", "90.0"), claim("PGD", "13.3"), claim("MIM", "13.1"), claim("BB", "5.0")]
        # BB is not among the attacks that it is the worst case of.
        assert not_the_worst([*row, claim("A_rob", "13.1")]) == []
        assert not_the_worst([*row, claim("A_rob", "13.1", activation="k-WTA-0.1")]) == []
        assert [each.claims[0].text for each in not_the_worst([*row, claim("A_rob", "13.2")])] == ["13.2"]
        assert [(each.claims[0].dataset, each.claims[0].text) for each in not_the_worst(CLAIMS)] == [
            ("CIFAR-10", "4.2"),
            ("SVHN", "40.8"),
        ]

    def test_an_attack_does_not_help(self) -> None:
        row = [claim("A_std", "60.0"), claim("PGD", "60.0")]
        assert above_standard(row, {}) == []
        assert [each.claims[0].text for each in above_standard([*row, claim("MIM", "60.1")], {})] == ["60.1"]
        # Of 1,000 images it may be luck: a standard error is a point and a half.
        assert above_standard([*row, claim("MIM", "66.1")], {"xiao2020": 1000}) == []
        assert [each.claims[0].text for each in above_standard([*row, claim("MIM", "66.3")], {"xiao2020": 1000})] == ["66.3"]
        # Noise is no attack: nobody searches.
        assert above_standard([*row, claim("rotation", "60.1", norm="", eps="")], {}) == []
        assert [each.claims[0].text for each in above_standard(CLAIMS, {})] == ["20.31", "20.94", "114.6"]
        assert [each.claims[0].text for each in above_standard(CLAIMS, IMAGES)] == ["114.6"]

    def test_the_share_of_the_largest_class_is_the_accuracy_of_one_answer(self) -> None:
        (remark,) = largest_class(CLAIMS, LARGEST_CLASS)
        assert [(each.paper, each.activation, each.text) for each in remark.claims] == [
            ("costa2020", "ReLU", "19.59"),
            ("costa2020", "k-WTA-0.1", "19.59"),
        ]
        assert largest_class([claim("A_std", "19.6", dataset="SVHN")], LARGEST_CLASS) != []
        assert largest_class([claim("A_std", "19.58", dataset="SVHN")], LARGEST_CLASS) == []
        assert largest_class([claim("PGD", "19.59", dataset="SVHN")], LARGEST_CLASS) == []

    def test_figures_on_a_coarser_grid_than_the_images_named(self) -> None:
        (remark,) = coarse_grid(CLAIMS, IMAGES)
        assert {each.paper for each in remark.claims} == {"costa2020"}
        assert "multiples of 1/320, though 1280 images" in remark.statement
        assert coarse_grid([claim(text="12.50"), claim("MIM", "0.08")], {"xiao2020": 1280}) == []
        assert coarse_grid([claim(text="0.0"), claim("MIM", "5.0")], {"xiao2020": 1280}) == []

    def test_figures_between_two_numbers_of_images(self) -> None:
        found = off_the_grid(CLAIMS, IMAGES)
        assert [[each.text for each in remark.claims] for remark in found] == [["59.12"], ["23.67", "53.28"]]
        # Where most are, nothing is known of the number of images.
        assert off_the_grid([claim(text="12.34"), claim("MIM", "12.35")], {"xiao2020": 10}) == []

    def test_steps_that_do_not_reach_the_border_of_the_ball(self) -> None:
        found = short_of_eps(CLAIMS)
        assert [(each.claims[0].paper, len(each.claims)) for each in found] == [
            ("costa2020", 24),
            ("hicheur2024", 7),
            ("hicheur2024", 8),
            ("hicheur2024", 1),
        ]
        assert "0.12 eps" in found[0].statement
        assert "0.1 eps" in found[1].statement
        # No eps bounds it; three steps of Adam lead nowhere near that of the other attacks.
        assert "C&W together move a pixel by 0.05 eps" in found[2].statement

    def test_the_reach_of_an_attack_is_steps_times_step_size(self) -> None:
        eps = Fraction("0.3")
        assert reach_of({"steps": 40, "relative_step_size": 0.003}, eps) == Fraction("0.036")
        assert reach_of({"steps": 3, "step_size": "1/100"}, eps) == Fraction("0.03")
        assert reach_of({"steps": 20, "candidates": 10}, eps) is None
        assert reach_of({"steps": 20, "step_size": 0.01, "binary_search_steps": 5, "norm": "l2"}, eps) == Fraction("0.1")
        assert reach_of({"steps": 20, "step_size": 0.01, "binary_search_steps": 5, "norm": "linf"}, eps) == Fraction("0.2")
        assert reach_of({}, eps) is None

    def test_a_point_that_slipped(self) -> None:
        radii = {"a": Fraction("0.031"), "b": Fraction("0.31"), "c": Fraction("0.3")}
        assert [each.statement for each in ten_times(radii)] == ["b has eps 0.31, ten times that of a"]


def evaluated(store: Store, model: str, suite: str, letters: dict[str, str], eps: str = "0.031", **options: object) -> None:
    deterministic(store, letters, model=model, suite=suite, eps=eps, dataset="cifar10", **options)


XIAO = {"clean": "hhhhhhhhhw", "pgd": "hhbbbbbbbw", "cw": "hhhhbbbbbw", "cw-linf": "hbbbbbbbbw", "deepfool": "hhhhhhbbbw"}
PAPER: dict[str, Any] = {"spec": {"paper_attacks": ["pgd", "cw", "deepfool", "mim"]}}


class TestTheRecord:
    def test_without_a_record_every_cell_says_what_would_measure_it(self) -> None:
        found = compare_claims(CLAIMS, None)
        assert len(found) == 435
        assert Counter(each.status for each in found) == {"runnable": 423, "not comparable": 12}
        for each in found:
            assert bool(each.commands) == (each.status == "runnable"), each.claim.name
            assert bool(each.hardware) == (each.status == "runnable")
        for each in find(found, "costa2020", "4"):
            assert each.commands[:2] == (
                "kwbench claims --registry papers.yaml",
                f"kwbench train {each.mapping.full_size} --registry papers.yaml --download --pin --device cuda",
            )
            assert each.hardware == "one GPU"

    def test_commands_name_models_and_suites_that_there_are(self, tmp_path: Path) -> None:
        (tmp_path / "papers.yaml").write_text(full_size_registry())
        known = read_registry(tmp_path / "papers.yaml").own
        pinned = {name for name, entry in read_registry().entries.items() if entry.checkpoint is not None}
        for each in compare_claims(CLAIMS, None):
            trained = [command for command in each.commands if command.startswith("kwbench train")]
            assert all(" --pin" in command for command in trained), "an evaluation takes pinned weights only"
            assert each.model in {*pinned, *(command.split()[2] for command in trained), ""}
            for command in each.commands:
                if suite := re.search(r"--suite (\S+)", command):
                    assert suite_named(suite.group(1)).attacks
                if named := re.match(r"kwbench (?:train|evaluate) (\S+) --registry", command):
                    assert named.group(1) in known
                for source in re.findall(r"surrogate=(\S+)", command):
                    assert source in known
                    assert f"kwbench train {source} --registry papers.yaml --download --pin --device cuda" in each.commands

    def test_a_claim_stands_beside_its_number_and_the_strong_suites_at_the_same_radius(self, store: Store) -> None:
        evaluated(store, "cifar10/resnet18-w16-relu", "xiao2020", XIAO | {"mim": "hhhbbbbbbw"}, **PAPER)
        evaluated(store, "cifar10/resnet18-w16-relu", "strong", {"clean": XIAO["clean"], "apgd": "bbbbbbbbbw"})
        evaluated(store, "cifar10/resnet18-w16-relu", "strong", {"clean": XIAO["clean"], "apgd": "hbbbbbbbbw"}, eps="8/255")
        found = {
            each.claim.attack: each for each in find(compare_claims(CLAIMS, store), "xiao2020", "1", training="Natural")
            if (each.claim.dataset, each.claim.activation) == ("CIFAR-10", "ReLU")
        }  # fmt: skip
        figures = {attack: [(one.label, one.accuracy.value) for one in each.measured] for attack, each in found.items()}
        assert figures == {
            "A_std": [("A_std", 0.9)],
            "PGD": [("pgd", 0.2)],
            "C&W": [("cw", 0.4), ("cw-linf", 0.1)],
            "DeepFool": [("deepfool", 0.6)],
            "MIM": [("mim", 0.3)],
            "BB": [],
            # As the paper has it: the least of its four, in which cw-linf is not.
            "A_rob": [("A_rob", 0.2)],
        }
        assert found["PGD"].strong is not None
        assert found["PGD"].strong.accuracy.value == 0
        assert found["A_std"].strong is None
        assert {attack for attack, each in found.items() if each.status == "runnable"} == {"BB"}

    def test_a_number_of_the_strong_suite_on_other_images_says_of_how_many(self, store: Store) -> None:
        evaluated(store, "cifar10/resnet18-w16-relu", "xiao2020", XIAO, **PAPER)
        evaluated(store, "cifar10/resnet18-w16-relu", "strong", {"clean": "hhhw", "apgd": "hbbw"})
        found = compare_claims(CLAIMS, store)
        assert ", of 4 images" in claims_markdown(found, [])
        (pgd,) = find(found, "xiao2020", "1", training="Natural", activation="ReLU", attack="PGD", dataset="CIFAR-10")
        assert [command.rpartition("--download")[2] for command in pgd.commands] == [" --n 10", " --n 4"]

    def test_unfinished_attacks_other_radii_and_validation_images_measure_nothing(self, store: Store) -> None:
        model = "cifar10/resnet18-w16-relu"
        evaluated(store, model, "xiao2020", XIAO | {"pgd": "hhbb......"}, **PAPER)
        evaluated(store, model, "xiao2020", XIAO, eps="8/255", **PAPER)
        deterministic(store, XIAO, model=model, suite="xiao2020", eps="0.031", dataset="cifar10 (validation)")
        (pgd,) = find(compare_claims(CLAIMS, store), "xiao2020", "1", training="Natural", activation="ReLU", attack="PGD",
                      dataset="CIFAR-10")  # fmt: skip
        assert (pgd.status, pgd.measured) == ("runnable", ())

    @pytest.mark.parametrize(
        ("model", "draws", "measures"),
        [("lenet-smoothing", 8, True), ("lenet-smoothing", 4, False), ("lenet-smoothing", 1, False), ("lenet-pni", 8, False)],
    )
    def test_only_a_model_that_answers_as_its_entry_says_measures_anything(
        self, store: Store, model: str, draws: int, measures: bool
    ) -> None:
        kind = "vote" if draws > 1 else "draw"
        spec = specification(
            f"cifar10/{model}", ["clean", "fgsm"], suite="hicheur2024", dataset="cifar10", eps="0.3", n=2, stochastic=True,
            origin={"prediction": {"kind": kind, "draws": draws}},
        )  # fmt: skip
        record(store, spec, {label: drawn([100, 100], [100, 50]) for label in ("clean", "fgsm")})
        training = {"lenet-smoothing": "Smoothing", "lenet-pni": "Noise Injection"}[model]
        (fgsm,) = [
            each
            for each in compare_claims(CLAIMS, store)
            if each.mapping.model == f"cifar10/{model}" and each.claim.attack == "FGSM" and each.claim.training == training
        ]
        assert bool(fgsm.measured) == measures

    def test_numbers_of_older_weights_and_of_fewer_images_give_way(self, store: Store) -> None:
        model = "cifar10/resnet18-w16-relu"
        evaluated(store, model, "xiao2020", {key: value * 2 for key, value in XIAO.items()}, checkpoint="old")
        evaluated(store, model, "xiao2020", dict.fromkeys(XIAO, "hb"), checkpoint="new")
        evaluated(store, model, "xiao2020", dict.fromkeys(XIAO, "hbbb"), checkpoint="new")
        evaluated(store, model, "xiao2020", dict.fromkeys(XIAO, "hbb"), checkpoint="new")
        (pgd,) = find(compare_claims(CLAIMS, store), "xiao2020", "1", training="Natural", activation="ReLU", attack="PGD",
                      dataset="CIFAR-10")  # fmt: skip
        assert pgd.measured[0].summary.n == 4

    def test_autoattack_is_counted_as_its_tool_counts(self, store: Store) -> None:
        parts = ("apgd-ce", "apgd-t", "fab-t", "square")
        options = {"model": PUBLISHED, "suite": "panousis2021", "dataset": "cifar10", "n": 2}
        spec = specification(attacks=["clean", *parts], stochastic=True, **options)  # type: ignore[arg-type]
        record(store, spec, {label: drawn([100, 100], [100, 50]) for label in ("clean", *parts)})
        (cell,) = find(compare_claims(CLAIMS, store), "panousis2021", "2", architecture="WideResNet-34-1")
        # Five looks, the first at the image itself, each right half of the time on the second image.
        assert cell.measured[0].accuracy.value == pytest.approx((1 + 0.5**5) / 2)
        assert cell.claim.threat == ThreatModel.of("linf", "8/255")

    def test_what_differs_is_read_off_the_entries(self) -> None:
        found = compare_claims(CLAIMS, None)
        (bb,) = find(found, "xiao2020", "1", dataset="CIFAR-10", training="AT", activation="k-WTA-0.1", attack="BB")
        entry = read_registry().entries["cifar10/resnet18-w16-kwta0.1-fast"]
        assert entry.recipe is not None
        assert bb.differs == (
            f"width 16 for 64; {entry.recipe.epochs} epochs for 80; trained on cifar10-jpeg; "
            "fast adversarial training for PGD adversarial training (8 steps)",
            "the source is a VGG19 of width 16",
        )
        (natural,) = find(found, "xiao2020", "1", dataset="CIFAR-10", training="Natural", activation="k-WTA-0.1", attack="PGD")
        # 50 epochs, then 20 times 2 on the way from 0.2 to 0.1.
        assert "epochs for 90" in natural.differs[0]

    def test_without_our_network_in_the_registry_the_papers_own_is_named(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "registry.yaml", {})
        ours = [each for each in CLAIMS if map_claim(each).model is not None and map_claim(each).full_size is not None]
        assert {each.hardware for each in compare_claims(ours, None, registry)} == {"one GPU"}
        with pytest.raises(UsageError, match="the registry has no model 'cifar10/wrn34-1-slwta-panousis2021'"):
            compare_claims(CLAIMS, None, registry)

    def test_every_network_of_ours_that_stands_for_a_papers_is_in_the_registry(self) -> None:
        named = {map_claim(each).model for each in CLAIMS} - {None}
        assert len(named) == 26
        assert named <= read_registry().entries.keys()

    def test_natural_perturbations_count_what_is_right_after_whatever_it_was_before(self, store: Store) -> None:
        options = {"model": "cifar10/resnet18-w16-relu", "suite": "xiao2020-natural", "eps": "1", "n": 4}
        spec = specification(attacks=["clean", "rotation"], **options)  # type: ignore[arg-type]
        after = [*rows("hb"), *(replace(each, prediction=each.label) for each in rows("ww", start=2))]
        wrong = [replace(each, prediction=9 - each.label) for each in rows("hhww")]
        after[1] = replace(after[1], prediction=5)
        record(store, spec, {"clean": wrong, "rotation": after})
        (cell,) = find(compare_claims(CLAIMS, store), "xiao2020", "5", training="Natural", activation="ReLU", attack="rotation")
        assert cell.measured[0].accuracy.value == 0.75

    def test_sources_of_full_size_are_part_of_the_suites_name(self, store: Store) -> None:
        name = "xiao2020-bb with bb.surrogate=cifar10/vgg19"
        evaluated(store, "cifar10/resnet18-relu", name, {"clean": "hhhh", "bb": "hhbb"})
        evaluated(store, "cifar10/resnet18-relu", f"{name}, bb.steps=1", {"clean": "hhhh", "bb": "hhhb"})
        (bb,) = find(compare_claims(CLAIMS, store), "xiao2020", "1", training="Natural", activation="ReLU", attack="BB",
                     dataset="CIFAR-10")  # fmt: skip
        assert [one.accuracy.value for one in bb.measured] == [0.5]

    def test_a_network_at_full_size_comes_before_ours(self, store: Store) -> None:
        evaluated(store, "cifar10/resnet18-w16-relu", "xiao2020", XIAO)
        evaluated(store, "cifar10/resnet18-relu", "xiao2020", XIAO | {"pgd": "bbbbbbbbbw"})
        (pgd,) = find(compare_claims(CLAIMS, store), "xiao2020", "1", training="Natural", activation="ReLU", attack="PGD",
                      dataset="CIFAR-10")  # fmt: skip
        assert [(one.summary.model, one.accuracy.value) for one in pgd.measured] == [("cifar10/resnet18-relu", 0.0)]
        assert pgd.hardware == "one GPU"


class TestThePage:
    def test_every_cell_has_a_row_in_markdown_and_in_html(self, store: Store, tmp_path: Path) -> None:
        evaluated(store, "cifar10/resnet18-w16-relu", "xiao2020", XIAO | {"mim": "hhhbbbbbbw"}, **PAPER)
        assert [path.name for path in write_report(store, tmp_path, {"claims"})] == ["claims.md", "claims.html"]
        text, page = ((tmp_path / name).read_text() for name in ("claims.md", "claims.html"))
        rows = [line for line in text.splitlines() if re.search(r"\| (run|runnable|not comparable)( \[|: )[^|]*\|$", line)]
        assert len(rows) == 435
        assert page.count('<td class="num" data-status="') == 435
        # A row for each network, a column for each attack, and only tables with a measurement are open.
        table = page.partition("Table 1: CIFAR-10, ResNet-18 ")[2].partition("</table>")[0]
        assert re.findall(r'<th scope="col" class="num">(.*?)</th>', table)[:3] == [
            "A<sub>std</sub>",
            "PGD, linf 0.031",
            "C&amp;W, linf 0.031",
        ]
        assert "here 20.0 [2.5,\u00a055.6]" in table
        runs = re.findall(r'<details class="claims" id="[^"]+" data-run="(\d+)"( open)?>', page)
        assert {(run != "0", bool(is_open)) for run, is_open in runs} == {(True, True), (False, False)}
        assert "| Natural | ReLU | PGD, linf 0.031 | 0.0 | 20.0 [2.5, 55.6] | – | cifar10, 10 |" in text
        for each in PAPERS:
            assert f"## {each}\n" in text
        for words in (
            "114.6 % is not an accuracy",
            "width 16 for 64; 8 epochs for 80; trained on cifar10-jpeg",
            "kwbench train NAME --registry",
        ):
            assert words in text
            assert words in page
        assert "…" not in page
        assert "…" not in text

    def test_networks_for_which_no_cell_stands_come_last_each_with_its_largest_finished_evaluation(
        self, store: Store, tmp_path: Path
    ) -> None:
        name = "cifar10/resnet18-w16-slwta2-fast"
        for letters, eps in (("hhhhhhhbbw", "0.031"), ("hhhw", "0.031"), ("hhbw", "8/255"), ("hh..", "0.1")):
            clean = "".join("w" if each == "w" else "h" for each in letters)
            evaluated(store, name, "strong", {"clean": clean, "apgd": letters}, eps=eps)
        deterministic(store, {"clean": "hw", "apgd": "hw"}, model=name, suite="strong", eps="0.031", dataset="cifar10-jpeg")
        # Neither a user's own, nor one on other images, nor one for which cells stand.
        for other in ("mine", "digits/resnet18-relu", "cifar10/resnet18-w16-relu"):
            evaluated(store, other, "strong", {"clean": "hhhh", "apgd": "bbbb"})
        write_report(store, tmp_path, {"claims"})
        text, page = ((tmp_path / name).read_text() for name in ("claims.md", "claims.html"))
        rows = text.partition("## Other networks on the same data sets, without a claim\n")[2].strip().splitlines()[2:]
        assert rows == [
            f"| {name} | strong | linf 0.031 | cifar10, 10 | 90.0 [55.5, 99.7] | 70.0 [34.8, 93.3] | – |",
            f"| {name} | strong | linf 8/255 | cifar10, 4 | 75.0 [19.4, 99.4] | 50.0 [6.8, 93.2] | – |",
            f"| {name} | strong | linf 0.031 | cifar10-jpeg, 2 | 50.0 [1.3, 98.7] | 50.0 [1.3, 98.7] | – |",
        ]
        assert page.count(f"<bdi>{name}</bdi>") == 3

    def test_the_step_size_of_the_authors_code_stands_beside_that_of_the_paper_on_mnist(self, store: Store) -> None:
        attacks = {"clean": "hhhhhhhhhw", "pgd": "hbbbbbbbbw", "pgd-0.01": "hhhhhbbbbw"}
        spec = {"paper_attacks": ["pgd"]}
        deterministic(store, attacks, model="mnist/cnn3-kwta0.1", suite="xiao2020", eps="0.3", dataset="mnist", spec=spec)
        page = claims_markdown(compare_claims(CLAIMS, store), [])
        assert "| Natural | k-WTA-0.1 | A\\_rob, linf 0.3 | 62.2 | 10.0 [0.3, 44.5]; pgd-0.01: 50.0 [18.7, 81.3] |" in page

    def test_what_a_record_says_is_shown_and_never_run(self, store: Store, tmp_path: Path) -> None:
        hostile = "<img src=x onerror=alert(1)>|`a`"
        deterministic(store, XIAO, model="cifar10/resnet18-w16-relu", suite="xiao2020", eps="0.031", dataset=hostile)
        write_report(store, tmp_path, {"claims"})
        text, page = ((tmp_path / name).read_text() for name in ("claims.md", "claims.html"))
        assert "<img" not in page
        assert "<img" not in text
        assert {line.count(" | ") for line in text.splitlines() if "onerror" in line} == {8}

    def test_the_page_that_is_kept_has_a_row_for_each_cell_and_counts_those_that_are_run(self) -> None:
        page = (REPORTS / "claims.md").read_text(encoding="utf-8").splitlines()
        status = [line.split(" | ")[-1] for line in page if line.count(" | ") == 8]
        cells = [each for each in status if each.startswith(("run [", "runnable [", "not comparable:"))]
        counted = next(line for line in page if line.startswith("| all |"))
        run = sum(each.startswith("run [") for each in cells)
        assert len(cells) == 435
        assert counted.split(" | ")[2] == str(run)
        assert run >= 160

    def test_the_page_that_is_kept_is_what_the_record_beside_it_says(self, kept: Path) -> None:
        assert (kept / "claims.md").read_text(encoding="utf-8") == (REPORTS / "claims.md").read_text(encoding="utf-8")

    def test_the_record_that_is_kept_has_the_papers_figures(self, kept: Path) -> None:
        measured = Store.open(str(kept / "papers.db"))
        names = [figure.name for figure in ReportData(measured).figures]
        measured.close()
        assert [kind for kind in FIGURES if not any(name.startswith(kind) for name in names)] == []

    def test_the_record_that_is_kept_shows_what_breaks_its_most_robust_network_of_cifar10(self, kept: Path) -> None:
        measured = Store.open(str(kept / "papers.db"))
        (board,) = (
            board
            for board in ReportData(measured).suite_boards
            if (board.key.dataset, board.key.suite, board.key.n) == ("cifar10-exact-subset", "strong", 512)
            and board.threat == ThreatModel.of("linf", "0.031")
        )
        best = board.rows[0].summary
        pictures = worst_pictures(measured, best)
        measured.close()
        assert best.model == "cifar10/resnet18-w16-relu-fast"
        assert [picture.before.split()[0] for picture in pictures] == ["automobile", "airplane", "automobile"]
        assert all(picture.after.split()[0] != picture.before.split()[0] for picture in pictures)

    def test_the_terminal_has_a_line_for_each_cell_and_counts_them(self) -> None:
        out = io.StringIO()
        Console(width=200, file=out).print(claims_table(compare_claims(CLAIMS, None)))
        lines = out.getvalue().splitlines()
        assert sum(line.rstrip().endswith(("runnable", "not comparable")) for line in lines) == 435 + 1
        assert lines[-1] == "0 run, 423 runnable, 12 not comparable"

    def test_equal_records_give_equal_pages(self, store: Store, tmp_path: Path) -> None:
        evaluated(store, "cifar10/resnet18-w16-relu", "xiao2020", XIAO)
        for folder in ("a", "b"):
            write_report(store, tmp_path / folder, {"claims"})
        assert (tmp_path / "a/claims.html").read_bytes() == (tmp_path / "b/claims.html").read_bytes()


def test_a_claim_is_one_cell() -> None:
    text = Path(read_claims.__defaults__[0]).read_text(encoding="utf-8")  # type: ignore[index]
    assert len(list(csv.reader(text.splitlines()))) == 436
    assert replace(claim(), text="50.25").decimals == 2
