"""Command lines run in this process, and what their answers must look like."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
FAST = ("--attack", "noop,fgsm,pgd", "--set", "pgd.steps=5", "--n", "48", "--eps", "0.08", "--tile", "16")

# A model of one's own; `body` is what its forward pass does.
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
    """A clear message, that exit code, nothing on stdout and no traceback."""
    assert answer.code == code, answer
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert "Error" not in answer.err.replace("Error: ", "")
    for part in parts:
        assert part in answer.err
    message = [line for line in answer.err.splitlines() if line.startswith(("kwbench: ", "Error: "))]
    assert len(message) == 1, answer.err
