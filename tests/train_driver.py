"""A training in a process of its own, for tests that kill it or take its nodes: `TEMP STORAGE DATASET GROUPS HOW`.

`alone` on one local node; `elastic` on two nodes of which one is killed; `drain` on three, of which one that trains is
announced to leave, and killed once there is a checkpoint that was not due.
"""

import dataclasses
import signal
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from test_train_faults import TINY, Storage

from pipelines import cli, demo
from pipelines.recipes import Resources


def wait_for_a_checkpoint(storage):
    while not storage.checkpoints():
        time.sleep(0.05)


def training_node():
    """The node, not the head, on which a worker of the training lives."""
    from ray.util.state import list_actors

    head = ray.get_runtime_context().get_node_id()
    workers = [actor for actor in list_actors(limit=100) if "RayTrainWorker" in actor.class_name]
    return next(actor.node_id for actor in workers if actor.state == "ALIVE" and actor.node_id != head)


def main():
    temp, folder, dataset_url, groups_url, how = sys.argv[1:]
    storage = Storage(Path(folder), demo.Prepared(dataset_url, groups_url))
    if how == "alone":
        ray.init(
            address="local", _temp_dir=temp, num_cpus=4, object_store_memory=150_000_000, include_dashboard=False,
            log_to_driver=False,
        )  # fmt: skip
        signal.signal(signal.SIGTERM, cli._interrupted)
        try:
            storage.train()
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            ray.shutdown()
        return
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0, "object_store_memory": 150_000_000, "temp_dir": temp, "include_dashboard": how == "drain"
        },
    )  # fmt: skip
    ray.init(address=cluster.address, log_to_driver=False)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=100_000_000) for _ in range(3 if how == "drain" else 2)]
    recipe = dataclasses.replace(TINY, resources=Resources(cpus_per_worker=1.0, min_workers=1, train_workers=2))
    if how == "drain":
        recipe = dataclasses.replace(TINY, resources=Resources(cpus_per_worker=1.0))

    def act():
        wait_for_a_checkpoint(storage)
        if how == "elastic":
            cluster.remove_node(nodes[1], allow_graceful=False)
            return
        from ray._raylet import GcsClient

        deadline_ms = int(1000 * (time.time() + 300))
        leaving = training_node()
        accepted, why = GcsClient(address=cluster.address).drain_node(leaving, 2, "the machine is taken", deadline_ms)
        sys.stdout.write(f"drain accepted: {accepted} {why}\n")
        while not storage.checkpoints_out_of_turn():
            time.sleep(0.05)
        cluster.remove_node(next(node for node in nodes if node.node_id == leaving), allow_graceful=False)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    storage.train(recipe)
    thread.join(30)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
