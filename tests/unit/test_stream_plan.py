"""The order of a streamed split: every video once, independent of the world size, shuffled in a window, few open shards."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avvp_dist.dist.partition import split_sizes
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.loading.partners import draw_nearby_partners
from avvp_dist.loading.plan import StreamPlan, check, shard_schedule


@st.composite
def plans(draw, **fixed):
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    streams = draw(st.integers(1, 8))
    arguments = {
        "shards": np.repeat(np.arange(len(sizes)), sizes),
        "batch_size": streams * draw(st.integers(1, 5)),
        "streams": streams,
        "window": draw(st.integers(1, 40)),
        "seed": draw(st.integers(0, 2**31)),
        "epoch": draw(st.integers(0, 99)),
    }
    return StreamPlan(**{**arguments, **fixed})


def divisors(number):
    return [count for count in range(1, number + 1) if number % count == 0]


def unshuffled(plan):
    """Position of each video of the epoch in its stream, before and after the shuffle."""
    line = StreamPlan(plan.shards, plan.batch_size, plan.streams, 1, plan.seed, plan.epoch)
    stream = plan.stream_of()
    for number in range(plan.streams):
        before = {video: place for place, video in enumerate(line.order()[stream == number])}
        yield np.array([before[video] for video in plan.order()[stream == number]], int)


@given(plans())
def test_every_video_once_and_only_the_last_batch_short(plan):
    assert sorted(plan.order()) == list(range(plan.videos))
    totals = [plan.total(step) for step in range(plan.steps)]
    assert sum(totals) == plan.videos
    assert set(totals[:-1]) <= {plan.batch_size}
    assert 1 <= totals[-1] <= plan.batch_size


@given(plans())
def test_batches_do_not_depend_on_the_number_of_ranks(plan):
    order, stream = plan.order(), plan.stream_of()
    share = plan.batch_size // plan.streams
    for world in range(1, plan.streams + 1):
        own = plan.streams // world
        processed = []
        for step in range(plan.steps):
            slices = [plan.rank_slice(step, rank, world) for rank in range(world)]
            sizes = [part.stop - part.start for part in slices]
            assert sizes == split_sizes(plan.total(step), world)
            if plan.total(step) == plan.batch_size:
                for rank, part in enumerate(slices):
                    shares = np.bincount(stream[part], minlength=plan.streams)
                    if plan.streams % world == 0:
                        assert (shares[rank * own : (rank + 1) * own] == share).all()
                    else:  # a stream can be divided at each border
                        assert np.count_nonzero(shares) <= -(-sizes[rank] // share) + 1
            processed += [video for part in slices for video in order[part]]
        assert processed == order.tolist()


@given(plans())
def test_no_video_moves_further_than_the_window(plan):
    for places in unshuffled(plan):
        after = np.arange(len(places))
        assert (np.abs(places - after) < plan.window).all()
        if len(places):
            held = np.maximum.accumulate(places) - after  # read, but not yet returned
            assert held.max() < plan.window


@given(plans())
def test_a_shard_is_read_by_one_rank_unless_it_is_divided(plan):
    full = plan.videos // plan.batch_size * plan.batch_size
    stream, shard = plan.stream_of()[:full], plan.shards[plan.order()[:full]]
    for world in divisors(plan.streams):
        readers = set(zip((stream * world // plan.streams).tolist(), shard.tolist(), strict=True))
        assert len(readers) <= len(set(plan.shards.tolist())) + world - 1


@given(plans(), st.data())
def test_shards_are_open_while_they_are_read(plan, data):
    first = data.draw(st.integers(0, plan.steps - 1))
    step = np.arange(plan.videos) // plan.batch_size
    left = step >= first
    stream, shard, step = plan.stream_of()[left], plan.shards[plan.order()[left]], step[left]
    found = shard_schedule(stream, shard, step)
    assert len(set(zip(found.stream, found.shard, strict=True))) == len(found.stream)
    spans = {(s, k): (o, c) for s, k, o, c in zip(*found, strict=True)}
    assert set(spans) == set(zip(stream.tolist(), shard.tolist(), strict=True))  # a resumed epoch opens the remaining shards
    for s, k, at in zip(stream, shard, step, strict=True):
        opened, closed = spans[s, k]
        assert opened <= at <= closed
    for key, (_, closed) in spans.items():
        assert closed == max(at for s, k, at in zip(stream, shard, step, strict=True) if (s, k) == key)


def test_few_shards_are_open_at_the_same_time():
    plan = StreamPlan(np.repeat(np.arange(200), 50), 16, 4, 50, 0, 0)
    found = shard_schedule(plan.stream_of(), plan.shards[plan.order()], np.arange(plan.videos) // 16)
    for number in range(4):
        selected = found.stream == number
        assert selected.sum() >= 50
        for step in range(plan.steps):
            assert ((found.opens[selected] <= step) & (step <= found.closes[selected])).sum() <= 4


@given(plans(window=40, epoch=3))
def test_the_order_depends_only_on_seed_and_epoch(plan):
    def order(seed, epoch):
        return StreamPlan(plan.shards, plan.batch_size, plan.streams, plan.window, seed, epoch).order().tolist()

    assert order(plan.seed, 3) == plan.order().tolist()
    if plan.videos > 60:
        assert order(plan.seed, 4) != plan.order().tolist() != order(plan.seed + 1, 3)


def test_any_shard_can_be_first_in_an_epoch():
    firsts = [StreamPlan(np.repeat(np.arange(10), 4), 4, 4, 4, 0, epoch).order()[0] // 4 for epoch in range(2000)]  # shards
    counts = np.bincount(firsts, minlength=10)
    assert counts.min() > 140  # 200 expected, standard deviation 13
    assert counts.max() < 260


@given(plans())
def test_partner_candidates_are_close_and_in_the_same_stream(plan):
    near, reach = plan.partner_candidates(), plan.window // 2
    assert sorted(near.line) == list(range(plan.videos))
    first, stop = near.within(reach, np.arange(plan.videos))
    assert (first <= near.at).all()
    assert (near.at < stop).all()
    assert (stop - first <= 2 * reach + 1).all()
    bounds = np.arange(plan.streams + 1) * plan.videos // plan.streams
    stream = plan.stream_of()
    assert (first >= bounds[stream]).all()
    assert (stop <= bounds[stream + 1]).all()


def labeled(videos):
    rng = np.random.default_rng(0)
    weak = np.zeros((videos, 25), bool)
    weak[np.arange(videos), rng.integers(0, 25, videos)] = True
    return [f"video{number}" for number in range(videos)], weak


def test_partners_share_no_label_and_are_close():
    ids, weak = labeled(400)
    plan = StreamPlan(np.arange(400) // 20, 8, 4, 30, 5, 1)
    partners = draw_nearby_partners(ids, weak, plan, np.arange(400), draws=3)
    order, near = plan.order(), plan.partner_candidates()
    first, stop = near.within(15, np.arange(400))
    assert not (weak[order][:, None] & weak[partners]).any()
    for place in range(400):
        assert set(partners[place]) <= set(near.line[first[place] : stop[place]])
    assert (partners[:, 0] != partners[:, 1]).any()
    # the result does not depend on the requested part of the epoch
    some = np.array([399, 7, 80])
    np.testing.assert_array_equal(draw_nearby_partners(ids, weak, plan, some, draws=3), partners[some])
    np.testing.assert_array_equal(draw_nearby_partners(ids, weak, plan, some, draws=1), partners[some, :1])
    other = StreamPlan(plan.shards, 8, 4, 30, 6, 1)
    assert (draw_nearby_partners(ids, weak, other, np.arange(400), draws=3) != partners).any()


def test_a_rare_partner_outside_the_window_is_found():
    weak = np.ones((200, 2), bool)
    weak[:, 1] = False
    weak[17] = [False, True]
    plan = StreamPlan(np.arange(200) // 10, 4, 1, 12, 0, 0)  # far outside the window
    partners = draw_nearby_partners([str(number) for number in range(200)], weak, plan, np.arange(200), draws=1)
    rare = plan.order() == 17
    assert (partners[~rare] == 17).all()
    assert partners[rare] != 17


def test_videos_without_any_partner_are_named():
    weak = np.array([[True, False], [True, True], [False, True]])
    plan = StreamPlan(np.zeros(3, int), 1, 1, 10, 0, 0)
    with pytest.raises(DataError, match=r"(?s)use fewer data.streams.*b: no other video"):
        draw_nearby_partners(["a", "b", "c"], weak, plan, np.arange(3), draws=1)


def test_a_million_videos_are_planned_in_seconds():
    plan = StreamPlan(np.arange(1_000_000) // 256, 1024, 32, 512, 0, 0)
    started = time.perf_counter()
    order, stream = plan.order(), plan.stream_of()
    shard_schedule(stream, plan.shards[order], np.arange(plan.videos) // 1024)
    assert time.perf_counter() - started < 60  # 0.7 s on two idle cores


def test_impossible_numbers_are_one_error():
    for world in range(1, 9):
        check(100, 16, world, 8)
    with pytest.raises(ConfigError) as caught:
        check(100, 20, 24, 16)
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "batch_size 20 is the global batch: some of 24 workers would never get a video; use 24 or more" in text
    assert "data.streams=16: some of 24 workers would have no stream to read; use 24" in text
    assert "use a batch_size of 32, or data.streams=24" in text
    with pytest.raises(ConfigError, match=r"use a batch_size of 32, or data.streams=12 or 18"):
        check(100, 36, 2, 16)
    with pytest.raises(ConfigError, match=r"data.streams=2: some of 4 workers .* use 4 or 6"):
        check(100, 24, 4, 2)
