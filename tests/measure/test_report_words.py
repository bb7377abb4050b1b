"""What a run found, in a sentence and in the terminal's table."""

import io

import pytest

from hf_longctx.cli.fitting import fitting
from hf_longctx.measure import stats
from hf_longctx.measure.report import effective_text, finding
from hf_longctx.measure.terminal_table import layouts, terminal_table
from run_folders import make_rows, make_summary


def entry(*counts, claimed=8192):
    lengths = [{"length": tokens, "hits": hits, "n": n} for tokens, hits, n in counts]
    return {"claimed": claimed, "lengths": lengths, "cells": []}


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ({"stock": entry()}, "No needle has been scored yet."),
        (
            {"stock": entry((1024, 5, 5))},
            "With 5 probes a length, stock, which claims 8K, finds all 5 at 1K, the only length tested.",
        ),
        (
            {"stock": entry((4096, 1, 1), (8192, 1, 1), (16384, 0, 1))},
            "With 1 probe a length, stock, which claims 8K, finds nothing at 16K, the longest length tested.",
        ),
        (
            {"stock": entry((4096, 2, 2), (8192, 2, 2), (16384, 0, 2))},
            "With 2 probes a length, stock keeps its recall to 8K, all that it claims, then finds none of 2 at 16K.",
        ),
        (
            {"only": entry((1024, 1, 6), (2048, 0, 6))},
            "With 6 probes a length, only finds only 1 of 6 even at 1K, the shortest length tested.",
        ),
        (
            {"a": entry((8192, 5, 5), (16384, 5, 5), (32768, 2, 5)), "b": entry((8192, 4, 5), (32768, 3, 5))},
            "With 5 probes a length, a keeps its recall to 16K, beyond the 8K it claims, then finds 2 of 5 at 32K; "
            "at 32K b finds 3 of 5.",
        ),
    ],
)
def test_the_sentence(variants, expected):
    assert finding({"variants": variants}) == expected


def test_the_sentence_follows_the_numbers_and_starts_with_stock():
    assert finding(make_summary(list(make_rows()))) == (
        "With 5 probes a length, stock keeps its recall to 4K of the 8K it claims, then finds none of 5 at 8K and "
        "none of 5 at 12K; at 12K yarn2 finds 3 of 5 and window 1 of 5 (only near the end)."
    )


def test_variants_that_found_as_much_are_told_together():
    variants = {
        name: entry((1024, 5, 5), (2048, hits, 5)) for name, hits in zip(("stock", "a", "b", "c"), (1, 4, 0, 0))
    }
    assert finding({"variants": variants}).endswith("at 2K a finds 4 of 5, b and c none of 5.")
    variants["a"] = variants["b"]
    assert finding({"variants": variants}).endswith("at 2K a, b and c find none of 5.")


def test_many_variants_are_summed_up_by_the_best_and_the_worst():
    variants = {"stock": entry((1024, 5, 5), (2048, 1, 5))}
    variants |= {f"v{i}": entry((1024, 5, 5), (2048, i, 5)) for i in range(6)}
    said = finding({"variants": variants})
    assert said.endswith("at 2K, of 6 other variants, v5 finds all 5 and v0 none of 5.")


def test_the_terminal_table_says_what_is_still_needed():
    from rich.console import Console

    console = Console(width=80, file=io.StringIO())
    console.print(terminal_table(make_summary(list(make_rows()))))
    shown = console.file.getvalue()
    (header,) = [line for line in shown.splitlines() if "variant" in line]
    assert [word for word in header.split() if word.endswith("K")] == ["1K", "2K", "4K", "8K", "12K"]
    (stock,) = [line for line in shown.splitlines() if "stock" in line]
    assert stock.split()[1:7] == ["8K", "5/5", "5/5", "5/5", "0/5", "0/5"]
    assert "undecided" in stock
    assert "+18 at 1K" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_many_lengths_are_split_over_several_tables_where_one_would_be_cut():
    """Every count is there in full, and the verdict once, below them."""
    from rich.console import Console

    lengths = tuple(range(1024, 1024 * 25, 1024))
    summary = make_summary(list(make_rows(lengths=lengths)))
    console = Console(width=80, file=io.StringIO())
    console.print(fitting(console, layouts(summary)))
    shown = console.file.getvalue()
    assert "…" not in shown
    headers = [line.split() for line in shown.splitlines() if "variant" in line]
    assert [word for header in headers for word in header if word.endswith("K")] == [f"{i}K" for i in range(1, 25)]
    assert len({len(header) for header in headers[:-1]}) == 1
    assert shown.count("effective") == 2  # one column a rule
    assert max(map(len, shown.splitlines())) <= 80


def test_a_proven_length_is_told_without_a_hedge():
    found = stats.effective({1024: (40, 40), 2048: (40, 40), 4096: (0, 40)})
    assert effective_text(found["absolute"]) == "2K"
    assert effective_text(stats.effective({1024: (40, 40)})["absolute"]) == "at least 1K"
