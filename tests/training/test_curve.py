"""Learning curves."""

from pathlib import Path

import pytest

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.training import read_curve


def test_a_curve_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match=r"net\.curve\.json: cannot be read"):
        read_curve(tmp_path / "net.safetensors")
    (tmp_path / "net.curve.json").write_text("[]")
    with pytest.raises(DamagedData, match=r"net\.curve\.json: not a learning curve"):
        read_curve(tmp_path / "net.safetensors")
