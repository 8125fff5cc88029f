"""Which images a step takes: the same for any number of processes, from any place on."""

from itertools import pairwise

import numpy as np
import pytest

from msdeform.train.data.loader import Order


def images(order: Order, epoch: int = 0) -> list[set[int]]:
    return [set(batch) for batch in order.batches(epoch)]


def test_the_order_of_a_run_can_be_entered_anywhere() -> None:
    order = Order(23, 4, seed=1)
    assert order.steps_per_epoch == 5
    whole = list(order.keys(0, 12))
    assert [epoch for (epoch, _), *_ in whole] == [0] * 5 + [1] * 5 + [2] * 2
    assert list(order.keys(7, 12)) == whole[7:]
    first = [index for batch in whole[:5] for _, index in batch]
    assert len(set(first)) == 20  # the last three, not a batch, are left out
    assert first != list(range(20))
    assert order.batches(0) != order.batches(1)
    assert [sorted(batch) for batch in Order(3, 4, seed=1).batches(0)] == [[0, 1, 2]]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("bucket", [False, True])
def test_processes_share_the_images_that_one_would_take(size: int, bucket: bool) -> None:
    shapes = np.random.default_rng(0).random(50) if bucket else None
    one = images(Order(50, 8, seed=3))
    parts = [Order(50, 8, seed=3, rank=rank, size=size, shapes=shapes).batches(0) for rank in range(size)]
    for step, batch in enumerate(one):
        mine = [set(part[step]) for part in parts]
        assert set.union(*mine) == batch
        assert sum(map(len, mine)) == len(batch)  # no image twice
        assert max(map(len, mine)) - min(map(len, mine)) <= 1


def test_images_of_like_shape_go_to_one_device() -> None:
    shapes = np.random.default_rng(0).random(64)
    dealt = [Order(64, 32, seed=0, rank=rank, size=4, shapes=shapes).batches(0)[0] for rank in range(4)]
    limits = [(shapes[part].min(), shapes[part].max()) for part in dealt]
    assert all(high <= low for (_, high), (low, _) in pairwise(limits))


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_process_draws_from_what_it_keeps(nodes: int) -> None:
    local, size = 2, 2 * nodes
    taken: list[int] = []
    for rank in range(size):
        order = Order(41, 8, seed=5, rank=rank, size=size, share=(rank % local, local))
        batches = order.batches(2)
        assert len(batches) == 5
        assert all(len(batch) == 8 // size for batch in batches)
        mine = [index for batch in batches for index in batch]
        assert {index % local for index in mine} == {rank % local}
        taken += mine
    assert len(set(taken)) == len(taken) == 40


def test_what_cannot_be_divided_is_told() -> None:
    with pytest.raises(ValueError, match="at least one image for each of 4 processes, got 2"):
        Order(50, 2, seed=0, size=4)
    with pytest.raises(ValueError, match="3 training images are fewer than the 4 processes"):
        Order(3, 8, seed=0, size=4)
    with pytest.raises(ValueError, match="expected a multiple of the 4 processes, which draw from the images"):
        Order(50, 6, seed=0, size=4, share=(0, 2))
