"""What executes tasks: a cluster that is not there, and Ray where it is not installed."""

import socket

import pytest

from support.command_line import Kwbench, refused


def test_where_ray_is_not_installed_the_message_says_how_to_install_it(kwb: Kwbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kwbench.cli.executors.find_spec", lambda _: None)
    refused(kwb("evaluate", "small", "--executor", "ray"), 2, "--executor ray", "pip install 'kwbench[ray]'")


@pytest.mark.parametrize("kind", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_named_at_once_with_what_starts_one(kwb: Kwbench, kind: str) -> None:
    pytest.importorskip("ray", reason="the Python package ray is not installed")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"{kind}127.0.0.1:{closed.getsockname()[1]}"
        answer = kwb("evaluate", "small", "--executor", "ray", "--address", address)
    assert answer.code == 3
    assert f"--address {address}: no Ray cluster answers" in answer.err
    assert "`ray start --head` starts one" in answer.err


@pytest.mark.parametrize(
    "address", ["ray://", "ray://somewhere", "somewhere:", ":6379", "somewhere:port", "somewhere:0", "somewhere:65536"]
)
def test_an_address_without_a_host_or_a_port_is_refused_with_those_that_there_are(kwb: Kwbench, address: str) -> None:
    pytest.importorskip("ray", reason="the Python package ray is not installed")
    answer = kwb("evaluate", "small", "--executor", "ray", "--address", address)
    refused(answer, 2, f"--address {address}: write auto, local, HOST:PORT or ray://HOST:PORT")


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "1.5", "1e-5"])
def test_a_number_of_gpus_that_ray_cannot_give_is_refused_before_it_is_asked(kwb: Kwbench, number: str) -> None:
    pytest.importorskip("ray", reason="the Python package ray is not installed")
    answer = kwb("evaluate", "small", "--executor", "ray", "--address", "127.0.0.1:1", "--num-gpus", number)
    refused(answer, 2, f"--num-gpus {float(number):g}: write a fraction of one GPU, or a whole number")
