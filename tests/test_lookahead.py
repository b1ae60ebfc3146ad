"""Windows that are asked of an order ahead of time: each once, in order, by few questions."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loader.lookahead import QUESTIONS, Lookahead


@given(
    takes=st.lists(st.integers(1, 700), min_size=1, max_size=8),
    batch_size=st.integers(1, 100),
    missing=st.integers(0, 99),
    change=st.integers(0, 7),
)
@settings(deadline=None, max_examples=50)
def test_batches_get_the_windows_of_the_order_and_no_question_crosses_a_change(takes, batch_size, missing, change):
    """The last batch may be incomplete. At a change, all that lies before it has been taken."""
    total = sum(takes) * batch_size - min(missing, batch_size - 1)
    border, asked = sum(takes[:change]) or sum(takes), []

    def ask(first, batches):
        asked.append((first, batches))
        return np.arange(first * batch_size, min(total, (first + batches) * batch_size)) * 3

    found, done = [], 0
    with ThreadPoolExecutor(1) as thread:
        coming = Lookahead(ask, batch_size=batch_size, thread=thread)
        for batches in takes:
            windows = coming.take(batches, stop=border if done < border else sum(takes))
            done += batches
            assert len(windows) == batches * batch_size or done == sum(takes)
            found += windows.tolist()
    assert found == [3 * number for number in range(total)]
    assert [first for first, _ in asked] == [0, *np.cumsum([batches for _, batches in asked])[:-1]]
    assert not any(first < border < first + batches for first, batches in asked)


def test_questions_grow_and_the_next_one_is_asked_while_an_answer_is_used():
    asked = []

    def ask(first, batches):
        asked.append(batches)
        return np.arange(first * 8, (first + batches) * 8)

    with ThreadPoolExecutor(1) as thread:
        coming = Lookahead(ask, batch_size=8, thread=thread)
        coming.take(1, stop=100_000)
        thread.submit(int).result()  # what was submitted before it has run
        assert asked == [windows // 8 for windows in QUESTIONS[:2]]
        for _ in range(asked[0]):
            coming.take(1, stop=100_000)
        thread.submit(int).result()
        assert asked == [windows // 8 for windows in QUESTIONS]
