"""The identity of a module follows everything that it can reach, and nothing that belongs to the process."""

import argparse
import functools
import importlib
import io
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kwbench.networks.in_memory import loaded_in_memory
from kwbench.networks.reachable import Walk

GLOBAL = {"scale": 1}


class Holder(nn.Module):
    """Holds something, in any form."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held


class Plain:
    def __init__(self, value: Any) -> None:
        self.value, self.itself = value, self


class Slotted:
    __slots__ = ("__private", "value")

    def __init__(self, value: Any) -> None:
        self.value, self.__private = 0, value


@dataclass
class Record:
    value: Any
    more: list[Any] = field(default_factory=list)


class Kind(Enum):
    ONE = 1
    TWO = 2


Named = namedtuple("Named", "value")


def closure(value: Any) -> Callable[[Tensor], Any]:
    def scaled(x: Tensor) -> Any:
        return x * value

    return scaled


def cycle(value: Any) -> list[Any]:
    held: list[Any] = [value]
    held.append({"again": held})
    return held


def network(value: float) -> nn.Module:
    made = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    for weights in made.parameters():
        nn.init.constant_(weights, value)
    return made.eval().requires_grad_(False)


def quantised(value: int) -> Any:
    return torch.ao.quantization.quantize_dynamic(network(value), {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]


def hooked(value: int) -> nn.Module:
    made = network(1)
    made.register_forward_hook(lambda module, inputs, outputs: outputs * value)
    return made


def class_attribute(value: int) -> type:
    return type("Settings", (), {"value": value})


KINDS: dict[str, Callable[[int], Any]] = {
    "object with a cycle": Plain,
    "private slot": Slotted,
    "dataclass": lambda value: Record(0, [value]),
    "Namespace": lambda value: argparse.Namespace(scale=value),
    "SimpleNamespace": lambda value: SimpleNamespace(scale=value),
    "cyclic list": cycle,
    "named tuple": Named,
    "deque": lambda value: deque([value]),
    "default of a dictionary": lambda value: defaultdict(lambda: value),
    "ordered dictionary": lambda value: OrderedDict(a=value),
    "user dictionary": lambda value: UserDict(a=value),
    "counter": lambda value: Counter("a" * value),
    "set": lambda value: {"a", "b", value},
    "set of objects": lambda value: {Plain(value), Plain(0)},
    "class attribute": class_attribute,
    "enumeration": Kind,
    "fraction": lambda value: Fraction(value, 7),
    "bytes": lambda value: bytearray([value]),
    "iterator": lambda value: itertools.cycle([value]),
    "closure": closure,
    "decorated closure": lambda value: torch.no_grad()(closure(value)),
    "partial": lambda value: functools.partial(closure, value),
    "cached function": lambda value: functools.lru_cache(closure(value)),
    "bound method": lambda value: Record(value).__eq__,
    "tensor in a list": lambda value: [torch.tensor([float(value)])],
    "bfloat16 tensor": lambda value: torch.full((2,), value, dtype=torch.bfloat16),
    "float8 tensor": lambda value: torch.full((2,), float(value)).to(torch.float8_e4m3fn),
    "complex tensor": lambda value: torch.full((2,), 1j * value).conj(),
    "sparse tensor": lambda value: (torch.eye(3) * value).to_sparse(),
    "compressed sparse tensor": lambda value: (torch.eye(3) * value).to_sparse_csr(),
    "quantised tensor": lambda value: torch.quantize_per_tensor(torch.ones(3), 0.1 * value, 0, torch.quint8),
    "tensor quantised by channel": lambda value: torch.quantize_per_channel(
        torch.ones(2, 2), torch.tensor([0.1, 0.1 * value]), torch.zeros(2, dtype=torch.long), 0, torch.qint8
    ),
    "array": lambda value: np.full(3, value)[::2],
    "array of objects": lambda value: np.array([None, value], dtype=object),
    "masked array": lambda value: np.ma.masked_array([1, 2], [value == 1, False]),
    "record array": lambda value: np.array([(value, 0.5)], dtype=[("a", "i1"), ("b", "f8")]),
    "generator of torch": lambda value: torch.Generator().manual_seed(value),
    "generator of NumPy": np.random.default_rng,
    "old generator of NumPy": np.random.RandomState,
    "generator of Python": random.Random,
    "module in a list": lambda value: [network(value)],
    "scripted module": lambda value: torch.jit.script(network(value)),
    "quantised module": quantised,
    "traced graph": lambda value: torch.fx.symbolic_trace(network(value)),
    "compiled module": lambda value: torch.compile(network(value), backend="eager"),
    "compiled closure": lambda value: torch.compile(closure(value), backend="eager"),
    "hook": hooked,
}


def identity(held: Any) -> str:
    return Walk().follow(Holder(held)).hexdigest()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quant:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_equal_contents_have_one_identity_and_others_another(kind: str) -> None:
    first, again, other = (identity(KINDS[kind](value)) for value in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    "made",
    [
        *(threading.Lock, threading.Thread, io.StringIO, lambda: torch.device("cpu"), lambda: sys.modules["os"]),
        *(object, lambda: (number for number in range(3)), lambda: torch.compile(network(1), backend="eager")),
    ],
)
def test_what_belongs_to_the_process_is_left_out(made: Callable[[], Any]) -> None:
    first, second = made(), made()
    assert identity(first) == identity(second)


def test_the_global_generators_are_left_out_as_they_are_seeded_before_every_pass() -> None:
    held = [np.random.mtrand._rand, torch.default_generator, random.random]
    before = identity(held)
    drawn = np.random.rand(), torch.rand(1), random.random()
    assert len(drawn) == 3
    assert identity(held) == before


def test_globals_that_the_code_uses_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(Holder):
        def forward(self, x: Tensor) -> Tensor:
            return self.scaled(x)

        def scaled(self, x: Tensor) -> Tensor:
            return torch.stack([part * GLOBAL["scale"] for part in x])

    before = loaded_in_memory(Scaled(None)).sha256
    assert loaded_in_memory(Scaled(None)).sha256 == before
    monkeypatch.setitem(GLOBAL, "scale", 2)
    assert loaded_in_memory(Scaled(None)).sha256 != before


def test_attributes_of_the_users_modules_that_the_code_names_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are often a module: only the values that the code reads change the model."""
    (tmp_path / "own_settings.py").write_text("SCALE = 1\nOTHER = 1\n")
    (tmp_path / "own_network.py").write_text("import own_settings\ndef scaled(x):\n    return x * own_settings.SCALE\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings, network = (importlib.import_module(name) for name in ("own_settings", "own_network"))
    before = identity(network.scaled)
    monkeypatch.setattr(settings, "OTHER", 2)
    assert identity(network.scaled) == before
    monkeypatch.setattr(settings, "SCALE", 2)
    assert identity(network.scaled) != before


def test_a_method_given_to_a_librarys_class_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    before = loaded_in_memory(nn.Sequential(nn.ReLU())).sha256
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: -x)
    assert loaded_in_memory(nn.Sequential(nn.ReLU())).sha256 != before


def test_modules_are_found_wherever_they_are_held() -> None:
    held = [network(1), Plain(network(2)), {"a": (network(3),)}, closure(network(4)), functools.partial(closure, network(5))]
    modules = Walk(hashing=False).follow(Holder(held)).modules
    assert sum(isinstance(module, nn.Linear) for module in modules) == 5


def test_an_own_generator_is_noted_and_a_global_one_is_not() -> None:
    assert Walk().follow(Holder(Plain(np.random.default_rng(0)))).draws
    assert not Walk().follow(Holder(Plain(random.random))).draws


def test_a_huge_object_takes_no_more_than_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kwbench.networks.reachable.LIMIT", 10_000)
    start = time.process_time()
    assert not Walk().follow(Holder(list(range(1_000_000)))).truncated
    walk = Walk().follow(Holder([[number] for number in range(100_000)]))
    assert walk.truncated
    assert time.process_time() - start < 10


def test_a_fresh_process_with_another_hash_seed_finds_the_same_identity(tmp_path: Path) -> None:
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "bench")]!r}
from networks.test_reachable import KINDS, identity
import json; print(json.dumps({{kind: identity(make(1)) for kind, make in KINDS.items()}}))
"""
    answers = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        for seed in ("1", "2")
    ]
    assert answers[0].returncode == 0, answers[0].stderr
    assert json.loads(answers[0].stdout) == json.loads(answers[1].stdout)
