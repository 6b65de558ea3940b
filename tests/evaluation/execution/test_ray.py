"""Ray: several nodes leave the rows of one process, also while nodes and drivers are killed.

All tests of Ray are in this file, since they share a cluster.
"""

import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kwbench.cli.main import main
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.execution.executors import LocalExecutor
from kwbench.evaluation.execution.tasks import Task
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import Progress, evaluate
from kwbench.record.store import Store
from support.command_line import OWN_MODEL
from support.postgres import Server
from support.ray_cluster import Nodes
from support.small_registry import count, fast_suite, request, rows, write_registry

ray = pytest.importorskip("ray", reason="the Python package ray is not installed")

from kwbench.evaluation.execution.cluster import Cluster, RemoteEvaluator  # noqa: E402
from kwbench.evaluation.execution.ray_executor import RayExecutor  # noqa: E402

# Nodes cannot import this module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def cluster(nodes: Nodes, told: list[str]) -> Iterator[Cluster]:
    connected = Cluster(nodes.address, price=3600.0, tell=told.append)
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"))


# An attack that leaves time to kill nodes and drivers.
_SLOW = """\
import time
from dataclasses import dataclass

from kwbench.attacks.pgd import Pgd


@dataclass(frozen=True)
class Slow(Pgd):
    pause: float = 0.0

    def __call__(self, model, x, y, threat, rng):
        time.sleep(self.pause)
        return super().__call__(model, x, y, threat, rng)
"""
_LATEST = 300


def asked(registry: Path, model: str = "small", **options: Any) -> Request:
    suite = replace(fast_suite("fgsm", "pgd", settings=("pgd.steps=3",)), cascade=True)
    return request(registry, model, **{"suite": suite, "n": 96, "tile": 8, "eps": "0.05", "threads": 1} | options)


def evaluated(what: Request, db: Path, report: Callable[[Progress], None] = lambda _: None, **options: Any) -> dict[str, Any]:
    store = Store.open(str(db), create=True)
    try:
        return rows(db, evaluate(what, store, report, **options))
    finally:
        store.close()


@dataclass(frozen=True)
class Slowly:
    """An evaluation that takes half a second of a node for eight samples, and its rows as one process gives them."""

    request: Request
    rows: dict[str, Any]


@pytest.fixture(scope="module")
def slowly(registry: Path) -> Iterator[Slowly]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(registry.parent)
        Path("slow.py").write_text(_SLOW)
        at_once, slow = (
            asked(
                registry,
                suite=fast_suite("slow.py:Slow", settings=("Slow.steps=2", f"Slow.pause={pause}")),
                n=240,
                batch_size=8,
            )
            for pause in (0.0, 0.5)
        )
        yield Slowly(slow, evaluated(at_once, registry.parent / "at-once.db"))


@dataclass(frozen=True)
class Ends(Task[None]):
    """End the process of the evaluator, and note that in a file."""

    file: Path

    def run(self, evaluator: LocalEvaluator) -> None:
        with self.file.open("a") as file:
            file.write("ended\n")
        os._exit(1)


@pytest.mark.heavy
def test_three_nodes_leave_the_rows_of_one_process_bit_for_bit(
    cluster: Cluster, registry: Path, tmp_path: Path, told: list[str]
) -> None:
    for model, n in (("small", 96), ("small-random", 24)):
        what = asked(registry, model, n=n)
        expected = evaluated(what, tmp_path / f"{model}.db")
        assert evaluated(what, tmp_path / f"{model}-ray.db", open_executor=partial(RayExecutor, cluster)) == expected
    work = [node for node in cluster.work.values() if node.tasks]
    assert len(work) == 3
    cluster.tell_work()
    for node in work:
        # An hour costs 3600 here.
        assert f"{node.name} {node.tasks} tasks, {node.seconds:.0f} s, cost {node.seconds:.4g}" in told[-1]


def test_nothing_is_lost_nor_twice_while_nodes_are_killed(
    nodes: Nodes, cluster: Cluster, slowly: Slowly, tmp_path: Path, told: list[str]
) -> None:
    assert_equal_rows_while_nodes_are_killed(nodes, cluster, slowly, tmp_path, kills=2)
    assert sum("is lost" in line for line in told) >= 2


def test_an_evaluator_that_was_still_loading_counts_as_lost_once_a_node_is(nodes: Nodes, cluster: Cluster) -> None:
    cluster.nodes()
    loading = RemoteEvaluator(None, losses=cluster._losses)
    assert not cluster.is_on_lost_node(loading)
    nodes.kill(nodes.others[0])
    latest = time.monotonic() + _LATEST
    while not cluster.is_on_lost_node(loading):
        assert time.monotonic() < latest
        time.sleep(0.1)
    nodes.add()
    assert not cluster.is_on_lost_node(RemoteEvaluator(None, losses=cluster._losses))


@pytest.mark.trial
def test_nothing_is_lost_nor_twice_while_ten_nodes_are_killed(
    nodes: Nodes, cluster: Cluster, slowly: Slowly, tmp_path: Path
) -> None:
    assert_equal_rows_while_nodes_are_killed(nodes, cluster, slowly, tmp_path, kills=10)


def assert_equal_rows_while_nodes_are_killed(
    nodes: Nodes, cluster: Cluster, slowly: Slowly, tmp_path: Path, kills: int
) -> None:
    """Kill a node at a random moment of an evaluation and start another one, until so many were killed; then compare."""
    moments, working, ended = random.Random(0), threading.Event(), threading.Event()

    def report(progress: Progress) -> None:
        if 0 < progress.done < progress.samples:
            working.set()

    def evaluate_until_the_end() -> int:
        runs = 0
        while not ended.is_set():
            db = tmp_path / f"ray-{runs}.db"
            assert evaluated(slowly.request, db, report, open_executor=partial(RayExecutor, cluster)) == slowly.rows
            assert count(db) == 2 * 240
            runs += 1
        return runs

    with ThreadPoolExecutor(1) as thread:
        try:
            # Ray starts nodes in the main thread only.
            evaluating = thread.submit(evaluate_until_the_end)
            for _ in range(kills):
                working.clear()
                while not working.wait(0.1):
                    assert not evaluating.done() or evaluating.result()
                time.sleep(moments.uniform(0.0, 1.5))
                nodes.kill(nodes.others[0])
                nodes.add()
        finally:
            ended.set()
        assert evaluating.result(_LATEST) >= 1


def make_room(cluster: Cluster) -> None:
    """Let other drivers have the CPUs."""
    for evaluator in list(cluster.evaluators):
        cluster.dismiss(evaluator)


def drive(what: Request, address: str | None, db: str) -> None:
    """Evaluate on the cluster at an address, or in this process."""
    store = Store.open(db, create=True)
    evaluate(what, store, open_executor=LocalExecutor if address is None else partial(RayExecutor, Cluster(address)))


@pytest.mark.trial
def test_a_driver_that_was_killed_continues_where_its_record_ends(
    nodes: Nodes, cluster: Cluster, slowly: Slowly, tmp_path: Path
) -> None:
    db = tmp_path / "ray.db"
    context = multiprocessing.get_context("spawn")
    driver = context.Process(target=drive, args=(slowly.request, nodes.address, str(db)))
    make_room(cluster)
    driver.start()
    latest = time.monotonic() + _LATEST
    while not db.exists() or count(db) < 240 + 16:
        assert driver.is_alive()
        assert time.monotonic() < latest
        time.sleep(0.02)
    driver.kill()
    driver.join()
    before = count(db)
    assert before < 480
    done: list[int] = []
    on_ray = partial(RayExecutor, cluster)
    again = evaluated(slowly.request, db, lambda progress: done.append(progress.done_in_all), open_executor=on_ray)
    assert again == slowly.rows
    assert done[:2] == [240, before]


@pytest.mark.trial
def test_a_driver_on_ray_and_one_of_processes_share_an_evaluation(
    cluster: Cluster, slowly: Slowly, postgres: Server, tmp_path: Path
) -> None:
    url = postgres.database("shared")
    context = multiprocessing.get_context("spawn")
    driver = context.Process(target=drive, args=(slowly.request, None, url))
    driver.start()
    store = Store.open(url, create=True)
    latest = time.monotonic() + _LATEST
    while not store.evaluations():
        assert driver.is_alive()
        assert time.monotonic() < latest
        time.sleep(0.02)
    before = sum(node.tasks for node in cluster.work.values())
    evaluation = evaluate(slowly.request, store, open_executor=partial(RayExecutor, cluster))
    driver.join(_LATEST)
    assert driver.exitcode == 0
    assert rows(url, evaluation) == slowly.rows
    # Each of 240 samples is judged clean and attacked, in tiles of eight.
    assert 0 < sum(node.tasks for node in cluster.work.values()) - before < 2 * 240 / 8
    store.close()


@pytest.mark.trial
def test_what_the_code_of_a_model_raises_is_raised_once(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = tmp_path / "calls"
    body = f"""open({str(calls)!r}, 'a').write('x')
        if len(open({str(calls)!r}).read()) > 40: raise RuntimeError('worn out')
        return self.f(x)"""
    Path("net.py").write_text(OWN_MODEL.format(body=body))
    what = Request("net.py:net", fast_suite("pgd"), n=96, tile=8, eps="0.05", threads=1)
    with pytest.raises(CannotEvaluate, match=r"net.py:net.*worn out"):
        evaluated(what, tmp_path / "ray.db", open_executor=partial(RayExecutor, cluster))


@pytest.mark.trial
def test_code_of_the_users_own_has_the_same_name_and_hash_on_all_nodes(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets").mkdir()
    Path("nets/net.py").write_text(OWN_MODEL.format(body="return self.f(x)"))
    what = Request("nets/net.py:net", fast_suite("fgsm"), n=32, tile=8, eps="0.05", threads=1)
    db = tmp_path / "one.db"
    expected = evaluated(what, db)
    before = count(db)
    # The same evaluation: nothing is left to do.
    assert evaluated(what, db, open_executor=partial(RayExecutor, cluster)) == expected
    assert count(db) == before


@pytest.mark.trial
def test_a_task_in_which_processes_die_on_nodes_that_live_is_given_up(cluster: Cluster, registry: Path, tmp_path: Path) -> None:
    executor = RayExecutor(cluster, asked(registry))
    with pytest.raises(CannotEvaluate, match="small: 3 processes died in one task"):
        list(executor.map([Ends(tmp_path / "ends")]))
    assert (tmp_path / "ends").read_text() == 3 * "ended\n"


def test_gpus_are_asked_of_ray_and_refused_where_it_has_none(cluster: Cluster, nodes: Nodes, registry: Path) -> None:
    with pytest.raises(UsageError, match="--device cuda: the nodes have no GPU"):
        RayExecutor(cluster, asked(registry, device="cuda"))
    with pytest.raises(UsageError, match="--device cuda:1: Ray chooses"):
        RayExecutor(cluster, asked(registry, device="cuda:1"))
    with pytest.raises(UsageError, match=r"--num-gpus 1.5: write a fraction of one GPU, or a whole number"):
        Cluster(nodes.address, num_gpus=1.5)
    halves = Cluster(nodes.address, num_gpus=0.5, threads=2)
    halves._nodes, halves._looked = (
        {"a": {"CPU": 7.0, "GPU": 2.0}, "b": {"CPU": 16.0, "GPU": 1.0}, "c": {"CPU": 8.0}},
        time.monotonic(),
    )
    assert halves.slots() == 3 + 2


@pytest.mark.trial
def test_the_command_evaluates_and_plans_on_a_cluster(
    cluster: Cluster,
    nodes: Nodes,
    registry: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_room(cluster)
    words = ["kwbench", "evaluate", "small", "--registry", str(registry), "--attack", "fgsm", "--n", "32", "--tile", "8"]
    on_ray = ["--executor", "ray", "--address", nodes.address, "--price", "2"]
    for db, more in (("ray.db", on_ray), ("one.db", ["--threads", "1"]), ("one.db", [*on_ray, "--plan"])):
        monkeypatch.setattr(sys, "argv", [*words, "--db", db, *more])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
    captured = capsys.readouterr()
    assert "nodes: " in captured.err
    assert "cost " in captured.err
    assert "1 models, 1 of them complete" in captured.out
    assert rows("ray.db") == rows("one.db")
