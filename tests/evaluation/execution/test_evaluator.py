"""The evaluator: models of users' own in a process of their own, whatever they do there."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kwbench.config.suite import Suite, SuiteAttack, override, read_suite, suite_of
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation import description
from kwbench.evaluation.execution import evaluator as evaluator_module
from kwbench.evaluation.execution.evaluator import LocalEvaluator, open_evaluator
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import evaluate
from kwbench.record.comparability import attacks_key, comparison_key
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from support.small_models import digits, first_images, run, trained_cnn, wrapped
from support.small_registry import count, fast_suite, request, rows, write_registry

# The network of small_models, as a user would have written it.
DEFENCE = """\
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 10),
        )
        self.layers.load_state_dict(torch.load(Path(__file__).resolve().parent / "weights.pt", weights_only=True))

    def forward(self, x):
{forward}


def net():
    return Net()
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def defence(folder: Path, forward: str = "return self.layers(x)", head: str = "") -> str:
    """The name of a model in a file of a user's own; `head` comes before everything in the file."""
    torch.save(trained_cnn().state_dict(), folder / "weights.pt")
    body = "\n".join(f"        {line}" for line in forward.splitlines())
    (folder / "defence.py").write_text(f"{head}\n{DEFENCE.format(forward=body)}")
    return f"{folder / 'defence.py'}:net"


def own(model: str, **options: Any) -> Request:
    defaults: dict[str, Any] = {"suite": fast_suite("fgsm"), "n": 32, "eps": "0.1", "tile": 16, "threads": 1}
    return Request(model, **defaults | options)


def carry_out(what: Request, db: Path, time_limit: float | None = None) -> Evaluation:
    store = Store.open(str(db), create=True)
    try:
        return evaluate(what, store, time_limit=time_limit)
    finally:
        store.close()


class TestOwnFiles:
    def test_a_folder_with_its_own_models_package_is_evaluated_as_the_same_network_here_is(
        self, tmp_path: Path, db: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "models").mkdir()
        defence(tmp_path)
        network = (tmp_path / "defence.py").read_text().replace("resolve().parent", "resolve().parents[1]")
        (tmp_path / "models" / "__init__.py").write_text("from .wide import net\n")
        (tmp_path / "models" / "wide.py").write_text("from . import blocks\nnet = blocks.net\n")
        (tmp_path / "models" / "blocks.py").write_text(network)
        (tmp_path / "defence.py").write_text("import models\n\ndef factory():\n    return models.net()\n")
        # A registry of some other program is none of ours.
        (tmp_path / "registry.yaml").write_text("something: else\n")
        monkeypatch.chdir(tmp_path)
        what = own("defence.py:factory", suite=fast_suite("pgd", settings=("pgd.steps=5",)))
        evaluation = carry_out(what, db)
        assert evaluation.spec.model == "defence.py:factory"
        assert not evaluation.spec.stochastic
        assert (tmp_path / "registry.yaml").read_text() == "something: else\n"
        assert "models" not in sys.modules
        found = rows(db)["pgd"]
        expected = run("pgd", {"steps": 5}, first_images(32), evaluation.spec.threat, model=wrapped(trained_cnn(), tile=16))
        assert [(row["status"], row["distance"]) for row in found] == [(each.status, each.distance) for each in expected]
        assert len({row["status"] for row in found}) > 1

    def test_images_of_ones_own_are_attacked_at_their_own_radius(self, tmp_path: Path, db: Path) -> None:
        batch = first_images(32)
        np.savez(tmp_path / "mine.npz", x_test=batch.x.numpy(), y_test=batch.y.numpy())
        what = own(defence(tmp_path), data=tmp_path / "mine.npz", eps=None)
        assert str(carry_out(what, db).spec.threat) == "linf 8/255"
        assert str(carry_out(replace(what, dataset="digits"), db).spec.threat) == "linf 0.2"
        with pytest.raises(UsageError, match="no surrogate is known for images of your own; --dataset says"):
            carry_out(replace(what, suite=fast_suite("transfer")), db)

    def test_what_the_file_prints_does_not_reach_stdout(
        self, tmp_path: Path, db: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        forward = 'os.write(1, b"from below")\nreturn self.layers(x)'
        carry_out(own(defence(tmp_path, forward, 'import os\nprint("loading the weights")')), db)
        out, err = capfd.readouterr()
        assert out == ""
        assert "loading the weights" in err
        assert "from below" in err

    @pytest.mark.usefixtures("at_hand")
    def test_what_the_file_prints_cannot_control_the_terminal_nor_fill_it(
        self, tmp_path: Path, db: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        printed = "ü\x1b]0;title\x07\tred\r\n".encode()
        head = f"import os\nos.write(2, {printed!r})\nos.write(1, b'x' * (4 << 20))"
        carry_out(own(defence(tmp_path, head=head)), db)
        err = capfd.readouterr().err
        assert "ü?]0;title?\tred\n" in err
        assert 1 << 19 < len(err) < 5 << 18
        assert "(more was printed than is shown here)" in err

    @pytest.mark.usefixtures("at_hand")
    @pytest.mark.parametrize(
        "answer",
        ["b'\\0\\0\\0\\0\\0\\0\\0\\5hello'", "pickled(SystemExit(0))", "pickled(KeyboardInterrupt())"],
        ids=["no pickle", "exit", "interrupt"],
    )
    def test_what_a_model_writes_into_the_pipe_of_its_process_is_no_answer(self, tmp_path: Path, db: Path, answer: str) -> None:
        head = (
            "import os, pickle, struct\n"
            "def pickled(value):\n    content = pickle.dumps(value)\n    return struct.pack('!Q', len(content)) + content\n"
        )
        writes = (
            f"for file in range(3, 32):\n    try:\n        os.write(file, {answer})\n    except OSError:\n        pass\n"
            "return self.layers(x)"
        )
        with pytest.raises(CannotEvaluate, match="its process sent what is no answer"):
            carry_out(own(defence(tmp_path, writes, head)), db)

    @pytest.mark.usefixtures("at_hand")
    @pytest.mark.parametrize(
        "head",
        [
            "import kwbench.evaluation.execution.evaluator as theirs\ntheirs.judge = lambda *_, **__: []",
            "import kwbench.judge as theirs\ntheirs._score = None",
            "import kwbench.judge as theirs\ntheirs.judge.__code__ = (lambda *_, **__: []).__code__",
            "from kwbench.model import Model\nModel.predict = None",
            "import kwbench.judge as theirs\ntheirs.len = lambda _: 0",
            "import sys\nsys.modules['kwbench.judge'] = sys",
        ],
        ids=["function", "private", "code", "method", "builtin", "module"],
    )
    def test_a_file_that_replaces_parts_of_kwbench_is_refused(self, tmp_path: Path, db: Path, head: str) -> None:
        with pytest.raises(CannotEvaluate, match=r"its code replaces kwbench\..* of kwbench, so it could decide"):
            carry_out(own(defence(tmp_path, head=head)), db)
        assert count(db) == 0

    @pytest.mark.usefixtures("at_hand")
    def test_a_model_that_writes_into_its_input_gets_the_rows_of_one_that_does_not(self, tmp_path: Path) -> None:
        suite = fast_suite("noop", "square", settings=("square.steps=5",))
        plain = evaluated(own(defence(tmp_path), suite=suite), tmp_path / "plain.db")
        careless = defence(tmp_path, "y = self.layers(x)\nx.zero_()\nreturn y")
        assert evaluated(own(careless, suite=suite), tmp_path / "careless.db") == plain

    @pytest.mark.usefixtures("at_hand")
    @pytest.mark.parametrize(
        "noise",
        [
            "torch.from_numpy(numpy.random.normal(size=x.shape).astype('float32'))",
            "random.random()",
            "torch.randn_like(x)",
            # Random only where no image of the data set lies.
            "torch.randn_like(x) * (x * 16 != (x * 16).round())",
        ],
    )
    def test_random_models_are_found_out_whatever_they_draw_from(self, tmp_path: Path, db: Path, noise: str) -> None:
        model = defence(tmp_path, f"return self.layers(x + 0.2 * {noise})", "import random\nimport numpy")
        what = own(model, n=16, suite=fast_suite("noop"))
        evaluation = carry_out(what, db)
        assert evaluation.spec.stochastic
        assert all(row["fresh_draws"] == 100 for row in rows(db)["noop"])
        assert rows(db) == evaluated(what, tmp_path / "again.db")

    @pytest.mark.usefixtures("at_hand")
    @pytest.mark.parametrize("own_images", [False, True], ids=["digits", "own images"])
    @pytest.mark.parametrize(
        "forward",
        ["return self.layers(x.squeeze()[:, None])", "assert len(x) == 16\nreturn self.layers(x)"],
        ids=["no batch of one", "whole tiles only"],
    )
    def test_a_model_that_takes_no_batch_of_one_is_passed_whole_tiles(
        self, tmp_path: Path, db: Path, forward: str, own_images: bool
    ) -> None:
        data = tmp_path / "mine.npz" if own_images else None
        np.savez(tmp_path / "mine.npz", x_test=first_images(32).x.numpy(), y_test=first_images(32).y.numpy())
        evaluation = carry_out(own(defence(tmp_path, forward), n=10, data=data), db)
        assert not evaluation.spec.stochastic
        assert {row["status"] for row in rows(db)["fgsm"]} <= {"wrong", "broken", "held"}

    @pytest.mark.usefixtures("at_hand")
    def test_operations_of_a_model_that_takes_whole_tiles_only_are_looked_at_too(self, tmp_path: Path, db: Path) -> None:
        suite = fast_suite("apgd", settings=("apgd.focus=auto", "apgd.steps=2"))
        what = own(defence(tmp_path, "assert len(x) == 16\nreturn self.layers(x)"), suite=replace(suite, diagnose=True))
        evaluation = carry_out(what, db)
        assert evaluation.spec.attacks[1].spec["parameters"]["focus"] == 0.1
        store = Store.open(str(db))
        found = {each.check: each for each in store.findings(evaluation.id)}
        store.close()
        assert found["unseen"].figure == 0

    @pytest.mark.usefixtures("at_hand")
    def test_a_model_may_compute_in_its_own_precision(self, tmp_path: Path, db: Path) -> None:
        suite = fast_suite("fgsm", "apgd", settings=("apgd.gradient.kind=relaxed", "apgd.steps=3"))
        plain = evaluated(own(defence(tmp_path), suite=suite), tmp_path / "plain.db")
        model = self.in_precision(tmp_path, "double", "return self.layers(x.double())")
        found = evaluated(own(model, suite=suite), db)
        assert {row["prediction"] for row in found["clean"]} > {1, 2, 3}
        for label in plain:
            assert [row["status"] for row in found[label]] == [row["status"] for row in plain[label]]

    @pytest.mark.usefixtures("at_hand")
    @pytest.mark.parametrize("own_images", [False, True], ids=["digits", "own images"])
    def test_a_model_that_does_not_cast_its_images_is_told_so(self, tmp_path: Path, db: Path, own_images: bool) -> None:
        data = tmp_path / "mine.npz" if own_images else None
        np.savez(tmp_path / "mine.npz", x_test=first_images(32).x.numpy(), y_test=first_images(32).y.numpy())
        model = self.in_precision(tmp_path, "half", "return self.layers(x)")
        with pytest.raises(CannotEvaluate, match=r"images come in float32, and the model holds float16: forward must cast"):
            carry_out(own(model, data=data), db)

    @staticmethod
    def in_precision(folder: Path, precision: str, forward: str) -> str:
        defence(folder, forward)
        (folder / "precise.py").write_text(f"import defence\n\ndef factory():\n    return defence.net().{precision}()\n")
        return f"{folder / 'precise.py'}:factory"

    @pytest.mark.usefixtures("at_hand")
    def test_winners_are_counted_in_whole_tiles_too(self, tmp_path: Path) -> None:
        defence(tmp_path, "assert len(x) == 16\nreturn self.wta(self.layers(x)[..., None, None]).flatten(1)")
        (tmp_path / "wta.py").write_text(
            "from defence import net\nfrom kwbench.networks.activations import Kwta\n\n"
            "def factory():\n    found = net()\n    found.wta = Kwta('1/2')\n    return found\n"
        )
        evaluator = open_evaluator(own(f"{tmp_path / 'wta.py'}:factory", n=10))
        evaluator.close()
        assert evaluator.facts.effective_sparsity == {"wta": "1/2"}

    @pytest.mark.usefixtures("at_hand")
    def test_a_changed_file_is_another_run(self, tmp_path: Path, db: Path) -> None:
        carry_out(own(defence(tmp_path)), db)
        carry_out(own(defence(tmp_path, "return 2 * self.layers(x)")), db)
        assert count(db, "attack_runs") == 4

    @pytest.mark.usefixtures("at_hand")
    def test_a_users_own_data_may_lack_the_last_classes(self, tmp_path: Path, db: Path) -> None:
        test = digits().test
        few = [index for index in range(len(test)) if test.labels[index] < 4][:20]
        np.savez(tmp_path / "few.npz", x_test=test.images[few], y_test=test.labels[few])
        evaluation = carry_out(own(defence(tmp_path), data=tmp_path / "few.npz", n=None), db)
        assert (evaluation.spec.dataset, evaluation.spec.n) == ("few", 20)
        assert sum(row["status"] == "wrong" for row in rows(db)["clean"]) <= 2


def count_rows() -> None:
    """Limit the rows that this process is given, as a GPU's memory would."""
    judge = LocalEvaluator.judge

    def small(self: LocalEvaluator, label: str, rows: Any, clean: Any, to_beat: Any) -> Any:
        if len(rows) > 16:
            raise torch.OutOfMemoryError("full")
        return judge(self, label, rows, clean, to_beat)

    LocalEvaluator.judge = small  # type: ignore[method-assign]


class SmallMemory:
    """Limits the memory of the process that it is sent to, where it is None."""

    def __reduce__(self) -> tuple[Any, ...]:
        return count_rows, ()


def evaluated(what: Request, db: Path) -> dict[str, list[dict[str, Any]]]:
    return rows(db, carry_out(what, db))


def arrive() -> None:
    time.sleep(5)


class SlowToArrive:
    """Takes its time on the way to another process, where it is None."""

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, ()


@pytest.mark.usefixtures("at_hand")
class TestOwnFilesThatFail:
    @pytest.mark.parametrize(
        ("forward", "head", "message"),
        [
            ("return self.layers(x) / 0 * 0", "", "logits of clean image 0 are not finite"),
            ("return self.layers(x)[:, :7]", "", "has 7 classes, the data set has 10"),
            (
                "return {'scores': self.layers(x)}",
                "",
                r"must return logits \(16, classes\), it returned dict with 'scores'; wrap it",
            ),
            ("return self.layers(x)[0]", "", r"must return logits \(16, classes\), it returned \(10,\)"),
            ("return self.layers(x).amax(dim=1)", "", r"one logit z an image, \(16,\); --binary makes two classes"),
            ("return self.layers(x).long()", "", "logits must be floating point"),
            ("return self.layers(x.repeat(1, 3, 1, 1))", "", "the model raised RuntimeError: .*channels"),
            ("raise RuntimeError('what of it')", "", "the model raised RuntimeError: what of it"),
            ("raise SystemExit(7)", "", r"its process died \(exit code 7\)"),
            ("raise torch.OutOfMemoryError('full')", "", "memory does not hold the model and 16 samples at once"),
            ("return self.layers(x)", "import not_installed", "importing it raised ModuleNotFoundError.*not_installed"),
            ("return self.layers(x)", "from .layers import Layer", r"importing it raised ModuleNotFoundError.*\.layers'$"),
            ("return self.layers(x)", "import sys\nsys.exit(3)", "importing it raised SystemExit: 3"),
            ("return self.layers(x)", "import os\nos._exit(9)", r"its process died \(exit code 9\)"),
        ],
    )
    def test_the_reason_is_said_and_the_exit_code_is_3(
        self, tmp_path: Path, db: Path, forward: str, head: str, message: str
    ) -> None:
        with pytest.raises(CannotEvaluate, match=message) as failure:
            carry_out(own(defence(tmp_path, forward, head)), db)
        assert failure.value.exit_code == 3
        assert "defence.py" in str(failure.value)
        assert count(db) == 0

    @pytest.mark.parametrize("body", ["raise ValueError('no weights')", "import sys; sys.exit('no weights')"])
    def test_a_factory_that_fails_is_named(self, tmp_path: Path, db: Path, body: str) -> None:
        (tmp_path / "defence.py").write_text(f"def net():\n    {body}\n")
        with pytest.raises(CannotEvaluate, match=r"defence.py:net raised (ValueError|SystemExit): no weights"):
            carry_out(own(f"{tmp_path}/defence.py:net"), db)

    @pytest.mark.parametrize("model", ["defence.py:nte", "missing.py:net", "defence.py:Path"])
    def test_a_file_without_the_factory_is_wrong_use(self, tmp_path: Path, db: Path, model: str) -> None:
        defence(tmp_path)
        with pytest.raises(UsageError, match=r"defence.py|missing.py: no such file"):
            carry_out(own(f"{tmp_path}/{model}"), db)

    # Attacks that follow gradients meet the failure, the one before them does not.
    FIRST = fast_suite("noop", "fgsm")
    # Only FGSM, and the search for randomness before it, ask for gradients at the images themselves: multiples of 1/16.
    ATTACKED = (
        "self.asked = getattr(self, 'asked', 0) + int(x.requires_grad and bool((x * 16 % 1 == 0).all()))\nif self.asked > 1:"
    )

    @pytest.mark.parametrize(
        ("act", "message"),
        [
            ("os.abort()", r"its process died \(exit code -6\); what was finished is on record"),
            ("os.kill(os.getpid(), 9)", r"its process died \(exit code -9\)"),
            ("raise torch.OutOfMemoryError('full')", "memory does not hold 16 samples at once; give a smaller --tile"),
            ("raise MemoryError", "memory does not hold 16 samples at once"),
            ("numpy.ones(1 << 50)", "memory does not hold 16 samples at once"),
        ],
    )
    def test_a_crash_leaves_on_record_what_was_finished(self, tmp_path: Path, db: Path, act: str, message: str) -> None:
        model = defence(tmp_path, f"{self.ATTACKED}\n    {act}\nreturn self.layers(x)", "import os, numpy")
        with pytest.raises(CannotEvaluate, match=message):
            carry_out(own(model, suite=self.FIRST), db)
        assert {label: len(found) for label, found in rows(db).items()} == {"clean": 32, "noop": 32, "fgsm": 0}

    @pytest.mark.parametrize(
        "act",
        [
            "self.kept = [torch.ones(1 << 24) + len(str(time.sleep(0.05))) for _ in range(60)]",
            "subprocess.Popen([sys.executable, '-c', 'import time; kept = b\"x\" * 3_000_000_000; time.sleep(600)'])",
        ],
        ids=["itself", "a process that it starts"],
    )
    def test_processes_that_hold_too_much_memory_are_stopped(self, tmp_path: Path, db: Path, act: str) -> None:
        forward = f"{self.ATTACKED}\n    {act}\n    time.sleep(600)\nreturn self.layers(x)"
        model = defence(tmp_path, forward, "import subprocess, sys, time")
        message = r"defence.py:net: its process held \d\.\d\d GB of memory, more than the 2.00 GB of --memory-limit; what was"
        with pytest.raises(CannotEvaluate, match=message):
            carry_out(own(model, suite=self.FIRST, memory_limit=2e9), db, time_limit=300)
        assert {label: len(found) for label, found in rows(db).items()} == {"clean": 32, "noop": 32, "fgsm": 0}

    def test_a_hang_is_stopped_at_the_time_limit(self, tmp_path: Path, db: Path) -> None:
        model = defence(tmp_path, f"{self.ATTACKED}\n    time.sleep(600)\nreturn self.layers(x)", "import time")
        started = time.monotonic()
        with pytest.raises(CannotEvaluate, match=r"defence.py:net: no answer within 4 s; the process was stopped"):
            carry_out(own(model, suite=self.FIRST), db, time_limit=4)
        assert time.monotonic() - started < 30
        assert not [each for each in multiprocessing.active_children() if each.name.startswith("ForkServer")]
        assert len(rows(db)["noop"]) == 32

    def test_a_model_that_begins_an_answer_for_kwbench_and_never_ends_it_is_stopped(
        self, tmp_path: Path, db: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluator_module, "STALLED", 0.5)
        writes = (
            "for file in range(3, 32):\n    try:\n        os.write(file, bytes(7) + b'dhalf')\n"
            "    except OSError:\n        pass\ntime.sleep(600)"
        )
        with pytest.raises(CannotEvaluate, match=r"defence.py:net: began an answer, and sent no more of it for 0.5 s"):
            carry_out(own(defence(tmp_path, writes, "import os, time")), db)

    def test_a_factory_that_hangs_is_stopped_too(self, tmp_path: Path, db: Path) -> None:
        with pytest.raises(CannotEvaluate, match=r"no answer within 1.5 s"):
            carry_out(own(defence(tmp_path, head="import time\ntime.sleep(600)")), db, time_limit=1.5)

    def test_the_time_limit_is_the_models_and_not_that_of_starting_a_process(self, tmp_path: Path, db: Path) -> None:
        carry_out(own(defence(tmp_path), data_dir=SlowToArrive()), db, time_limit=4)
        assert count(db) == 64

    def test_an_attack_that_the_model_makes_raise_leaves_error_rows(self, tmp_path: Path, db: Path) -> None:
        model = defence(tmp_path, "if x.requires_grad:\n    raise ValueError('no gradients')\nreturn self.layers(x)")
        carry_out(own(model, suite=self.FIRST), db)
        found = [row for row in rows(db)["fgsm"] if row["status"] != "wrong"]
        assert {(row["status"], row["note"]) for row in found} == {("error", "ValueError: no gradients")}


def test_running_out_of_memory_travels_between_processes_as_what_it_is() -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("full")

    answer = pickle.loads(pickle.dumps(evaluator_module.result_or_failure("model", full)))
    assert isinstance(answer, torch.OutOfMemoryError)


def test_a_batch_that_does_not_fit_in_the_models_process_is_halved(tmp_path: Path, at_hand: None) -> None:
    found = evaluated(own(defence(tmp_path), n=48, data_dir=SmallMemory()), tmp_path / "full.db")
    assert found == evaluated(own(defence(tmp_path), n=48), tmp_path / "plain.db")


def test_where_memory_holds_a_tile_but_no_more_the_rows_are_the_same(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = request(registry, "resnet18-relu", suite=fast_suite("pgd"), n=64, tile=16, threads=1)
    local, rows = LocalEvaluator(what), range(64)
    clean = local.judge_clean(rows)
    expected = local.judge("pgd", rows, clean, None)
    network, most = local.model.module, list[int]()
    forward = network.forward

    def small_forward(x: torch.Tensor) -> torch.Tensor:
        most.append(len(x))
        if len(x) > 16:
            raise torch.OutOfMemoryError("full")
        return torch.as_tensor(forward(x))

    monkeypatch.setattr(network, "forward", small_forward)
    found = local.judge("pgd", rows, clean, None)
    assert max(most) > 16, "on this machine no larger batch is quicker: the test says nothing"
    assert [(each.sample, each.status, each.prediction) for each in found] == [
        (each.sample, each.status, each.prediction) for each in expected
    ]


# Holds Python's interpreter lock for ever, and has started a daemon, in a session of its own.
STUBBORN = """\
import os, pathlib, re, signal, time

def net():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    receiver, sender = os.pipe()
    if os.fork() == 0:
        os.setsid()
        daemon = os.fork()
        if daemon:
            os.write(sender, str(daemon).encode())
            os._exit(0)
        time.sleep(600)
    draft = pathlib.Path(__file__).with_name("draft")
    draft.write_text(f"{os.getpid()} {os.read(receiver, 20).decode()} {signal.getsignal(signal.SIGINT).name}")
    draft.rename(draft.with_name("processes"))
    ENDING
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux names the processes that left a process group")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_outlives_the_command(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "hang.py").write_text(STUBBORN.replace("ENDING", "re.match(r'(a+)+$', 'a' * 60 + 'b')"))
    # A shell's background job ignores Ctrl-C, and one of `nohup` the end of its terminal; their children inherit that.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); from kwbench.__main__ import main; main()"
    )
    command = [sys.executable, "-c", code, "evaluate", "hang.py:net", "--attack", "fgsm"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    )
    children = _started(tmp_path)
    # A terminal signals the whole group, the kernel and `kill` one process.
    os.killpg(process.pid, how) if how in (signal.SIGINT, signal.SIGHUP) else process.send_signal(how)
    # The pipes are closed too, or this would wait.
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        _kill(children)
        raise
    assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    assert out == ""
    assert err == ("" if how is signal.SIGKILL else "kwbench: interrupted; the same command continues\n")
    _require_gone(children)


@pytest.mark.usefixtures("at_hand")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux names the processes that left a process group")
def test_a_model_that_forks_and_dies_is_noticed_at_once_and_leaves_nothing(tmp_path: Path, db: Path) -> None:
    (tmp_path / "fork.py").write_text(STUBBORN.replace("ENDING", "os._exit(5)"))
    started = time.monotonic()
    with pytest.raises(CannotEvaluate, match=r"fork.py:net: its process died \(exit code 5\)"):
        carry_out(own(f"{tmp_path / 'fork.py'}:net"), db)
    assert time.monotonic() - started < 30
    _require_gone(_started(tmp_path))


def _started(folder: Path) -> list[int]:
    """Return the processes of a STUBBORN model once they run."""
    deadline = time.monotonic() + 180
    while not (folder / "processes").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    *processes, handler = (folder / "processes").read_text().split()
    assert handler == "SIG_IGN"  # else it would tell of Ctrl-C too, with a traceback
    return list(map(int, processes))


def _require_gone(processes: list[int]) -> None:
    """Wait until these processes have ended. Kill them if they do not, for they would keep a core busy for ever."""
    deadline = time.monotonic() + 60
    while left := [process for process in processes if _alive(process)]:
        if time.monotonic() > deadline:
            _kill(left)
            pytest.fail(f"{len(left)} of {len(processes)} processes outlive the command")
        time.sleep(0.05)


def _kill(processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _alive(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class TestRequests:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"eps": "0"}, "eps"),
            ({"eps": "-0.1"}, "eps"),
            ({"eps": "1.5"}, "eps"),
            ({"eps": "much"}, "eps"),
            ({"norm": "l2", "eps": None}, r"--norm l2: give a radius with --eps; the default, linf 0.2, is in another norm"),
            ({"device": "gpu"}, "--device gpu: not usable here"),
            ({"dataset": "digit"}, "did you mean 'digits'"),
            ({"model": "smal"}, "did you mean 'small'"),
            ({"suite": suite_of(["pgdd"])}, "attack 'pgdd' is unknown; did you mean 'pgd'"),
            ({"suite": override(suite_of(["pgd"]), ["pgd.stps=3"])}, "'stps'; did you mean 'steps'"),
            ({"suite": override(suite_of(["transfer"]), ["transfer.surrogate=vgg"])}, "vgg"),
            ({"suite": Suite("one", (SuiteAttack("pgd", "pgd", "stochastic"),))}, "no attack for a deterministic model"),
            ({"norm": "l1", "eps": "1", "suite": suite_of(["mim"])}, "attack 'mim' works in l2, linf, not in l1"),
        ],
        ids=str,
    )
    def test_what_cannot_be_is_refused_by_name(self, registry: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            open_evaluator(request(registry, **options))

    def test_the_threat_is_the_data_sets_unless_the_suite_or_the_user_says_otherwise(self, registry: Path) -> None:
        suite = suite_of(["fgsm"])
        assert str(open_evaluator(request(registry, suite=suite, eps=None)).facts.threat) == "linf 0.2"
        assert str(open_evaluator(request(registry, suite=read_suite("controls"), eps=None)).facts.threat) == "linf 1/255"
        own_threat = Suite("own", suite.attacks, threat=open_evaluator(request(registry, eps="1/8")).facts.threat)
        assert own_threat.threat is not None
        assert open_evaluator(request(registry, suite=own_threat, eps=None)).facts.threat.eps == own_threat.threat.eps
        assert open_evaluator(request(registry, suite=own_threat, eps="0.3")).facts.threat.radius == 0.3
        assert open_evaluator(request(registry, suite=own_threat, norm="l2", eps="2")).facts.threat.norm == "l2"

    def test_a_surrogate_belongs_to_the_run(self, registry: Path, tmp_path: Path) -> None:
        suite = override(suite_of(["transfer"]), ["transfer.surrogate=small"])
        first = open_evaluator(request(registry, suite=suite)).facts
        (tmp_path / "other").mkdir()
        second = open_evaluator(request(write_registry(tmp_path / "other", epochs=1), suite=suite)).facts
        assert first.attacks["transfer"]["surrogate_sha256"] == first.identity["model_sha256"]
        assert second.attacks["transfer"]["surrogate_sha256"] != first.attacks["transfer"]["surrogate_sha256"]

    def test_prose_in_an_entry_does_not_belong_to_the_run(self, registry: Path, tmp_path: Path) -> None:
        before = open_evaluator(request(registry)).facts
        other = write_registry(tmp_path)
        other.write_text(other.read_text().replace("  small:\n", "  small:\n    description: new words\n"))
        facts = open_evaluator(request(other)).facts
        what = request(registry)
        assert description.describe(what, facts).identity == description.describe(what, before).identity


def test_a_cascade_spares_itself_relaxed_gradients_where_no_operation_hides_its_own(registry: Path, tmp_path: Path) -> None:
    (tmp_path / "relaxing.yaml").write_text(
        "cascade: true\nattacks:\n  pgd: {steps: 1}\n  relaxed: {attack: apgd, steps: 1, gradient: {kind: relaxed}}\n"
    )
    suite = read_suite(str(tmp_path / "relaxing.yaml"))
    plain, jumping = (
        open_evaluator(request(registry, model, suite=suite)).facts.not_applicable for model in ("small", "small-random")
    )
    assert "hides its gradient" in plain["relaxed"]
    assert "relaxed" not in jumping
    # Asked for by name, it is tried.
    assert open_evaluator(request(registry, suite=replace(suite, cascade=False))).facts.not_applicable == {}


def test_automatic_focus_is_for_models_that_hide_no_gradient(registry: Path, tmp_path: Path) -> None:
    path = tmp_path / "auto.yaml"
    path.write_text("attacks:\n  apgd: {steps: 1, focus: auto}\n  mine: {attack: apgd, steps: 1, focus: 0.5}\n")

    def focus(model: str, registry: Path | None) -> list[float | None]:
        facts = open_evaluator(Request(model, read_suite(str(path)), registry=registry, n=32, eps="0.1", tile=16)).facts
        return [attack["parameters"]["focus"] for attack in facts.attacks.values()]

    assert focus("small", registry) == [0.1, 0.5]
    assert focus("resnet18-kwta0.1", None) == [None, 0.5]


def test_a_suite_s_automatic_precision_is_a_quicker_one_where_nothing_is_lost_by_it(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "auto.yaml"
    path.write_text(
        "attacks:\n  apgd: {steps: 1, precision: auto}\n  rough: {attack: apgd, steps: 1, precision: bfloat16}\n"
        "  smooth: {attack: apgd, steps: 1, precision: auto, gradient: {kind: smooth, sigma: 0.1, draws: 1}}\n"
        "  square: {steps: 1, precision: auto}\n"
    )
    suite = read_suite(str(path))

    def precisions(model: str, has: bool, **options: Any) -> list[str]:
        monkeypatch.setattr("kwbench.model.search_precision.has_bfloat16", lambda device: has)
        defaults: dict[str, Any] = {"registry": registry, "n": 32, "eps": "0.1", "tile": 16}
        facts = open_evaluator(Request(model, suite, **defaults | options)).facts
        return [attack["parameters"]["precision"] for attack in facts.attacks.values()]

    assert precisions("small", True) == ["bfloat16", "bfloat16", "float32", "float32"], "it has nothing to fold"
    assert precisions("small", False) == ["float32", "bfloat16", "float32", "float32"]
    assert precisions("small", True, norm="l2") == ["float32", "bfloat16", "float32", "float32"], "steps go by more than signs"
    assert precisions("small-random", True) == ["float32", "bfloat16", "float32", "float32"]
    zoo: dict[str, Any] = {"registry": None}
    assert precisions("resnet18-relu", True, **zoo) == ["bfloat16", "bfloat16", "folded", "folded"]
    assert precisions("resnet18-relu", False, **zoo) == ["folded", "bfloat16", "folded", "folded"]
    assert precisions("resnet18-relu", True, norm="l2", **zoo) == ["folded", "bfloat16", "folded", "folded"]
    last_bits = precisions("resnet18-kwta0.1", True, **zoo)
    assert last_bits == ["float32", "bfloat16", "float32", "float32"], "k-WTA is decided by the last bits"


def test_models_that_one_suite_treats_each_in_its_way_are_comparable(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kwbench.model.search_precision.has_bfloat16", lambda device: True)
    path, store = tmp_path / "auto.yaml", Store.open(str(tmp_path / "results.db"), create=True)
    path.write_text("attacks:\n  apgd: {steps: 1, precision: auto, focus: auto, escalate: 1}\n")
    suite = read_suite(str(path))
    plain, jumping = (
        store.register(description.describe(asked, open_evaluator(asked).facts))
        for asked in (
            request(registry, model, suite=suite, eps="0.1", norm="linf", n=32) for model in ("small", "small-random")
        )
    )
    store.close()
    recorded = [[each.spec["parameters"]["precision"] for each in model.spec.attacks[1:]] for model in (plain, jumping)]
    assert recorded == [["bfloat16", "bfloat16"], ["float32", "float32"]]
    assert comparison_key(plain) == comparison_key(jumping)
    assert attacks_key(plain) == attacks_key(jumping)
