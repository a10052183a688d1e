"""Batches that agents on other machines make are the same to the bit. An agent that would make others is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

import prefetchd
from prefetchd.cli.views.reports import describe
from prefetchd.client.batch import leaves_of
from prefetchd.daemon.memory.plan import bridge_share
from prefetchd.daemon.metrics import AGENT_COUNTERS, BY_AGENT, _Collector
from prefetchd.errors import ConfigError
from prefetchd.remote import wire
from prefetchd.remote.link import LinkEnded
from tests.agents import AgentProcess, FakeAgent, make_certificates, running_agent, token_file
from tests.conftest import wait_until
from tests.detection import paint
from tests.images import write_jpeg
from tests.process.commands import run_command
from tests.records import jpeg, write_tar

QUICK: dict[str, Any] = {"num_workers": 1, "batch_size": 4, "image_size": 40}
EPOCHS = 30  # more batches than the ring has slots: those are made before an agent has joined


@pytest.fixture
def agent(tmp_path: Path, nothing_left: None) -> Iterator[AgentProcess]:
    with running_agent(tmp_path) as started:
        yield started


def content(loader: prefetchd.Loader) -> list[Any]:
    """Everything that the batches hold: names, shapes and bytes."""
    return [(batch.epoch, batch.index, batch.sample_ids.tolist(), *map(_bytes, leaves_of(batch))) for batch in loader]


def _bytes(leaf: Any) -> Any:
    return (leaf.dtype.str, leaf.shape, leaf.tobytes()) if isinstance(leaf, np.ndarray) else list(leaf)


def wait_joined(loader: prefetchd.Loader, n_agents: int = 1) -> None:
    wait_until(lambda: len(loader.status()["agents"]) == n_agents, "the agents have joined", 60)


def by_agents(tmp_path: Path, agents: str, source: object, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return what a loader with agents gives, and its daemon's report at the end."""
    given = {**QUICK, **options, "agents": agents, "token_file": token_file(tmp_path)}
    with prefetchd.batches(source, epochs=EPOCHS, **given) as loader:  # type: ignore[arg-type]
        wait_joined(loader, agents.count(",") + 1)
        return content(loader), loader.status()


def assert_same_as_local(tmp_path: Path, agent: AgentProcess, source: object, **options: Any) -> dict[str, Any]:
    with prefetchd.batches(source, epochs=EPOCHS, **{**QUICK, **options}) as loader:  # type: ignore[arg-type]
        local = content(loader)
    remote, report = by_agents(tmp_path, agent.address, source, **options)
    assert remote == local
    (seen,) = report["agents"]
    assert seen["samples"] > 0, "the agent made none of it"
    assert report["reader_crashes"] == 0
    return report


def test_list_with_augmentation_and_shuffle(tmp_path, agent, photographs):
    assert_same_as_local(tmp_path, agent, photographs, shuffle=True, augment="random_resized_crop, hflip, color_jitter")


def test_bridge_is_in_the_footprint_and_takes_what_is_planned(tmp_path, agent, photographs):
    given = {**QUICK, "agents": agent.address, "token_file": token_file(tmp_path)}
    with prefetchd.batches(photographs, epochs=EPOCHS, **given) as loader:
        wait_joined(loader)
        content(loader)
        children = psutil.Process(loader.status()["pid"]).children()
        (bridge,) = [child for child in children if "prefetchd.remote.bridge" in child.cmdline()]
        taken = loader.status()["memory"]["process_bytes"][str(bridge.pid)]
        assert 0 < taken < bridge_share(1)


def test_floats_and_weights(tmp_path, agent, photographs):
    weights = np.arange(50) + 1.0
    assert_same_as_local(
        tmp_path, agent, photographs, weights=weights, dtype="float32", scale=1 / 255, layout="nchw", batch_size=7
    )


def test_tar_shards(tmp_path, agent):
    for shard in range(3):
        members: list[tuple[str, Any]] = []
        for number in range(shard * 10, shard * 10 + 10):
            members += [(f"n{number}.cls", str(number)), (f"n{number}.jpg", jpeg(number))]
        write_tar(tmp_path / f"s-{shard:03d}.tar", members)
    assert_same_as_local(tmp_path, agent, f"{tmp_path}/s-{{000..002}}.tar", shuffle=True)


def test_fields_with_boxes_and_masks(tmp_path, agent):
    rows = []
    for number in range(24):
        image = cv2.imdecode(np.frombuffer(jpeg(number), np.uint8), cv2.IMREAD_COLOR)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        cv2.imwrite(str(tmp_path / f"m{number}.png"), image[..., 0] // 60)
        rows.append({"path": f"{number}.png", "mask": f"m{number}.png", "label": number % 3, "text": "x" * number})
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    fields = {
        "image": "image(column=path)", "mask": "mask(column=mask)", "label": "label(column=label)",
        "text": "text(column=text)",
    }  # fmt: skip
    assert_same_as_local(tmp_path, agent, tmp_path / "list.jsonl", fields=fields, augment="hflip, rotate")
    painted = paint(tmp_path / "painted")
    assert_same_as_local(tmp_path, agent, painted.coco(), target="boxes", augment="hflip", batch_size=4)


def test_encoded_images(tmp_path, agent, photographs):
    given = {**QUICK, "encoded_bytes": 500_000}
    with prefetchd.batches(photographs, epochs=EPOCHS, **given) as loader:
        local = [(batch.x["length"].tolist(), batch.x["bytes"].sum(axis=1).tolist()) for batch in loader]
    with prefetchd.batches(
        photographs, epochs=EPOCHS, **given, agents=agent.address, token_file=token_file(tmp_path)
    ) as loader:
        wait_joined(loader)
        remote = [(batch.x["length"].tolist(), batch.x["bytes"].sum(axis=1).tolist()) for batch in loader]
        assert sum(seen["samples"] for seen in loader.status()["agents"]) > 0
    assert remote == local


def test_mixture(tmp_path, agent, photographs):
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "other.txt").write_text("".join(f"{number}.jpg {number}\n" for number in range(10)))
    mix = {str(photographs): 0.6, str(tmp_path / "other.txt"): 0.4}
    assert_same_as_local(tmp_path, agent, None, mix=mix, shuffle=True)


def test_buckets_of_several_sizes(tmp_path, agent):
    shapes = [(60, 60), (90, 160), (160, 90), (50, 52), (100, 75)]
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number, shapes[number % 5]))
    (tmp_path / "list.txt").write_text("".join(f"{number}.jpg {number}\n" for number in range(20)))
    assert_same_as_local(
        tmp_path, agent, tmp_path / "list.txt", image_size=["48x48", "36x64", "64x36"], shuffle=True, batch_size=3
    )


def test_bad_samples_are_those_of_this_machine(tmp_path, agent):
    """An agent only reports them: each is confirmed here before it counts."""
    for number in range(30):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number) if number % 7 else b"no image")
    (tmp_path / "list.txt").write_text("".join(f"{number}.jpg {number}\n" for number in range(30)))
    for policy in ("skip", "substitute"):
        report = assert_same_as_local(tmp_path, agent, tmp_path / "list.txt", on_error=policy)
        assert report["bad_samples"] == 5


def test_agent_has_a_cache_of_its_own(tmp_path, photographs):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with running_agent(tmp_path, "--cache", theirs) as agent:
        assert_same_as_local(tmp_path, agent, photographs, cache=ours, cache_image_size=64, augment="hflip")
        assert_same_as_local(tmp_path, agent, photographs, augment="random_resized_crop")  # which cannot be kept
    assert list(theirs.rglob("*.rows"))


def test_agent_that_cannot_read_the_data_makes_no_sample_bad(tmp_path, photographs, capfd):
    """Its faults are looked at here, where all is well. It stands for a machine without the file system."""

    def fail(peer: Any, task: wire.Task, parts: list[memoryview]) -> None:
        faults = [
            wire.Fault(row, row, "a.jpg", "the file is missing", True, False)
            for row in range(task.first_row, task.first_row + task.n_rows)
        ]
        peer.send(wire.Rows(task.task, faults, 0.001, 0.0, 0, 0.0), parts, deadline_s=10)

    fake = FakeAgent(fail)
    try:
        with prefetchd.batches(photographs, **QUICK) as loader:
            fake.digest = loader.state_dict()["manifest_digest"]
            local = content(loader)
        given = {**QUICK, "agents": fake.address, "token_file": token_file(tmp_path)}
        with prefetchd.batches(photographs, epochs=10, **given) as loader:
            wait_joined(loader)
            remote = content(loader)
            report = loader.status()
            assert report["bad_samples"] == 0
            assert report["agents"][0]["samples"] == 0
            assert report["agents"][0]["unread"] >= 16
        said = capfd.readouterr().err
        assert said.count(f"agent {fake.address} cannot make ") == 1
        assert "samples, such as a.jpg: the file is missing; the readers of this machine make them; see that" in said
        assert [each[1:] for each in remote] == [each[1:] for each in local] * 10
        assert fake.tasks
    finally:
        fake.stop()


# --- who joins


def missing(tmp_path: Path, address: str, source: object, **options: Any) -> str:
    """Return why an agent does not join; the batches come all the same."""
    given = {**QUICK, "agents": address, "token_file": token_file(tmp_path), **options}
    with prefetchd.batches(source, **given) as loader:  # type: ignore[arg-type]
        wait_until(lambda: loader.status()["agents_missing"], "the agent is refused", 60)
        assert sum(len(batch.y) for batch in loader) > 0
        reason: str = loader.status()["agents_missing"][address]
        return reason


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_agent_that_is_stopped_while_it_starts_leaves_no_folder(tmp_path, number):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    agent = subprocess.Popen(
        [sys.executable, "-m", "prefetchd", "agent", "--listen", "127.0.0.1:0", "--token-file", token_file(tmp_path)],
        env=os.environ | {"TMPDIR": str(temporary)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: os.listdir(temporary), "the probe has a folder", 20)
        agent.send_signal(number)
        assert agent.wait(20) in (130, -number)
        wait_until(lambda: not os.listdir(temporary), "the folder is removed", 20)
    finally:
        agent.kill()
        agent.wait()


def test_agent_with_another_token_is_refused(tmp_path, agent, photographs):
    other = token_file(tmp_path, "f" * 32)
    assert "another token" in missing(tmp_path, agent.address, photographs, token_file=other)


MOUNTED = ("unshare", "-m", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"')


@pytest.mark.parametrize(
    ("other", "what"), [(b"longer", "size"), (b"", "time of modification")], ids=["other-size", "other-time"]
)
def test_agent_that_sees_other_files_under_the_same_paths_is_refused(tmp_path, other, what):
    here, there = tmp_path / "here", tmp_path / "there"
    if subprocess.run([*MOUNTED, tmp_path, tmp_path, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make mounts of its own")
    for folder in (here, there):
        (folder / "cat").mkdir(parents=True)
        write_jpeg(folder / "cat/0.jpg", (40, 60))
    shutil.copystat(here / "cat/0.jpg", there / "cat/0.jpg")
    os.utime(there / "cat/0.jpg", ns=(0, (here / "cat/0.jpg").stat().st_mtime_ns - (not other) * 10**9))
    with (there / "cat/0.jpg").open("ab") as file:
        file.write(other)
    agent = AgentProcess(tmp_path, prefix=[*MOUNTED, str(there), str(here)])
    try:
        reason = missing(tmp_path, agent.address, here, image_size=32, batch_size=1)
        assert f"{here}/cat/0.jpg is another file on the agent's machine (its {what} is not the same); mount" in reason
    finally:
        agent.stop()


def test_agent_that_would_make_other_bytes_is_refused_by_name(tmp_path, photographs):
    with prefetchd.batches(photographs, **QUICK) as loader:
        digest = loader.state_dict()["manifest_digest"]

    def never(peer: Any, task: wire.Task, parts: list[memoryview]) -> None:
        raise LinkEnded("it was given work")

    for changes, why in (
        ({"versions": {"opencv": "3.4"}}, "opencv is 3.4 there and"),
        ({"versions": {"prefetchd": "0.0.1 (00)"}}, "prefetchd is 0.0.1 (00) there and"),
        ({"probe": {"cubic crop": "00"}}, "other pixels (of the probe: cubic crop)"),
        ({"digest": "ffff"}, "the data's digest is ffff there"),
        ({"digest": digest, "data_versions": {"decoder": "x"}}, "decoder is not the same"),
    ):
        fake = FakeAgent(never, **changes)  # type: ignore[arg-type]
        try:
            assert why in missing(tmp_path, fake.address, photographs)
            assert not fake.tasks
        finally:
            fake.stop()


def test_address_where_nobody_listens_is_asked_again(tmp_path, photographs):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {**QUICK, "agents": f"127.0.0.1:{port}", "token_file": token_file(tmp_path)}
    with prefetchd.batches(photographs, epochs=None, **given) as loader:
        wait_until(lambda: loader.status()["agents_missing"], "it is missed", 60)
        assert "cannot be reached" in loader.status()["agents_missing"][f"127.0.0.1:{port}"]
        with running_agent(tmp_path, port=port):
            wait_joined(loader)
            assert not loader.status()["agents_missing"]
        next(iter(loader))


def test_users_functions_are_imported_only_if_the_agent_allows_it(tmp_path, photographs, monkeypatch):
    module = tmp_path / "my_functions.py"
    module.write_text("import cv2\n\ndef brighter(image, rng):\n    return cv2.add(image, 7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with running_agent(tmp_path) as agent:
        why = missing(tmp_path, agent.address, photographs, transform="my_functions:brighter")
        assert "may not import functions (my_functions:brighter)" in why
    with running_agent(tmp_path, "--allow-code", "--python-path", tmp_path) as agent:
        assert_same_as_local(tmp_path, agent, photographs, transform="my_functions:brighter")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "my_functions.py").write_text(module.read_text() + "# another\n")
    with running_agent(tmp_path, "--allow-code", "--python-path", theirs) as agent:
        why = missing(tmp_path, agent.address, photographs, transform="my_functions:brighter")
        assert "the code of transform is not the same" in why
    sys.modules.pop("my_functions", None)


def test_agent_whose_budget_holds_no_reader_says_what_would_do(tmp_path, photographs):
    with running_agent(tmp_path, "--memory-budget", "80MiB") as agent:
        assert "it takes" in missing(tmp_path, agent.address, photographs)


def test_two_daemons_share_an_agent_evenly(tmp_path, photographs):
    given = {**QUICK, "token_file": token_file(tmp_path)}
    with running_agent(tmp_path, "--num-workers", 2) as agent:
        with prefetchd.batches(photographs, epochs=3, agents=agent.address, **given) as one:
            wait_joined(one)
            assert one.status()["agents"][0]["readers"] == 2
            with prefetchd.batches(photographs, epochs=3, agents=agent.address, **given) as two:
                wait_joined(two)
                wait_until(lambda: one.status()["agents"][0]["readers"] == 1, "the first one shares")
                assert two.status()["agents"][0]["readers"] == 1
                assert len(agent.sessions()) == 2
                assert content(one) == content(two)
            wait_until(lambda: one.status()["agents"][0]["readers"] == 2, "all readers are the first one's again")
        wait_until(lambda: not agent.sessions(), "nothing is left of its daemons")


# --- what the agent is sent


def test_agent_outlives_what_strangers_send(tmp_path, agent, photographs):
    """Noise, half a greeting, a frame that is too large, a proof without the token: none keeps daemons from it."""
    rng = np.random.default_rng(0)
    hello = wire.frame_head(wire.Hello(wire.PROTOCOL, bytes(32)))
    held = []
    for data in (
        b"", b"\0", rng.bytes(5000), wire.MAGIC, hello[:20], hello, hello + rng.bytes(100),
        hello + wire.frame_head(wire.Proof(bytes(32))), wire.frame_head(wire.Tasks([])),
        wire.HEADER.pack(wire.MAGIC, 0, 1 << 31, 1 << 60, 0),
    ):  # fmt: skip
        sock = socket.create_connection(("127.0.0.1", agent.port), timeout=10)
        sock.sendall(data)
        held.append(sock)
    assert_same_as_local(tmp_path, agent, photographs)
    for sock in held:
        sock.close()
    assert "Traceback" not in agent.log


def test_tls_with_certificates_of_both_sides(tmp_path, photographs):
    make_certificates(tmp_path, {"agent": "IP:127.0.0.1", "daemon": "DNS:daemon.example"})
    tls = {"tls_ca": tmp_path / "ca.pem", "tls_cert": tmp_path / "daemon.pem"}
    words = ("--tls-cert", tmp_path / "agent.pem", "--tls-ca", tmp_path / "ca.pem")
    with running_agent(tmp_path, *words) as agent:
        remote, report = by_agents(tmp_path, agent.address, photographs, **tls)
        with prefetchd.batches(photographs, epochs=EPOCHS, **QUICK) as loader:
            assert remote == content(loader)
        assert report["agents"][0]["samples"] > 0
        assert "it speaks TLS and this daemon does not; give tls_ca" in missing(tmp_path, agent.address, photographs)
        assert missing(tmp_path, agent.address, photographs, tls_ca=tmp_path / "ca.pem")
    with running_agent(tmp_path) as agent:
        assert "it speaks no TLS" in missing(tmp_path, agent.address, photographs, **tls)


# --- options


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"agents": "somewhere"}, "agents='somewhere'"),
        ({"agents": "a:99999", "token_file": "t"}, "must be HOST:PORT"),
        ({"agents": "a:1"}, "cannot use agents without token_file"),
        ({"token_file": "t"}, "cannot use token_file without agents"),
    ],
)
def test_options_that_do_not_go_together_are_refused(photographs, options, why):
    with pytest.raises(ConfigError, match=why):
        prefetchd.batches(photographs, **options)


def test_arrays_are_not_decoded_elsewhere(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((20, 3)))
    with pytest.raises(ConfigError, match="cannot use agents with arrays"):
        prefetchd.batches(tmp_path / "x.npy", agents="127.0.0.1:1", token_file=token_file(tmp_path))


def test_data_sets_that_are_arrays_are_read_here_beside_others(tmp_path, agent, photographs, serve):
    np.save(tmp_path / "x.npy", np.arange(60.0).reshape(20, 3))
    serve(
        f"arrays={tmp_path / 'x.npy'}", f"images={photographs}", "--batch-size", 4, "--images.image-size", 40,
        "--num-workers", 1, "--agents", agent.address, "--token-file", token_file(tmp_path),
    )  # fmt: skip
    with prefetchd.batches(dataset="images", epochs=EPOCHS) as images:
        wait_joined(images)
        with prefetchd.batches(photographs, epochs=EPOCHS, **QUICK) as local:
            assert content(images) == content(local)
        assert images.status()["agents"][0]["samples"] > 0
    with prefetchd.batches(dataset="arrays", epochs=3) as arrays:
        assert np.concatenate([batch.x for batch in arrays]).tolist() == np.arange(60.0).reshape(20, 3).tolist() * 3


def test_digests_and_states_do_not_know_about_agents(tmp_path, agent, photographs):
    """A run goes on elsewhere, in the middle of an epoch, and back."""
    with prefetchd.batches(photographs, shuffle=True, **QUICK) as loader:
        batches = iter(loader)
        first = [next(batches).sample_ids.tolist() for _ in range(3)]
        state = loader.state_dict()
        del batches
    given = {**QUICK, "agents": agent.address, "token_file": token_file(tmp_path)}
    with prefetchd.batches(photographs, shuffle=True, **given) as loader:
        loader.load_state_dict(state)
        rest = [batch.sample_ids.tolist() for batch in loader]
        assert loader.state_dict()["config_digest"] == state["config_digest"]
    assert sorted(number for ids in first + rest for number in ids) == list(range(50))


def test_command_says_what_is_wrong(tmp_path):
    (tmp_path / "open").write_text("x" * 32)
    os.chmod(tmp_path / "open", 0o644)
    for words, why in (
        (("--token-file", tmp_path / "none"), "cannot read --token-file"),
        (("--token-file", tmp_path / "open"), "every user of this machine can read it"),
        (("--token-file", token_file(tmp_path), "--listen", "here"), "cannot listen on 'here'"),
        (("--token-file", token_file(tmp_path), "--tls-ca", tmp_path / "open"), "cannot use"),
        (("--token-file", token_file(tmp_path), "--tls-key", "k"), "cannot use --tls-key without --tls-cert"),
        (("--token-file", token_file(tmp_path), "--cache-size", "1GiB"), "cannot use --cache-size without a cache"),
        (("--token-file", token_file(tmp_path), "--memory-budget", "10MiB"), "alone takes 72.0 MiB; give more"),
    ):
        result = run_command("agent", *words)
        assert result.returncode == 1
        assert why in result.stderr
        assert result.stderr.count("\n") == 1


def test_agent_serves_with_stdout_closed(tmp_path):
    command = [sys.executable, "-m", "prefetchd", "agent", "--listen", "127.0.0.1:0", "--num-workers", "1"]
    with subprocess.Popen(
        ["sh", "-c", 'exec "$0" "$@" >&-', *command, "--token-file", token_file(tmp_path)],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert "ready: 127.0.0.1:" in process.stderr.readline()
        process.terminate()
        assert process.stderr.read() == "prefetchd: stopped\n"
    assert process.returncode == 0


def test_status_and_metrics_name_the_agent(tmp_path, agent, photographs):
    pytest.importorskip("prometheus_client")
    given = {**QUICK, "agents": agent.address, "token_file": token_file(tmp_path)}
    with prefetchd.batches(photographs, epochs=EPOCHS, **given) as loader:
        wait_joined(loader)
        content(loader)
        report = loader.status()
    assert f"{agent.address}: 1 reader" in describe(report)
    families = list(_Collector(lambda: report).collect())
    seen = {sample.name: sample for family in families for sample in family.samples if "agent" in sample.labels}
    assert set(seen) == {f"prefetchd_{name}" for name in BY_AGENT} | {f"prefetchd_{n}_total" for n in AGENT_COUNTERS}
    assert seen["prefetchd_agent_samples_total"].value > 0
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert all(f"`{name}`" in page for name in seen)
