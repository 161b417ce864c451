"""Nodes with networks of their own read one object: the origin is read about once, and bad peers cost time only."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from peers_nodes import Cluster, place, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

SIZE = 64 * 2**20


def put(cluster: Cluster) -> str:
    return cluster.depot().put_bytes(np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8).tobytes())


def test_four_nodes_read_the_origin_about_once(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        name = put(cluster)
        assert all(answer["right"] for answer in cluster.read_everywhere(name))
        assert SIZE <= cluster.origin_bytes() <= 1.3 * SIZE
        assert all(answer["right"] for answer in cluster.read_everywhere(name))
        assert cluster.origin_bytes() == 0


def test_four_nodes_that_read_piece_by_piece_read_the_origin_about_once(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        name = put(cluster)
        assert all(answer["right"] for answer in cluster.read_everywhere(name, 0, SIZE))
        assert SIZE <= cluster.origin_bytes() <= 1.3 * SIZE


def test_without_peers_each_node_reads_all_of_it(tmp_path: Path) -> None:
    with Cluster(tmp_path, share=False) as cluster:
        assert all(answer["right"] for answer in cluster.read_everywhere(put(cluster)))
        assert cluster.origin_bytes() == 4 * SIZE


@pytest.mark.parametrize("piece_by_piece", [True, False])
def test_with_one_peer_killed_midway_and_one_that_lies_all_bytes_are_right(
    tmp_path: Path, piece_by_piece: bool
) -> None:
    with Cluster(tmp_path, liars=(1,)) as cluster:
        name = put(cluster)
        for reader in cluster.readers:
            reader.tell([name, 0, SIZE] if piece_by_piece else [name])
        while cluster.origin_bytes() == 0:
            pass
        cluster.agents[2].kill()
        answers = [reader.answer() for reader in cluster.readers]
        assert all(answer["right"] for answer in answers)
        assert all(answer["avoided"] == [place(2)] for answer in answers)
