"""Learning curves."""

from pathlib import Path

import pytest

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.training import read_curve


def test_a_missing_or_malformed_learning_curve_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match=r"net\.curve\.json: cannot be read"):
        read_curve(tmp_path / "net.safetensors")
    (tmp_path / "net.curve.json").write_text("[]")
    with pytest.raises(DamagedData, match=r"net\.curve\.json: not a learning curve"):
        read_curve(tmp_path / "net.safetensors")
