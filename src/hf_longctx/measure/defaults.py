"""What the search for an effective length takes where nothing is said; apart, so that help texts load no library."""

from __future__ import annotations

TASK = "niah_multikey_1"
"""Its text holds several keys, so that its wrong key tells a model that reads the key asked for from one that does
not; of one needle a text, nobody can tell (see `controls`)."""

CONTROL_EVERY = 10
"""Both controls are asked beside one trial in so many: a fifth more prompts. A length that takes 42 trials has 5 of
each, a ladder of four 20: a model that answers one in five without a needle gets through these in 1 run of 87."""

TRIALS = 160
"""Most trials of a length. A test stops as soon as it is sure, so this is what a length near the line may take: with
48 one miss was too many. By simulation (4000 runs, five rungs, 95%) it passes every length of true score 1.0 (after 42
trials), 999 in 1000 of 0.98 (60 as a rule), 4 in 5 of 0.95 (100) and 1 in 4 of 0.92; 128 pass 3 in 5 of 0.95."""
