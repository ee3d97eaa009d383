"""The engine on real Ray clusters: actors that die, stall or never start, nodes that come and go."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.fault_points import VARIABLE
from pipeline.inspect_shards import main as seed_shards
from pipeline.run_plan import make_plan
from pipeline.tokenize_config import TokenizeConfig
from pipeline.tokenize_run import RunOutcome, run_tokenization
from tests.pipeline.ray_runs import JOB_OF_PAIRS, NODE, in_background, num_joined, open_cluster, run
from tests.pipeline.tiny_shards import (
    JOB,
    ROOT,
    job_command,
    job_environment,
    leftovers,
    run_job,
    token_files,
    wait_until,
    write_shards,
)

pytestmark = pytest.mark.ray
NUM_SHARDS = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("in"), NUM_SHARDS, 20)


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    outcome = run(shards, folder, num_actors=0)
    assert outcome.failures == []
    return token_files(folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    with open_cluster(num_cpus=2) as cluster:
        yield cluster


@contextlib.contextmanager
def fault(text: str) -> Iterator[None]:
    """A fault in the actors of this cluster: their environment is the driver's only at their birth."""
    import ray

    # Actors get the variable through the runtime environment of the job.
    ray.shutdown()
    address = os.environ["SEED_SHARDS_TEST_CLUSTER"]
    ray.init(address=address, logging_level="WARNING", runtime_env={"env_vars": {VARIABLE: text}})
    try:
        yield
    finally:
        ray.shutdown()
        ray.init(address=address, logging_level="WARNING")


@pytest.fixture(autouse=True)
def _remember_address(cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED_SHARDS_TEST_CLUSTER", cluster.address)


def test_the_same_bytes_with_two_actors(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    outcome = run(shards, tmp_path / "out", num_actors=2, batch_size=7, shards_in_flight=3)
    assert outcome.failures == []
    assert token_files(tmp_path / "out") == undisturbed
    assert outcome.progress.num_workers <= 2


def test_an_actor_killed_at_work_is_replaced(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    once = tmp_path / "once"
    with fault(f"kill:after_write:00005:{once}"):
        outcome = run(shards, tmp_path / "out", num_actors=1)
    assert once.exists()
    assert outcome.failures == []
    assert outcome.progress.worker_losses == {"crashed": 1}
    assert token_files(tmp_path / "out") == undisturbed


def test_a_shard_that_kills_every_actor_is_set_aside_and_the_others_are_done(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with fault("kill:reading:00002"):
        outcome = run(shards, folder, num_actors=1, max_attempts=2)
    assert [failure.name for failure in outcome.failures] == ["00002"]
    assert outcome.failures[0].attempts == 2
    assert token_files(folder) == {
        name: data for name, data in undisturbed.items() if not name.startswith("00002")
    }
    run(shards, folder, num_actors=0, retry_failed=True)
    assert token_files(folder) == undisturbed


def test_an_actor_that_stalls_is_replaced(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    once = tmp_path / "once"
    with fault(f"stall:reading:00003:{once}"):
        outcome = run(shards, tmp_path / "out", num_actors=1, stall_timeout=10.0)
    assert once.exists()
    assert outcome.progress.worker_losses == {"stalled": 1}
    assert outcome.failures == []
    assert token_files(tmp_path / "out") == undisturbed


def test_a_node_that_joins_is_used_and_a_node_that_dies_costs_no_attempt(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Raylet and actors of the added node are killed with SIGKILL while it works."""
    folder = tmp_path / "out"
    slow = write_shards(tmp_path / "in", 40, 20)

    outcomes: list[RunOutcome] = []
    with fault("slow:reading:*"):
        thread = in_background(lambda: outcomes.append(run(slow, folder, max_attempts=1)))
        assert wait_until(lambda: len(token_files(folder)) > 0)
        node = cluster.add_node(num_cpus=2, **NODE)
        assert wait_until(lambda: num_joined(folder) == 2), "no actor joined from the new node"
        time.sleep(1.0)
        cluster.remove_node(node, allow_graceful=False)
        thread.join(timeout=240)
    (outcome,) = outcomes
    assert outcome.failures == [], "a lost node counts as an attempt"
    assert outcome.progress.worker_losses == {"node_lost": 1}
    other = tmp_path / "other"
    run(slow, other, num_actors=0)
    assert token_files(folder) == token_files(other)


def test_workers_that_need_what_no_node_has_wait_for_one_and_say_so(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The kind of a worker is that of the settings, not that of the first node to join."""
    folder = tmp_path / "out"
    outcomes: list[RunOutcome] = []
    settings = {"num_actors": 2, "gpus_per_actor": 0.5}
    thread = in_background(lambda: outcomes.append(run(shards, folder, **settings)))
    says = "2 workers wait for a node: each needs 1 CPUs and 0.5 GPUs, and no node has that much"
    assert wait_until(lambda: says in caplog.text), caplog.text
    assert "--gpus-per-actor 0" in caplog.text, "no remedy"
    assert num_joined(folder) == 0
    node = cluster.add_node(num_cpus=2, num_gpus=1, **NODE)
    thread.join(timeout=240)
    cluster.remove_node(node, allow_graceful=False)
    (outcome,) = outcomes
    assert outcome.failures == []
    assert num_joined(folder) == 2
    assert token_files(folder) == undisturbed


@pytest.mark.slow  # the run must be long enough for the helper to start and be used before it dies
def test_a_node_that_only_decodes_helps_and_its_death_costs_nothing(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    outcomes: list[RunOutcome] = []
    slow = {"num_actors": 1, "decode_workers": 1, "batch_size": 64}
    many = write_shards(tmp_path / "in", 120, 60)
    node = cluster.add_node(num_cpus=2, resources={"seed_decode": 1}, **NODE)
    with fault("none:none:none"):
        thread = in_background(lambda: outcomes.append(run(many, tmp_path / "out", **slow)))
        assert wait_until(lambda: len(token_files(tmp_path / "out")) > 150)
        cluster.remove_node(node, allow_graceful=False)
        thread.join(timeout=240)
    (outcome,) = outcomes
    assert outcome.failures == []
    assert outcome.progress.summary()["decoded_by_helpers"] > 0
    run(many, tmp_path / "alone", num_actors=0)
    assert token_files(tmp_path / "out") == token_files(tmp_path / "alone")


def test_a_tokenizer_that_the_workers_cannot_load_ends_the_run_with_its_reason(
    cluster, shards: Path, tmp_path: Path
) -> None:
    from pipeline.shard_driver import PoolError

    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(ROOT / "tokenizer" / "sample", tokenizer)
    config = TokenizeConfig(
        input=(str(shards),),
        output=str(tmp_path / "out"),
        tokenizer=str(tokenizer),
        num_actors=1,
        gpus_per_actor=0,  # not to wait until Ray knows that the GPU of the test before is gone
    )
    plan = make_plan(config, JOB_OF_PAIRS)
    (tokenizer / "model.safetensors").write_bytes(b"broken meanwhile")
    with pytest.raises(PoolError, match=r"workers do not start: .*model\.safetensors"):
        run_tokenization(config, JOB_OF_PAIRS, plan)


class TestCommand:
    """The job as a user starts it."""

    def test_alone_it_starts_ray_and_leaves_nothing(
        self, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
    ) -> None:
        home = tmp_path / "home"
        home.mkdir()
        result = run_job(
            "--input", str(shards), "--output", str(tmp_path / "out"), "--num-actors", "1",
            environment={"HOME": str(home)},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert token_files(tmp_path / "out") == undisturbed
        assert not (home / ".ray" / "auth_token").exists(), "later clusters would demand it"

    def test_relative_names_begin_where_the_job_was_started(self, cluster, tmp_path: Path) -> None:
        """The workers of a cluster start in the folder where it was started."""
        write_shards(tmp_path / "in", 2, 5)
        token = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
        for folder, flags, environment in (
            ("out", ("--num-actors", "1"), {"RAY_ADDRESS": cluster.address} | token),
            ("alone", (), None),
        ):
            result = run_job(
                "--input", "in", "--output", folder, *flags, environment=environment, cwd=tmp_path
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
        assert token_files(tmp_path / "out") == token_files(tmp_path / "alone")

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_a_driver_that_is_killed_is_resumed(
        self, number: int, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
    ) -> None:
        folder = tmp_path / "out"
        flags = ["--input", str(shards), "--output", str(folder), "--num-actors", "1"]
        process = subprocess.Popen(
            job_command(*flags),
            env=job_environment({VARIABLE: "slow:reading:*"}),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert wait_until(lambda: len(token_files(folder)) > 1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), errors
        for name, data in token_files(folder).items():
            assert data == undisturbed[name]
        if number == signal.SIGTERM:
            assert leftovers(folder) == []
        resumed = run_job("--input", str(shards), "--output", str(folder))
        assert resumed.returncode == 0, resumed.stderr
        assert token_files(folder) == undisturbed
        assert seed_shards(["validate", str(folder)]) == 0


@pytest.mark.slow  # README's own `ray job submit` and that of tokenize_obelics.py run in every pass
def test_ray_job_submit(shards: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """`ray start`, then `ray job submit --working-dir . -- python jobs/tokenize_pairs.py ...`."""
    port, dashboard = 26379, 28265
    environment = job_environment({"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": "/tmp/ray_submit"})
    environment.pop("RAY_AUTH_TOKEN", None)
    ray_command = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [
        *ray_command, "start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=true",
        f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=28266",
        "--object-store-memory=100000000", "--block",
    ]  # fmt: skip
    head = subprocess.Popen(
        start, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        working_dir = tmp_path / "checkout"
        for package in ("schemas", "tokenizer", "pipeline", "jobs"):
            shutil.copytree(
                ROOT / package, working_dir / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        script = Path(JOB[-1]).relative_to(ROOT)
        flags = job_command("--input", str(shards), "--output", str(tmp_path / "out"), "--num-actors", "1")[
            2:
        ]
        submit = [
            *ray_command, "job", "submit", f"--address=http://127.0.0.1:{dashboard}",
            "--working-dir", str(working_dir), "--", sys.executable, str(script), *flags,
        ]  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            result = subprocess.run(submit, env=environment, capture_output=True, text=True, timeout=150)
            is_starting = "Failed to connect" in result.stderr or "No available agent" in result.stderr
            if not is_starting or time.monotonic() > deadline:
                break
            time.sleep(1)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "token shards written" in result.stdout
        assert token_files(tmp_path / "out") == undisturbed
        submit[submit.index(str(tmp_path / "out"))] = "tokens"  # would be written into Ray's copy
        result = subprocess.run(submit, env=environment, capture_output=True, text=True, timeout=150)
        assert result.returncode == 1, "the status of a job that failed"
        assert "error: --output tokens: a submitted job runs in a copy" in result.stdout
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
