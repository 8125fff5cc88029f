"""The command as a process: its address, its end by signals, the same port again, mistakes in a sentence."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import msdeform
from msdeform.cli import main
from msdeform.models.export import export, runtime
from msdeform.train.serving import command, engine
from msdeform.train.serving.options import ServeOptions
from tests.serving.servers import LIMIT, Asking, StandIn, ask, connected, head, picture, until

ADDRESS = " is served at http://127.0.0.1:"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    torch.manual_seed(0)
    msdeform.create_model("detr_tiny").save_pretrained(folder)
    return folder


@contextlib.contextmanager
def process(weights: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server that is ready, and its port."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it, and so would the server
    line = [sys.executable, "-m", "msdeform", "serve", str(weights), "--image-size", "64", "--threads", "1", *words]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            told = server.stdout.readline()
            assert told.startswith(f"tiny{ADDRESS}"), server.communicate()[1]
            yield server, int(told.partition(ADDRESS)[2].partition(";")[0])
        finally:
            server.kill()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_when_what_was_taken_is_answered(weights: Path, sent: signal.Signals, status: int) -> None:
    # what waits for a second image would wait for a minute, if the end did not hurry it
    with process(weights, "--port", "0", "--max-wait", "60000", "--grace", "20") as (server, port):
        asking = Asking(port, picture())
        until(port, "msdeform_queue_images 1.0")
        with connected(port) as half, connected(port) as idle:
            half.sendall(head(1000) + b"\xff")
            until(port, "msdeform_requests_under_way 2.0")
            server.send_signal(sent)
            answer = asking.answer()
            assert answer.status == 200
            assert answer.json["image"] == {"height": 40, "width": 56}
            assert idle.recv(1) == b""
            half.close()
            _, told = server.communicate(timeout=LIMIT)
    assert server.returncode == status
    assert "Traceback" not in told
    with pytest.raises(ConnectionRefusedError):
        connected(port)


def test_the_same_port_again_at_once_after_a_kill(weights: Path) -> None:
    with process(weights, "--port", "0") as (server, port), connected(port) as client:
        client.sendall(head(1000) + b"\xff")
        until(port, "msdeform_requests_under_way 1.0")
        server.kill()
        server.wait(LIMIT)
        # its connections are in their last minute
        with process(weights, "--port", str(port)) as (_, again):
            assert again == port
            assert ask(port, body=picture()).status == 200


LOADING = """
import sys
from msdeform.cli import main
from msdeform.train.serving import service

load = service.open_detector
service.open_detector = lambda options: print("loading", flush=True) or sys.stdin.read() or load(options)
sys.exit(main(["serve", *sys.argv[1:]]))
"""


def test_a_signal_ends_it_while_it_loads(weights: Path) -> None:
    line = [sys.executable, "-c", LOADING, str(weights), "--port", "0", "--image-size", "64", "--threads", "1"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(line, **pipes, text=True) as server:  # type: ignore[call-overload]
        try:
            assert server.stdout.readline() == "loading\n"
            server.send_signal(signal.SIGTERM)
            told, errors = server.communicate("", timeout=LIMIT)  # and the model is loaded
        finally:
            server.kill()
    assert server.returncode == 143
    assert "Traceback" not in errors
    assert told == ""


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["serve", *words]) == 1
    return capsys.readouterr().err.removeprefix("msdeform serve: ").strip()


def test_a_port_in_use_is_told(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused(capsys, str(weights), "--port", str(port)) == f"port {port} is in use; name another with --port"


def test_an_address_of_another_machine_is_told(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "--host: expected an address of this machine, got 192.0.2.1"
    assert refused(capsys, str(weights), "--host", "192.0.2.1", "--port", "0") == sentence


def test_weights_that_cannot_be_read_end_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pt").write_bytes(b"none")
    assert "a.pt" in refused(capsys, str(tmp_path / "a.pt"), "--port", "0")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_a_missing_package_is_told(
    weights: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == package else object())
    assert refused(capsys, str(weights)) == (
        f"msdeform serve needs the package {package.replace('_', '-')}, which is not installed: "
        "pip install 'msdeform[serve]'"
    )


def test_an_exported_file_is_run_by_its_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Any] = []

    def exported(path: Path, *, engine: str, threads: int | None) -> StandIn:
        made.append((path, engine, threads))
        return StandIn()

    runtime = types.ModuleType("msdeform.models.export.runtime")
    runtime.ExportedDetector = exported  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, runtime.__name__, runtime)
    file = tmp_path / "a.onnx"
    assert isinstance(engine.open_detector(ServeOptions(source=file, threads=3)), StandIn)
    engine.open_detector(ServeOptions(source=file, engine="openvino"))
    engine.open_detector(ServeOptions(source=tmp_path / "a.xml"))
    engine.open_detector(ServeOptions(source=tmp_path / "a.pt2"))
    assert made[:2] == [(file, "onnxruntime", 3), (file, "openvino", None)]
    assert made[2:] == [(tmp_path / "a.xml", "openvino", None), (tmp_path / "a.pt2", "pytorch", None)]


def test_an_engine_that_cannot_run_the_source_is_told(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.onnx: expected a file \.pt2 for pytorch"):
        engine.open_detector(ServeOptions(source=tmp_path / "a.onnx", engine="pytorch"))


@pytest.mark.parametrize(("name", "value"), [("device", "cuda:1"), ("model", "detr_tiny"), ("attn_backend", "cpu")])
def test_what_an_exported_file_cannot_be_told_is_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .*got {value}$"):
        engine.open_detector(ServeOptions(source=tmp_path / "a.onnx", **{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "suffix"), [("onnxruntime", ".onnx"), ("openvino", ".xml")])
def test_a_checkpoint_is_exported_for_another_engine(
    weights: Path, name: Any, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(export, "export", lambda model, file, form, checks: written.append((model, file, form.size)))
    monkeypatch.setattr(runtime, "ExportedDetector", lambda path, **settings: StandIn())
    assert isinstance(engine.open_detector(ServeOptions(source=weights, engine=name, threads=3)), StandIn)
    ((model, file, size),) = written
    assert (type(model).__name__, file.suffix, min(size) % 32) == ("Detr", suffix, 0)
    assert not file.parent.exists()


def test_what_is_served_is_the_checkpoint(weights: Path) -> None:
    detector = engine.open_detector(ServeOptions(source=weights, device="cpu"))
    assert detector.kind == "Detr"
    assert not detector.training
    saved = msdeform.load_model(weights).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in detector.state_dict().items())


def test_the_command_prints_a_new_token_and_no_given_one(weights: Path) -> None:
    line = [sys.executable, "-m", "msdeform", "serve", str(weights), "--image-size", "64", "--threads", "1"]
    line += ["--host", "0.0.0.0", "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            first, second = server.stdout.readline(), server.stdout.readline()
            token = re.fullmatch(r"requests need the header Authorization: Bearer (\S{43})\n", first)
            port = re.fullmatch(r"tiny is served at http://0\.0\.0\.0:(\d+); Ctrl-C ends it\n", second)
            assert token is not None
            assert port is not None
            assert ask(int(port[1]), "/model").status == 401
            assert ask(int(port[1]), "/model", headers={"Authorization": f"Bearer {token[1]}"}).status == 200
        finally:
            server.kill()
