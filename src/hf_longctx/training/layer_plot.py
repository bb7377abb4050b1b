"""A ranking of layers as a picture: a bar a layer, KL below and needle loss on top, chosen ones in colour."""

from __future__ import annotations

from pathlib import Path

from hf_longctx.measure.heatmap import replacing

from .layer_choice import LayerChoice

# Okabe and Ito's colours: chosen layers blue and orange, the others in greys of the same order of lightness.
_CHOSEN, _LEFT = ("#0072B2", "#E69F00"), ("#8a8a8a", "#cfcfcf")


def draw(choice: LayerChoice, path: Path, title: str) -> None:
    """Draw the damage of each layer, in the order of the model.

    Args:
        choice: what `choose_layers` gave.
        path: where the PNG goes.
        title: first line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.0, 0.36 * len(choice.ranking) + 2), 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    for chosen, colours, word in ((True, _CHOSEN, "converted"), (False, _LEFT, "stays")):
        found = [one for one in choice.ranking if (one.index in choice.chosen) is chosen]
        if not found:
            continue
        places, kls = [one.index for one in found], [one.kl for one in found]
        axes.bar(places, kls, color=colours[0], label=f"KL, {word}")
        axes.bar(
            places, [max(0.0, one.needle) for one in found], bottom=kls, color=colours[1], label=f"needle loss, {word}"
        )
    axes.set_xticks(sorted(one.index for one in choice.ranking))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("layer, converted alone")
    axes.set_ylabel("damage, nats a token")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
