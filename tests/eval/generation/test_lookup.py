"""Guesses of what comes next follow the last place where the same tokens stood."""

from __future__ import annotations

from eval.generation.lookup import Lookup


def test_what_followed_the_same_tokens_is_guessed() -> None:
    assert Lookup([5, 6, 7, 8, 9, 5, 6, 7, 8]).draft(2) == [9, 5]
    assert Lookup([5, 6, 7]).draft(4) == []
    assert Lookup([]).draft(4) == []


def test_the_longest_run_counts_before_the_last_place() -> None:
    # 2, 1 stood last before 4, and 8, 2, 1 before 3.
    assert Lookup([8, 2, 1, 3, 7, 2, 1, 4, 8, 2, 1]).draft(1) == [3]
    assert Lookup([8, 2, 1, 3, 8, 2, 1, 4, 8, 2, 1]).draft(1) == [4]


def test_a_short_run_is_good_for_few_guesses_and_one_token_for_none() -> None:
    text = [5, 6, 7, 8, 9, 10, 11, 12]
    guesses = [Lookup([*text, 0, *text[4 - count : 4]]).draft(4) for count in (1, 2, 3, 4)]
    assert guesses == [[], [9], [9, 10], [9, 10, 11, 12]]


def test_what_repeats_itself_is_guessed_to_go_on() -> None:
    assert Lookup([7, 1, 2, 1, 2, 1, 2]).draft(5) == [1, 2, 1, 2, 1]
    lookup = Lookup([3, 3, 3, 3])
    lookup.append(3)
    assert lookup.draft(4) == [3, 3, 3, 3]
