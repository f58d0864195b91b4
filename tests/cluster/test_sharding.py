import pytest

from dipo.algo.activation_cache import cut
from dipo.algo.held_out import held_out_samples
from dipo.algo.trainer import _sample
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


@pytest.mark.parametrize(("num", "cut_at", "pieces"), [(100, 16, 3), (16, 16, 4), (33, 8, 8), (4, 1, 4), (12, 1, 8)])
def test_no_piece_draws_what_is_held_out(num, cut_at, pieces):
    batches, held = cut(num, cut_at), held_out_samples(num)
    for workers in (1, 2, 3):
        shards = shards_of(batches, workers=workers, pieces=pieces, batch_size=32, held_out=held)
        drawn, spared = [], []
        for shard in shards:
            own = [sample for batch in shard.batches for sample in range(batch.start, batch.stop)]
            assert shard.held_out == held
            for piece in shard.pieces:
                rows = set(range(piece.start, piece.stop))
                assert rows > set(piece.held_out), "every piece has something to draw"
                steps = _sample(piece, 7, seed=0)
                assert {own[row] for row in steps.flatten().tolist()}.isdisjoint(held)
                drawn += [own[row] for row in rows - set(piece.held_out)]
                spared += [own[row] for row in piece.held_out]
        assert sorted(spared) == list(held)
        assert sorted(drawn + spared) == list(range(num))
        assert sum(piece.batch_size for shard in shards for piece in shard.pieces) == 32


def test_a_step_takes_samples_in_proportion_to_the_pieces():
    shards = shards_of(cut(100, 16), workers=3, pieces=3, batch_size=32)
    assert [piece.batch_size for shard in shards for piece in shard.pieces] == [15, 10, 7]
