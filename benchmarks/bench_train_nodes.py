"""Training over two Ray nodes: scaling, and what the all-reduce takes. `python benchmarks/bench_train_nodes.py`.

Three places for two workers: one node; two nodes as processes of this machine, over its loopback; two nodes in network
namespaces with a link between them (needs root, `ip` and `tc`; left out without). Each is measured with all-reduce and
without: what is missing to the workers that do not speak to each other is the share of the all-reduce. All of them
share the same two cores, so nothing here shows more than the cost of speaking.
"""

import argparse
import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import train_ranks
from bench_train import Way, prepared, recipe_of

from p2es_platform.cluster import connect
from p2es_platform.settings import Settings

RAY = str(Path(sys.executable).with_name("ray"))
PORT = 26479
BATCH = 32
NAMES = ("p2es-a", "p2es-b")
DEVICES = ("p2es-va", "p2es-vb")
ADDRESSES = ("10.99.17.1", "10.99.17.2")


def run(*command: str) -> None:
    """Run a command of the system; its error is the benchmark's."""
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def linked(mbit: int, delay_ms: float) -> Iterator[tuple[str, tuple[list[str], ...]]]:
    """Make two network namespaces with a link; gives the link in words, and what goes before a command in each."""
    told = f"{mbit} Mbit/s, {delay_ms:g} ms"
    try:
        for name in NAMES:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", DEVICES[0], "netns", NAMES[0], "type", "veth", "peer", DEVICES[1], "netns", NAMES[1])
        for name, device, address in zip(NAMES, DEVICES, ADDRESSES, strict=True):
            inside = ("ip", "netns", "exec", name)
            run(*inside, "ip", "addr", "add", f"{address}/24", "dev", device)
            run(*inside, "ip", "link", "set", device, "up")
            run(*inside, "ip", "link", "set", "lo", "up")
            shape = (*inside, "tc", "qdisc", "add", "dev", device, "root")
            rate = f"{mbit}mbit"
            try:
                run(*shape, "netem", "rate", rate, "delay", f"{delay_ms}ms")
            except subprocess.CalledProcessError:
                # Not every kernel has netem: the rate is kept, the delay is that of the machine.
                run(*shape, "tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
                told = f"{mbit} Mbit/s, no delay (no netem)"
        # The machine's name means the loopback in each of them, and Gloo would listen there.
        yield (
            told,
            tuple(
                ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={device}"]
                for name, device in zip(NAMES, DEVICES, strict=True)
            ),
        )
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@contextlib.contextmanager
def cluster(inside: Sequence[list[str]], addresses: Sequence[str], cpus: int, folder: Path) -> Iterator[str]:
    """Start a Ray node in each place and give the address of the first; they end with the block."""
    nodes = []
    temp = Path(tempfile.mkdtemp(prefix="r"))
    common = [f"--num-cpus={cpus}", "--object-store-memory=150000000", "--block", "--disable-usage-stats"]
    try:
        for number, (before, address) in enumerate(zip(inside, addresses, strict=True)):
            where = [f"--node-ip-address={address}"]
            if number == 0:
                where += ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={temp}"]
            else:
                where += [f"--address={addresses[0]}:{PORT}"]
            with (folder / f"node-{number}.log").open("w") as log:
                nodes.append(
                    subprocess.Popen([*before, RAY, "start", *where, *common], stdout=log, stderr=log,
                                     start_new_session=True)
                )  # fmt: skip
            time.sleep(10)
        yield f"{addresses[0]}:{PORT}"
    finally:
        for node in reversed(nodes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGTERM)
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(temp, ignore_errors=True)


def measured(before: list[str], address: str, job: Path, world: int, how: str, folder: Path) -> Way:
    """Train once, from a driver in the first place."""
    place = Path(tempfile.mkdtemp(dir=folder))
    started = time.time()
    command = [sys.executable, __file__, "--drive", address, str(job), str(place), str(world), how]
    subprocess.run([*before, *command], check=True, stdout=subprocess.DEVNULL)
    way = Way()
    way.add(place, started)
    return way


def drive(address: str, job: str, place: str, world: str, how: str) -> None:
    """Be the driver of one training."""
    import ray
    import ray.train
    import ray.train.torch

    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    told = {"job": Path(job).read_bytes(), "place": place, "tracked": False, "how": how}
    ray.train.torch.TorchTrainer(
        train_ranks.ray_loop,
        train_loop_config=told,
        scaling_config=ray.train.ScalingConfig(num_workers=int(world), resources_per_worker={"CPU": 1.0}),
        run_config=ray.train.RunConfig(name="run", storage_path=place),
    ).fit()
    ray.shutdown()


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["--drive"]:
        drive(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only-link", action="store_true", help="the two namespaces only")
    parser.add_argument("--mbit", type=int, default=1000)
    parser.add_argument("--delay-ms", type=float, default=0.5)
    args = parser.parse_args()
    linkable = os.geteuid() == 0 and shutil.which("ip") and shutil.which("tc")
    if args.only_link and not linkable:
        parser.error("--only-link needs root, ip and tc")
    recipe = recipe_of(args.people, args.steps, BATCH)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as held:
        folder = Path(name)
        settings = Settings(storage=str(folder / "storage"), secret="benchmark")  # type: ignore[call-arg]
        with connect(settings, local_cpus=2, object_store_mb=200):
            job = folder / "job.pickle"
            job.write_bytes(pickle.dumps(prepared(recipe, settings)))
        here: list[str] = []
        places = {
            "one node": (([here], ["127.0.0.1"]), 2),
            "two nodes, loopback": (([here, here], ["127.0.0.1", "127.0.0.1"]), 1),
        }
        if args.only_link:
            places.clear()
        if linkable:
            told, inside = held.enter_context(linked(args.mbit, args.delay_ms))
            places[f"two namespaces, {told}"] = ((list(inside), list(ADDRESSES)), 1)
        print(f"{'':52s}{'windows/s':>10s}{'of one worker':>14s}{'all-reduce':>11s}{'first step s':>13s}")
        for title, ((inside_each, addresses), cpus) in places.items():
            with cluster(inside_each, addresses, cpus, folder) as address:
                alone, apart, both = (
                    measured(inside_each[0], address, job, world, how, folder)
                    for world, how in ((1, "ddp"), (2, "alone"), (2, "ddp"))
                )
            rate, one, free = (BATCH * way.steps_s[0] for way in (both, alone, apart))
            print(
                f"{title:52s}{rate:10.1f}{rate / one:14.2f}{100 * (1 - rate / free):10.1f}%{both.first_s[0]:13.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
