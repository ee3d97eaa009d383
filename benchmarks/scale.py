"""The driver at scale: 100,000 shards and 200 workers through the real scheduler and driver loop.

    python -m benchmarks.scale [--shards 10000 100000 1000000] [--workers 200]

Workers are simulated (they finish at once, on a clock that does not wait), everything of the driver is real:
listing the input, naming, the schedule, the loop, progress, the run log on disk. What is measured is the
driver's own work: processor time a shard, memory, time to the first assignment. What Ray adds a call is
measured apart, with real actors that do nothing (--ray); memory of real runs with --memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.inputs import SourceShard, expand_inputs
from pipeline.progress import RunProgress
from pipeline.run_log import RunLog
from pipeline.shard_driver import ShardDriver
from pipeline.shard_schedule import ShardSchedule
from pipeline.shard_task import ShardReport, ShardTask
from pipeline.storage import LocalFolder
from tests.pipeline.simulated_workers import ONE_DOCUMENT, SimulatedWorkers, uniform_fates

OPEN_CALLS = 640
"""Of 256 workers: two shards each, and for half of them a question for their status."""
NUM_LOOKS = 50


def simulate(num_shards: int, num_workers: int) -> dict[str, float]:
    """One run in this process; figures of the driver."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in").mkdir()
        for index in range(num_shards):
            (folder / "in" / f"{index:07}.tar").touch()
        wall, cpu = time.perf_counter(), time.process_time()
        shards: list[SourceShard] = expand_inputs([str(folder / "in")])
        tasks = [ShardTask(shard.name, shard.url, shard.num_bytes) for shard in shards]
        schedule = ShardSchedule(tasks)
        start_up_s = time.perf_counter() - wall
        pool = SimulatedWorkers(num_workers, 2, uniform_fates(0, 20.0, 40.0))
        progress = RunProgress(num_shards)
        log = RunLog(LocalFolder(folder / "out"), "run")
        driver = ShardDriver(schedule, pool, [progress, log], clock=pool.clock)
        loop_cpu = time.process_time()
        assert driver.run()
        log.close()
        assert progress.num_done == num_shards
        return {
            "shards": num_shards,
            "workers": num_workers,
            "start_up_s": start_up_s,
            "driver_cpu_us_per_shard": (time.process_time() - loop_cpu) / num_shards * 1e6,
            "total_cpu_s": time.process_time() - cpu,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def ray_calls(num_calls: int = 4000, num_actors: int = 2) -> dict[str, float]:
    """Driver time of one call to a real actor that returns a real report, in the way of `ray_engine`."""
    from pipeline.ray_cluster import connect

    connect()
    import ray

    @ray.remote(num_cpus=0.1, max_concurrency=2)
    class Idle:
        def encode(self, task: ShardTask) -> ShardReport:
            return ShardReport(task.name, task.source, ONE_DOCUMENT, True, None, 1, 0.0)

        def work(self) -> None:
            time.sleep(3600)

    actors = [Idle.remote() for _ in range(num_actors)]
    task = ShardTask("00000", "s3://bucket/folder/00000.tar", 1)
    ray.get([actor.encode.remote(task) for actor in actors])
    begin, cpu = time.perf_counter(), time.process_time()
    calls = [actor.encode.remote(task) for actor in actors for _ in range(2)]
    for index in range(num_calls):
        ready, calls = ray.wait(calls, num_returns=1)
        ray.get(ready)
        calls.append(actors[index % num_actors].encode.remote(task))
    ray.get(calls)
    wall_us = (time.perf_counter() - begin) / num_calls * 1e6
    cpu_us = (time.process_time() - cpu) / num_calls * 1e6
    open_calls = [actors[0].work.remote() for _ in range(OPEN_CALLS)]
    cpu = time.process_time()
    for _ in range(NUM_LOOKS):  # as RayWorkers.poll does
        ray.wait(open_calls, num_returns=1, timeout=0)
        ray.wait(open_calls, num_returns=len(open_calls), timeout=0)
    look_us = (time.process_time() - cpu) / NUM_LOOKS * 1e6
    ray.shutdown()
    return {
        "calls": num_calls,
        "cpu_us_per_call": cpu_us,
        "wall_us_per_call": wall_us,
        "cpu_us_per_look": look_us,
    }


def job_memory(num_shards: int, samples: int, num_actors: int) -> dict[str, float]:
    """Peak memory of driver and worker in a real run of the pairs job with the null tokenizer."""
    from tests.pipeline.tiny_shards import job_command, job_environment, write_shards

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = write_shards(folder / "in", num_shards, samples)
        flags = ["--input", str(shards), "--output", str(folder / "out"), "--num-actors", str(num_actors)]
        job = subprocess.Popen(job_command(*flags), env=job_environment(), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(job.pid, 0)
        assert status == 0
        report = json.loads((folder / "out" / "_report.json").read_text())
        return {
            "samples": num_shards * samples,
            "driver_mb": usage.ru_maxrss / 1024,
            "worker_mb": report["peak_worker_bytes"] / 1e6,
            "seconds": report["seconds"],
        }


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--ray", action="store_true", help="also measure real Ray calls")
    parser.add_argument("--memory", type=int, nargs="+", default=[], help="shards of real runs, for memory")
    parser.add_argument("--samples", type=int, default=20, help="samples a shard of those")
    parser.add_argument("--actors", type=int, default=1, help="Ray actors of those; 0: without Ray")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(simulate(options.one, options.workers)))
        return
    results = []
    print(f"{'shards':>9} {'workers':>7} {'start-up s':>10} {'CPU us/shard':>12} {'peak MB':>8}")
    for num_shards in options.shards:  # a process for each, so that peak memory is its own
        own = [f"--one={num_shards}", f"--workers={options.workers}"]
        command = [sys.executable, "-m", "benchmarks.scale", *own]
        row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            f"{row['shards']:>9} {row['workers']:>7} {row['start_up_s']:>10.2f} "
            f"{row['driver_cpu_us_per_shard']:>12.1f} {row['peak_mb']:>8.1f}"
        )
        results.append(row)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    for num_shards in options.memory:
        row = job_memory(num_shards, options.samples, options.actors)
        print(
            f"{num_shards} shards, {row['samples']} samples: driver {row['driver_mb']:.0f} MB, "
            f"worker {row['worker_mb']:.0f} MB, {row['seconds']:.0f} s",
            flush=True,
        )
    if options.ray:
        row = ray_calls()
        print(f"Ray: {row['cpu_us_per_call']:.0f} us CPU, {row['wall_us_per_call']:.0f} us wall a call")
        print(f"     {row['cpu_us_per_look']:.0f} us CPU a look at {OPEN_CALLS} open calls")


if __name__ == "__main__":
    main()
