"""The figures of range tests: on the first page, by optimizer, with clipping, and of a sweep.

Run it as `python docs/figures/range_tests.py`, to write into docs/pages/images, or with a folder.
The network and its data are those of docs/pages/first-test.md, the sweep is that of
docs/pages/sweeps.md: the code of the pages is run. Prints what each test reads as.
"""

import pathlib
import sys

import jax
import optax
import style
from curves import PAGES, names_of
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullLocator

import optax_clr

OPTIMIZERS = {
    "SGD": optax.sgd,
    "SGD, momentum 0.9": lambda rate: optax.sgd(rate, momentum=0.9),
    "Adam": optax.adam,
    "RMSprop": optax.rmsprop,
}
CLIPPED = {
    "SGD, momentum 0.9": OPTIMIZERS["SGD, momentum 0.9"],
    "clipped to norm 0.1": lambda rate: optax.chain(
        optax.clip_by_global_norm(0.1), optax.sgd(rate, momentum=0.9)
    ),
}


def average_of(result):
    """Return the rates and the average that a plot of the result draws."""
    axes = result.plot(pyplot.figure().add_subplot())
    (line,) = (line for line in axes.lines if line.get_label().startswith("average"))
    pyplot.close(axes.figure)
    return line.get_xdata(), line.get_ydata()


def rate_axes(height=3.0):
    figure, axes = pyplot.subplots(figsize=(style.WIDTH, height), layout="constrained")
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="loss")
    return figure, axes


def by_setting(page, settings):
    """Draw a test with each of the optimizers, and what it suggests on its curve."""
    figure, axes = rate_axes()
    params = page["network"].init(jax.random.key(0), page["images"][:1])  # the page trains its own
    for name, optimizer in settings.items():
        test = optax_clr.lr_range_test(
            page["loss_fn"], params, optimizer, page["Loader"](), max_lr=100.0
        )
        rates, average = average_of(test)
        (line,) = axes.plot(rates, average, label=name)
        suggested = test.suggest()
        height = average[abs(rates / suggested - 1).argmin()]
        axes.plot(suggested, height, "o", color=line.get_color())
        print(f"{name}: suggest() {suggested:.2g}")
    axes.set(ylim=(0, 3.4), xlim=(1e-7, 100))
    axes.legend(loc="lower left")
    return figure


def first_page(result):
    """Draw one test, in parts that appear one after the other, as the rate climbs."""
    figure, axes = rate_axes(2.9)
    rates, average = average_of(result)
    axes.plot(result.learning_rates, result.losses, color="tab:blue", alpha=0.4, lw=0.8, gid="raw")
    axes.plot(rates, average, color="tab:blue", lw=2.2, gid="average")
    axes.set(ylim=(0, 3.9), xlim=(1e-7, 10))
    axes.xaxis.set_major_locator(LogLocator(numticks=9))
    axes.xaxis.set_minor_locator(NullLocator())
    for gid, text, place in (
        ("level", "too low:\nnothing is learned", (3e-6, 2.85)),
        ("fall", "it learns", (4e-4, 1.2)),
        ("rise", "too high:\nit breaks", (1.3, 1.0)),
    ):
        axes.text(*place, text, ha="center", va="center", color="0.3", gid=gid)
    low, high = result.bounds()
    axes.axvspan(low, high, color="tab:green", alpha=0.2, lw=0, gid="bounds")
    axes.text((low * high) ** 0.5, 3.75, "bounds()", ha="right", va="center", color="tab:green",
              gid="bounds-name")  # fmt: skip
    axes.axvline(result.one_cycle_peak(), color="tab:purple", ls="--", gid="peak")
    axes.text(1.25 * result.one_cycle_peak(), 3.75, "one_cycle_peak()", va="center",
              color="tab:purple", gid="peak-name")  # fmt: skip
    print(f"first page: bounds {low:.2g} to {high:.2g}")
    return figure


# The curve is drawn for two seconds, and its parts are named as it passes them.
ANIMATION = """<style>
@media (prefers-reduced-motion: no-preference) {
  #raw, #average { animation: draw 2s linear both; }
  #level, #fall, #rise, #bounds, #bounds-name, #peak, #peak-name { animation: appear 0.4s both; }
  #level { animation-delay: 0.5s; } #fall { animation-delay: 1.2s; }
  #rise { animation-delay: 1.9s; }
  #bounds, #bounds-name { animation-delay: 2.2s; } #peak, #peak-name { animation-delay: 2.4s; }
  @keyframes draw { from { clip-path: inset(0 100% 0 0); } to { clip-path: inset(0); } }
  @keyframes appear { from { opacity: 0; } }
}
</style>
"""


def animate(path):
    path.write_text(path.read_text().replace("</defs>", f"</defs>\n{ANIMATION}", 1))


def sweep(page):
    """Draw the band of eight seeds."""
    keys = jax.random.split(jax.random.key(0), 8)
    result = jax.vmap(page["run"], in_axes=(0, None))(keys, 1e-2)
    figure, axes = rate_axes()
    result.plot(axes)
    axes.set(xlabel="learning rate", ylabel="loss", xlim=(3e-9, 3), ylim=(-0.05, 1.45))
    axes.legend(loc="upper left")
    print(f"eight seeds: suggest() {result.suggest():.2g}")
    return figure


def main():
    folder = pathlib.Path(sys.argv[1]) if sys.argv[1:] else PAGES / "images"
    style.use()
    digits = names_of(PAGES / "first-test.md")
    style.save(first_page(digits["result"]), folder / "range-test.svg")
    animate(folder / "range-test.svg")
    style.save(by_setting(digits, OPTIMIZERS), folder / "optimizers.svg")
    style.save(by_setting(digits, CLIPPED), folder / "clipping.svg")
    style.save(sweep(names_of(PAGES / "sweeps.md")), folder / "sweep.svg")


if __name__ == "__main__":
    main()
