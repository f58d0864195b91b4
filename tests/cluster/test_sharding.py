import pytest

from dipo.algo.activation_cache import cut
from dipo.cluster.sharding import even_shares, shards_of


def test_shares_are_contiguous_and_even():
    assert even_shares(range(7), 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert even_shares(range(2), 3) == [[0], [1], []]


@pytest.mark.parametrize(("num", "pieces"), [(100, 1), (100, 3), (256, 4), (33, 8), (5, 4)])
def test_pieces_do_not_depend_on_the_workers(num, pieces):
    batches = cut(num, 16)
    layouts = {}
    for workers in (1, 2, 3, 5, 9):
        shards = shards_of(batches, workers=workers, pieces=pieces, batch_size=32)
        held = [batch for shard in shards for batch in shard.batches]
        assert held == batches, "every batch is held once, in order"
        layouts[workers] = [
            (piece.index, piece.stop - piece.start, piece.batch_size) for shard in shards for piece in shard.pieces
        ]
        assert sum(piece.batch_size for shard in shards for piece in shard.pieces) == 32
        for rank, shard in enumerate(shards):
            assert shard.pieces
            assert [shard.owners[batch.index] for batch in shard.batches] == [rank] * len(shard.batches)
            assert [shard.shard_ranks[piece.index] for piece in shard.pieces] == [rank] * len(shard.pieces)
            assert shard.pieces[-1].stop == sum(len(batch) for batch in shard.batches)
    assert all(layout == layouts[1] for layout in layouts.values())


def test_a_step_takes_samples_in_proportion_to_the_pieces():
    shards = shards_of(cut(100, 16), workers=3, pieces=3, batch_size=32)
    assert [piece.batch_size for shard in shards for piece in shard.pieces] == [15, 10, 7]
