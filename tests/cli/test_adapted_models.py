"""Models of other libraries on the command line, and what their libraries claim about them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from kwbench.record.store import Store
from support.command_line import Kwbench, refused
from support.records import deterministic

CLAIMED = {"by": "RobustBench", "eps": "8/255", "a_std": 0.9, "autoattack": 0.625, "best_known": 0.5, "paper": "", "link": ""}


def test_an_exported_program_is_evaluated_under_its_name_with_its_hash(kwb: Kwbench, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    shapes = {"input": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(network, (torch.rand(2, 1, 8, 8),), dynamic_shapes=shapes), tmp_path / "net.pt2")
    answer = kwb("evaluate", f"export:{tmp_path}/net.pt2", "--attack", "fgsm", "--n", "16", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["model"] == "export:net.pt2"
    assert answer.json["a_rob"]["value"] <= answer.json["a_std"]["value"]
    store = Store.open("results.db")
    (evaluation,) = store.evaluations()
    store.close()
    assert len(evaluation.origin["entry"]["file_sha256"]) == 64


def test_a_file_that_an_adapter_reads_is_named_as_such(kwb: Kwbench) -> None:
    refused(kwb("evaluate", "net.pt2", "--n", "4"), 2, "evaluate export:net.pt2")
    refused(kwb("evaluate", "export:net.pt2", "--n", "4"), 3, "net.pt2: cannot be read")


@pytest.mark.parametrize(("eps", "shown"), [("8/255", True), ("4/255", False)])
def test_what_a_library_claims_stands_beside_what_was_measured_at_its_radius(kwb: Kwbench, eps: str, shown: bool) -> None:
    store = Store.open("results.db", create=True)
    deterministic(store, {"clean": "hhhw", "pgd": "hbbw"}, model="robustbench:Net", eps=eps, provenance={"claimed": CLAIMED})
    store.close()
    assert kwb("report", "--html", "--output", "page").code == 0
    page = Path("page/index.html").read_text()
    assert ("62.50" in page and "RobustBench, AutoAttack" in page) is shown
