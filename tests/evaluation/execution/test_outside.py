"""Models evaluated from outside the process of their code: the same rows as inside, whatever the code does there."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation.execution.guardian import descendants_of
from kwbench.evaluation.execution.outside import OutsideModel, load_outside
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import evaluate
from kwbench.record.store import Store
from support.small_registry import fast_suite, rows

NET = """\
{head}
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        {forward}

def net():
    return Net()
"""

# Decides that nothing is broken, in the process that it runs in.
FORGE = """\
from dataclasses import replace
import kwbench.evaluation.execution.evaluator as theirs
from kwbench.outcome import Status
judge = theirs.judge
def forged(*arguments, **options):
    outcomes = judge(*arguments, **options)
    return [replace(row, status=Status.HELD) if row.status is Status.BROKEN else row for row in outcomes]
theirs.judge = forged
"""


def written(folder: Path, forward: str = "return self.layers(x)", head: str = "") -> str:
    (folder / "stranger.py").write_text(NET.format(forward=forward, head=head))
    return f"{folder / 'stranger.py'}:net"


def asked(model: str, *attacks: str, **options: Any) -> Request:
    suite = fast_suite(*(attacks or ("fgsm",)))
    return Request(model, suite, n=32, eps="0.1", tile=16, threads=1, untrusted=True, **options)


def recorded(request: Request, db: Path) -> dict[str, list[tuple[Any, ...]]]:
    store = Store.open(str(db), create=True)
    try:
        evaluation = evaluate(request, store)
    finally:
        store.close()
    fields = ("status", "prediction", "distance", "forwards", "backwards")
    return {
        label: [tuple(row[field] for field in fields) for row in of_attack] for label, of_attack in rows(db, evaluation).items()
    }


@pytest.fixture
def outside(tmp_path: Path) -> Any:
    opened: list[OutsideModel] = []

    def load(forward: str = "return self.layers(x)", head: str = "", time_limit: float | None = None) -> nn.Module:
        module = load_outside(written(tmp_path, forward, head), time_limit).module
        assert isinstance(module, OutsideModel)
        opened.append(module)
        return module

    yield load
    for module in opened:
        module.close()


@pytest.mark.usefixtures("at_hand")
def test_rows_from_outside_are_those_from_inside_and_a_forged_judge_changes_nothing(tmp_path: Path) -> None:
    request = asked(written(tmp_path), "noop", "fgsm", "pgd")
    inside = recorded(replace(request, untrusted=False), tmp_path / "inside.db")
    assert recorded(request, tmp_path / "outside.db") == inside
    assert len({status for status, *_ in inside["pgd"]}) > 1
    written(tmp_path, head=FORGE)
    assert recorded(request, tmp_path / "forged.db") == inside


def test_a_stranger_can_neither_write_nor_connect_nor_see_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    (tmp_path / "results.db").write_text("record")
    head = f"""\
import os, pathlib, signal, socket, sys, tempfile
def tried(name, act):
    try:
        act()
    except OSError as failure:
        print(name, "refused", flush=True)
    else:
        print(name, "done", flush=True)
tried("write", lambda: pathlib.Path({str(tmp_path / "results.db")!r}).write_text("mine"))
tried("create", lambda: pathlib.Path({str(tmp_path / "new")!r}).write_text("mine"))
tried("remove", lambda: os.unlink({str(tmp_path / "results.db")!r}))
tried("kill", lambda: os.kill({os.getpid()}, 0))
tried("connect", lambda: socket.create_connection(("127.0.0.1", 9), timeout=1))
tried("temporary", lambda: tempfile.NamedTemporaryFile().write(b"mine"))
raise RuntimeError(os.environ.get("MY_TOKEN", "no secret") + " " + os.environ["TMPDIR"])
"""
    with pytest.raises(CannotEvaluate, match="no secret") as failure:
        recorded(asked(written(tmp_path, head=head)), tmp_path / "own.db")
    assert (tmp_path / "results.db").read_text() == "record"
    assert not (tmp_path / "new").exists()
    folder = Path(str(failure.value).split("no secret ")[1].split(" ")[0])
    assert folder.name.startswith("kwbench-")
    assert not folder.exists()


@pytest.mark.usefixtures("at_hand")
def test_what_crosses_the_border_is_numbers_only(outside: Any) -> None:
    # The model writes a pickle into every file that it can.
    head = """\
import os, pickle, struct
def flood():
    content = pickle.dumps(SystemExit(0))
    for file in range(3, 32):
        try:
            os.write(file, struct.pack("!Q", len(content)) + content)
        except OSError:
            pass
"""
    module = outside("flood(); return self.layers(x)", head)
    with pytest.raises(CannotEvaluate, match="sent what is no answer"):
        module(torch.zeros(2, 1, 8, 8))


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize(
    ("forward", "kind", "message"),
    [
        ("raise ValueError('no')", RuntimeError, "ValueError: no"),
        ("raise MemoryError('full')", MemoryError, "full"),
        ("return {'scores': x}", CannotEvaluate, "it returned dict with 'scores'"),
        ("import os; os._exit(7)", CannotEvaluate, r"its process died \(exit code 7\)"),
        ("return x.new_zeros(2, 1 << 18)", CannotEvaluate, r"its process sent what is no answer \(a message of 20\d+ bytes\)"),
    ],
    ids=["error", "memory", "no logits", "exit", "too much"],
)
def test_what_goes_wrong_in_the_process_is_raised_here(outside: Any, forward: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        outside(forward)(torch.zeros(2, 1, 8, 8))


@pytest.mark.usefixtures("at_hand")
def test_a_pass_that_hangs_is_stopped_at_the_time_limit(outside: Any) -> None:
    module = outside("import time; time.sleep(600)", time_limit=0.5)
    module._time_limit = 0.5
    with pytest.raises(CannotEvaluate, match=r"stranger.py:net: no answer within 0.5 s; the process was stopped"):
        module(torch.zeros(2, 1, 8, 8))
    assert not module._child.process.is_alive()


@pytest.mark.usefixtures("at_hand")
def test_a_process_that_never_ends_its_answer_is_stopped(outside: Any) -> None:
    head = """\
import os, struct, time
def begin():
    for file in range(3, 32):
        try:
            os.write(file, struct.pack("!Q", 100) + b"half")
        except OSError:
            pass
    time.sleep(600)
"""
    module = outside("begin()", head)
    module._child.pipe.patience = 0.5
    with pytest.raises(CannotEvaluate, match=r"began an answer, and sent no more of it for 0.5 s; the process was stopped"):
        module(torch.zeros(2, 1, 8, 8))
    assert not module._child.process.is_alive()


@pytest.mark.usefixtures("at_hand")
def test_a_process_that_holds_too_much_memory_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match=r"its process held 0\.\d\d GB of memory, more than the 0.01 GB of --memory-limit"):
        load_outside(written(tmp_path, head="import time; time.sleep(60)"), None, 1e7)


@pytest.mark.usefixtures("at_hand")
def test_draws_follow_the_generator_of_this_process(outside: Any) -> None:
    module, x = outside("return self.layers(x + torch.randn_like(x))"), torch.zeros(2, 1, 8, 8)
    torch.manual_seed(1)
    first, second = module(x), module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), first)
    assert not torch.equal(first, second)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap (bwrap) is not installed")
def test_in_a_sandbox_a_model_answers_and_sees_neither_other_files_nor_processes_nor_a_network(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    secrets = [str(tmp_path / "secret"), str(Path(__file__).parents[3] / "README.md")]
    assert all(map(os.path.exists, secrets))
    folder = tmp_path / "strange"
    folder.mkdir()
    seen = f"""\
import os, socket
def count(*acts):
    return [float(len(act())) for act in acts]
def processes():
    return [name for name in os.listdir("/proc") if name.isdigit()]
def secrets():
    return [path for path in {secrets!r} if os.path.exists(path)]
def networks():
    return [name for _, name in socket.if_nameindex() if name != "lo"]
"""
    name = written(folder, "return x.new_tensor([count(processes, secrets, networks)]).repeat(len(x), 1)", seen)
    try:
        module = load_outside(name, 60, sandbox=True).module
    except UsageError as failure:
        pytest.skip(str(failure))
    assert isinstance(module, OutsideModel)
    processes, files, networks = module(torch.zeros(2, 1, 8, 8))[1].tolist()
    assert 2 <= processes < 6
    assert (files, networks) == (0, 0)
    started = descendants_of(os.getpid())
    module.close()
    assert len(descendants_of(os.getpid())) < len(started)
    assert not module._child.process.is_alive()


def test_without_bubblewrap_a_sandbox_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="--sandbox: needs bubblewrap, the program bwrap; --untrusted confines"):
        load_outside(written(tmp_path), None, sandbox=True)


@pytest.mark.usefixtures("at_hand")
def test_unknown_files_are_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_outside(f"{tmp_path}/missing.py:net", None)
