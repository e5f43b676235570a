"""Words that agree with a number in messages."""

import numpy as np

from avvp_dist.text.plural import plural


def test_words_agree_with_the_number():
    assert [f"{count} {plural(count, 'video')}" for count in (0, 1, 2)] == ["0 videos", "1 video", "2 videos"]
    assert [plural(count, "has", "have") for count in (0, 1, np.int64(1), 2)] == ["have", "has", "has", "have"]
