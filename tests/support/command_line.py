"""Command lines that run in the process of the test, and a check of their errors."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
FAST = ("--attack", "noop,fgsm,pgd", "--set", "pgd.steps=5", "--n", "48", "--eps", "0.08", "--tile", "16")

# A user's file with a factory `net`; `body` is the body of its forward pass.
OWN_MODEL = """\
import torch
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        {body}


def net():
    return Net()
"""


@dataclass
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Kwbench = Callable[..., Answer]


def refused(answer: Answer, code: int, *parts: str) -> None:
    """Require this exit code, one message with these parts, an empty stdout and no traceback."""
    assert answer.code == code, answer
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert "Error" not in answer.err.replace("Error: ", "")
    for part in parts:
        assert part in answer.err
    message = [line for line in answer.err.splitlines() if line.startswith(("kwbench: ", "Error: "))]
    assert len(message) == 1, answer.err
