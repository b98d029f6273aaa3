"""Values of torch's schedulers: recorded for the tests, or compared live.

    python tests/golden/torch_values.py                # writes torch.json next to this file
    python tests/golden/torch_values.py --live 500     # 500 random configurations of each, compared

Needs torch, which the tests do not: they read torch.json. Each record holds the arguments of our
schedule, the steps, and the values that torch's scheduler had at them, stepped one by one.
"""

import argparse
import json
import pathlib
import random
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore", message="Detected call of")
NUM_STEPS = 60
TARGET = pathlib.Path(__file__).parent / "torch.json"


def walk(make_scheduler, num_steps, momentum):
    """Return the rates and momenta of the first ``num_steps`` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.5)
    scheduler = make_scheduler(optimizer)
    rates, momenta = [], []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        scheduler.step()
    return (rates, momenta) if momentum else (rates,)


def cyclic(rng):
    """CyclicLR in one of its modes, the rates and the momenta."""
    mode = rng.choice(["triangular", "triangular2", "exp_range"])
    base, peak = sorted(10 ** rng.uniform(-5, 1) for _ in range(2))
    low, high = sorted(rng.uniform(0.5, 0.99) for _ in range(2))
    up, down, gamma = rng.randint(1, 30), rng.randint(1, 30), rng.uniform(0.5, 1)
    rates, momenta = walk(
        lambda optimizer: torch.optim.lr_scheduler.CyclicLR(
            optimizer, base, peak, up, down, mode, gamma, base_momentum=low, max_momentum=high
        ),
        NUM_STEPS,
        momentum=True,
    )
    extra = {"gamma": gamma} if mode == "exp_range" else {}
    for first, second, values in ((base, peak, rates), (high, low, momenta)):
        yield f"{mode}_schedule", [first, second, up, down], extra, values


def one_cycle(rng):
    """OneCycleLR with two or three phases, cosine or linear, the rates and the momenta."""
    total, three_phase = rng.randint(2, NUM_STEPS), rng.random() < 0.5
    fraction = rng.uniform(0.02, 0.5 if three_phase else 0.98)
    peak, initial, final = 10 ** rng.uniform(-4, 1), rng.uniform(2, 50), 10 ** rng.uniform(1, 5)
    low, high = sorted(rng.uniform(0.5, 0.99) for _ in range(2))
    anneal = rng.choice(["cos", "linear"])
    rates, momenta = walk(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, peak, total, pct_start=fraction, anneal_strategy=anneal,
            base_momentum=low, max_momentum=high, div_factor=initial, final_div_factor=final,
            three_phase=three_phase,
        ),
        total,
        momentum=True,
    )  # fmt: skip
    extra = {
        "rise_fraction": fraction,
        "three_phase": three_phase,
        "wave": {"cos": "cosine", "linear": "linear"}[anneal],
    }
    init = peak / initial
    ends = {"init_value": init, "end_value": init / final}
    yield "one_cycle_schedule", [peak, total], ends | extra, rates
    ends = {"init_value": high, "end_value": high}
    yield "one_cycle_schedule", [low, total], ends | extra, momenta


def warm_restarts(rng):
    """CosineAnnealingWarmRestarts, stepped: its closed form is wrong at some restarts."""
    steps, mult = rng.randint(1, 20), rng.randint(1, 4)
    base, peak = sorted(10 ** rng.uniform(-5, 1) for _ in range(2))

    def scheduler(optimizer):
        optimizer.param_groups[0]["lr"] = peak
        return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, steps, mult, base)

    (rates,) = walk(scheduler, NUM_STEPS, momentum=False)
    yield "warm_restarts_schedule", [peak, steps], {"base_value": base, "mult": mult}, rates


def records(number, seed):
    rng = random.Random(seed)
    for _ in range(number):
        for kind in (cyclic, one_cycle, warm_restarts):
            for factory, args, kwargs, values in kind(rng):
                yield {"factory": factory, "args": args, "kwargs": kwargs, "values": values}


def compare(number, seed):
    """Print the worst relative difference of each schedule from live torch."""
    import jax.numpy as jnp

    import optax_clr

    worst, counts, disagreements = {}, {}, 0
    for record in records(number, seed):
        kwargs = dict(record["kwargs"])
        if "wave" in kwargs:
            kwargs["wave"] = getattr(optax_clr.waves, kwargs["wave"])
        schedule = getattr(optax_clr, record["factory"])(*record["args"], **kwargs)
        wanted = np.array(record["values"])
        got = np.asarray(schedule(jnp.arange(len(wanted))), np.float64)
        error = np.max(np.abs(got - wanted) / np.abs(wanted))
        if error > 2e-6:
            disagreements += 1
            print(f"{error:.2e}", {**record, "values": "..."})
        worst[record["factory"]] = max(worst.get(record["factory"], 0.0), error)
        counts[record["factory"]] = counts.get(record["factory"], 0) + 1
    for name, error in worst.items():
        print(f"{name:24s} {counts[name]:5d} curves, worst relative difference {error:.1e}")
    print(f"torch {torch.__version__}, seed {seed}: {disagreements} disagreements above 2e-6")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--live", type=int, metavar="N", help="compare N random configurations")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.live:
        compare(arguments.live, arguments.seed)
    else:
        recorded = {"torch": torch.__version__, "records": list(records(12, arguments.seed))}
        TARGET.write_text(json.dumps(recorded, indent=None) + "\n")
